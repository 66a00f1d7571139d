"""Regions: what each token of a JSON text writes: structure, a key, a value of an enum, a number, or a string.

A token belongs to the region of its first byte; one that goes on into another region is also counted as crossing.
`true`, `false` and `null` are structure where the schema leaves no more choice than that, which is not looked into:
they count as enum, for they are one of few.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

Region = Literal["structure", "key", "enum", "number", "string"]
REGIONS: Final[tuple[Region, ...]] = ("structure", "key", "enum", "number", "string")

_MAX_SCHEMAS: Final = 64
"""Alternatives of one value that are looked into."""


def byte_regions(text: bytes, schema: Mapping[str, Any] | None) -> list[Region]:
    """The region of each byte of a JSON text, or of the beginning of one, as far as it is one."""
    return _Scanner(text, {} if schema is None else schema).regions


def token_regions(pieces: Sequence[bytes], schema: Mapping[str, Any] | None) -> list[tuple[Region, bool]]:
    """For each token of a JSON text its region, and whether it goes on into another one.

    Tokens without bytes, which end a text, are structure.
    """
    of_bytes = byte_regions(b"".join(pieces), schema)
    found: list[tuple[Region, bool]] = []
    begin = 0
    for piece in pieces:
        own = of_bytes[begin : begin + len(piece)]
        begin += len(piece)
        found.append((own[0], len(set(own)) > 1) if own else ("structure", False))
    return found


class _Scanner:
    """One pass over a text that need not be complete; schemas are followed beside it to know enums."""

    def __init__(self, text: bytes, schema: Mapping[str, Any]) -> None:
        self._text = text
        self._root = schema
        self.regions: list[Region] = ["structure"] * len(text)
        self._at = 0
        self._value([schema])

    def _mark(self, begin: int, end: int, region: Region) -> None:
        self.regions[begin:end] = [region] * (min(end, len(self._text)) - begin)

    def _skip(self, among: bytes) -> None:
        while self._at < len(self._text) and self._text[self._at] in among:
            self._at += 1

    def _value(self, schemas: Sequence[Any]) -> None:
        self._skip(b" \n\r\t")
        if self._at >= len(self._text):
            return
        first = self._text[self._at : self._at + 1]
        schemas = self._alternatives(schemas)
        if first == b"{":
            self._object(schemas)
        elif first == b"[":
            self._array(schemas)
        elif first == b'"':
            begin, end = self._string()
            self._mark(begin, end, "enum" if _has_values(schemas) else "string")
        else:
            begin = self._at
            while self._at < len(self._text) and self._text[self._at] not in b",]} \n\r\t":
                self._at += 1
            is_number = first in b"-0123456789" and not _has_values(schemas)
            self._mark(begin, self._at, "number" if is_number else "enum")

    def _object(self, schemas: Sequence[Any]) -> None:
        self._at += 1
        while True:
            self._skip(b" \n\r\t,")
            if self._at >= len(self._text) or self._text[self._at : self._at + 1] != b'"':
                self._at += 1
                return
            begin, end = self._string()
            self._mark(begin, end, "key")
            name = _decoded(self._text[begin:end])
            self._skip(b" \n\r\t:")
            self._value([part for schema in schemas for part in _of_property(schema, name)])

    def _array(self, schemas: Sequence[Any]) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip(b" \n\r\t,")
            if self._at >= len(self._text) or self._text[self._at : self._at + 1] == b"]":
                self._at += 1
                return
            before = self._at
            self._value([part for schema in schemas for part in _of_item(schema, index)])
            if self._at == before:
                return
            index += 1

    def _string(self) -> tuple[int, int]:
        """Its span, quotes included."""
        begin = self._at
        self._at += 1
        while self._at < len(self._text):
            byte = self._text[self._at]
            self._at += 2 if byte == ord("\\") else 1
            if byte == ord('"'):
                break
        self._at = min(self._at, len(self._text))
        return begin, self._at

    def _alternatives(self, schemas: Sequence[Any]) -> list[Mapping[str, Any]]:
        """The schemas with all that they refer to and are made of."""
        found: list[Mapping[str, Any]] = []
        waiting = list(schemas)
        while waiting and len(found) < _MAX_SCHEMAS:
            schema = waiting.pop(0)
            if not isinstance(schema, Mapping) or any(schema is other for other in found):
                continue
            found.append(schema)
            for keyword in ("allOf", "anyOf", "oneOf"):
                waiting += schema.get(keyword) or ()
            waiting += [schema[keyword] for keyword in ("if", "then", "else") if keyword in schema]
            if isinstance(schema.get("$ref"), str):
                waiting.append(self._resolve(schema["$ref"]))
        return found

    def _resolve(self, reference: str) -> Any:
        """What a pointer into the schema itself points to; None for any other reference."""
        if not reference.startswith("#"):
            return None
        node: Any = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping):
                node = node.get(name)
            elif isinstance(node, Sequence) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            else:
                return None
        return node


def _has_values(schemas: Sequence[Mapping[str, Any]]) -> bool:
    return any("enum" in schema or "const" in schema for schema in schemas)


def _of_property(schema: Mapping[str, Any], name: str) -> list[Any]:
    declared = schema.get("properties")
    if isinstance(declared, Mapping) and name in declared:
        return [declared[name]]
    return [schema[keyword] for keyword in ("additionalProperties", "unevaluatedProperties") if keyword in schema]


def _of_item(schema: Mapping[str, Any], index: int) -> list[Any]:
    prefix = schema.get("prefixItems")
    if isinstance(prefix, Sequence) and index < len(prefix):
        return [prefix[index]]
    return [schema[keyword] for keyword in ("items", "unevaluatedItems") if keyword in schema]


def _decoded(literal: bytes) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:
        return ""
