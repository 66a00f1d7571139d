"""ParameterKind: how a value is spelt where the arguments of a call are written one by one, by its schema alone.

Whoever writes such calls, reads them or judges them goes by this, so that a text means one value to all of them. It is
a reading of the schema's words, not of what they come to: values that a parameter cannot be spelt with are left out.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping

from specdec.grammars.schema import Json

_OF_STRINGS = frozenset({"pattern", "minLength", "maxLength", "format", "contentEncoding", "contentMediaType"})
_OF_OTHERS = frozenset({
    "properties", "patternProperties", "additionalProperties", "propertyNames", "required", "minProperties",
    "maxProperties", "items", "prefixItems", "contains", "minItems", "maxItems", "uniqueItems", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
})  # fmt: skip


class ParameterKind(enum.Enum):
    TEXT = enum.auto()
    """A string, as it is."""
    TEXT_OR_NULL = enum.auto()
    """The same, but that `null` is null."""
    JSON = enum.auto()
    """A value that is no string, as JSON."""


def parameter_kinds(parameters: str) -> dict[str, ParameterKind]:
    """By the names of a schema's properties; `parameters` is its JSON text. What is not declared is text."""
    schema: Json = json.loads(parameters)
    found: dict[str, ParameterKind] = {}
    for one in _alternatives(schema, schema):
        declared = one.get("properties")
        for name, value in declared.items() if isinstance(declared, dict) else ():
            found.setdefault(name, _kind(value, schema))
    return found


def _kind(schema: Json, root: Json) -> ParameterKind:
    types: set[str] = set()
    for one in _alternatives(schema, root):
        types |= _types(one)
    if types and "string" not in types:
        return ParameterKind.JSON
    return ParameterKind.TEXT_OR_NULL if "null" in types else ParameterKind.TEXT


def _alternatives(schema: Json, root: Json) -> Iterator[Mapping[str, Json]]:
    """The schema, what it refers to, and what it combines."""
    pending, seen = [schema], set[int]()
    for one in pending:
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one.get("$ref"), str):
            pending.append(_target(one["$ref"], root))
        for keyword in ("allOf", "anyOf", "oneOf"):
            members = one.get(keyword)
            pending += members if isinstance(members, list) else ()


def _target(reference: str, root: Json) -> Json:
    """What a pointer into the same document leads to; None where it leads nowhere."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    found = root
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found


def _types(schema: Mapping[str, Json]) -> set[str]:
    """The types of value that a schema speaks of itself; none where it says nothing."""
    if "const" in schema:
        return {_type_of(schema["const"])}
    members = schema.get("enum")
    if isinstance(members, list):
        return {_type_of(member) for member in members}
    named = schema.get("type")
    if isinstance(named, str):
        return {named}
    if isinstance(named, list):
        return {one for one in named if isinstance(one, str)}
    if not _OF_STRINGS.isdisjoint(schema):
        return {"string"}
    return {"other"} if not _OF_OTHERS.isdisjoint(schema) else set()


def _type_of(value: Json) -> str:
    return "string" if isinstance(value, str) else "null" if value is None else "other"
