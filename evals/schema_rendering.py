"""Rendering: an instance as JSON text, the same text for every engine and never after a look at what one accepts.

Compact, each character itself where JSON allows it, numbers as Python writes them. Keys stand in the order in which
the schema mentions them. A plain walk of the schema beside the instance collects them, and the first mention wins:

    1. declared: the keys of `properties`, then those that `$ref`, `$dynamicRef`, `allOf`, `anyOf`, `oneOf`, `if`,
       `then`, `else`, `dependentSchemas` and `dependencies` mention, in this order, and after them the keys of the
       object that is `const` or in `enum` and equals the instance
    2. only required, in the same walk
    3. all others, as in the instance

Branches of `anyOf` and `oneOf`, `then` and `else` that the instance plainly breaks come after those that it may be an
instance of (schema_fit.py). A number with a fraction whose value is whole has two renderings, `1.0` and then `1`: they
are the same value, but for draft 4 and before, to which 1.0 is no integer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from specdec.evals.schema_fit import plainly_breaks
from specdec.grammars.judge import dialect_of
from specdec.grammars.normalisation import pointer_tokens

# Schemas and instances are whatever JSON holds.
Json = Any

_IN_PLACE_NAMED = ("dependentSchemas", "dependencies")


class UnrenderableError(ValueError):
    """An instance that has no JSON text, or none in UTF-8."""


class Renderer:
    """Renders the instances of one schema; `documents` are what its references may lead to, by URI."""

    def __init__(self, schema: Json, documents: dict[str, Json] | None = None) -> None:
        self._root = schema
        self._documents = documents or {}
        dialect = dialect_of(schema) or ""
        self._ref_hides_siblings = dialect.startswith("draft-0")
        self._has_whole_floats = dialect not in {"draft-03", "draft-04"}

    def renderings(self, instance: Json) -> tuple[bytes, ...]:
        """One text, or two where a whole number is written with a fraction; UnrenderableError where there is none."""
        try:
            texts = [self._text(instance, whole=whole) for whole in (False, True)[: 1 + self._has_whole_floats]]
            return tuple(text.encode() for text in dict.fromkeys(texts))
        except UnicodeEncodeError as error:
            raise UnrenderableError(f"a lone surrogate has no UTF-8 form: {error.reason}") from error
        except RecursionError as error:
            raise UnrenderableError("the instance is nested too deeply for the renderer") from error

    def _text(self, instance: Json, *, whole: bool) -> str:
        return "".join(self._parts(instance, [self._root], whole=whole))

    def _parts(self, instance: Json, schemas: list[Json], *, whole: bool) -> Iterator[str]:
        if isinstance(instance, dict):
            mentioned = self._in_place(schemas, instance)
            for i, key in enumerate(_ordered_keys(instance, mentioned)):
                yield ("," if i else "{") + json.dumps(key, ensure_ascii=False) + ":"
                yield from self._parts(instance[key], list(_of_property(mentioned, key, instance)), whole=whole)
            yield "}" if instance else "{}"
        elif isinstance(instance, list):
            mentioned = self._in_place(schemas, instance)
            for i, item in enumerate(instance):
                yield "," if i else "["
                yield from self._parts(item, list(_of_item(mentioned, i, instance)), whole=whole)
            yield "]" if instance else "[]"
        elif isinstance(instance, float):
            if not math.isfinite(instance):
                raise UnrenderableError(f"{instance} is no JSON number")
            yield str(int(instance)) if whole and instance.is_integer() else json.dumps(instance)
        else:
            yield json.dumps(instance, ensure_ascii=False)

    def _in_place(self, schemas: list[Json], instance: Json) -> list[dict[str, Json]]:
        """The schemas and all that apply to the same value, in the order of the walk."""
        found: list[dict[str, Json]] = []
        seen: set[int] = set()
        pending = list(reversed(schemas))
        while pending:
            schema = pending.pop()
            if not isinstance(schema, dict) or id(schema) in seen:
                continue
            seen.add(id(schema))
            hidden = self._ref_hides_siblings and "$ref" in schema
            if not hidden:
                found.append(schema)
            pending.extend(reversed(list(self._applied(schema, instance, only_reference=hidden))))
        return found

    def _applied(self, schema: dict[str, Json], instance: Json, *, only_reference: bool) -> Iterator[Json]:
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(schema.get(keyword), str):
                yield self._resolve(schema[keyword])
        if only_reference:
            return
        yield from _as_list(schema.get("allOf"))
        for keyword in ("anyOf", "oneOf"):
            yield from self._fitting_first(_as_list(schema.get(keyword)), instance)
        if "if" in schema:
            yield schema["if"]
        yield from self._fitting_first([schema[each] for each in ("then", "else") if each in schema], instance)
        for keyword in _IN_PLACE_NAMED:
            yield from _as_dict(schema.get(keyword)).values()

    def _fitting_first(self, branches: list[Json], instance: Json) -> list[Json]:
        return sorted(branches, key=lambda branch: plainly_breaks(branch, instance, self._resolve))

    def _resolve(self, reference: str) -> Json:
        """What a reference leads to where that is plain: a pointer or an anchor into the root or a document."""
        uri, _, fragment = reference.partition("#")
        document = self._documents.get(uri) if uri else self._root
        if fragment and not fragment.startswith("/"):
            return _anchored(document, fragment)
        for token in pointer_tokens(fragment):
            if isinstance(document, dict):
                document = document.get(token)
            elif isinstance(document, list) and token.isdecimal() and int(token) < len(document):
                document = document[int(token)]
            else:
                return None
        return document


def _ordered_keys(instance: dict[str, Json], schemas: Iterable[dict[str, Json]]) -> list[str]:
    declared: dict[str, None] = {}
    required: dict[str, None] = {}
    constant: dict[str, None] = {}
    for schema in schemas:
        declared.update(dict.fromkeys(_as_dict(schema.get("properties"))))
        required.update(dict.fromkeys(key for key in _as_list(schema.get("required")) if isinstance(key, str)))
        for value in _equal_constants(schema, instance):
            constant.update(dict.fromkeys(value))
    return [key for key in {**declared, **constant, **required, **instance} if key in instance]


def _of_property(schemas: Iterable[dict[str, Json]], key: str, instance: dict[str, Json]) -> Iterator[Json]:
    """What the schemas say of one key's value."""
    for schema in schemas:
        properties = _as_dict(schema.get("properties"))
        if key in properties:
            yield properties[key]
        for pattern, value in _as_dict(schema.get("patternProperties")).items():
            if _finds(pattern, key):
                yield value
        yield from (schema[each] for each in ("additionalProperties", "unevaluatedProperties") if each in schema)
        for value in _equal_constants(schema, instance):
            yield {"const": value[key]}


def _of_item(schemas: Iterable[dict[str, Json]], index: int, instance: list[Json]) -> Iterator[Json]:
    """What the schemas say of one item."""
    for schema in schemas:
        for keyword in ("prefixItems", "items"):
            items = schema.get(keyword)
            if isinstance(items, list):
                yield from items[index : index + 1]
            elif items is not None:
                yield items
        yield from (schema[each] for each in ("additionalItems", "contains", "unevaluatedItems") if each in schema)
        for value in _equal_constants(schema, instance):
            yield {"const": value[index]}


def _equal_constants(schema: dict[str, Json], instance: Json) -> Iterator[Json]:
    """The `const` and `enum` objects or arrays that are the instance, whose keys may be in another order."""
    constants = [schema["const"]] if "const" in schema else []
    for value in (*constants, *_as_list(schema.get("enum"))):
        # Python's equality calls 1 and true equal; for the order of keys that is harmless.
        if isinstance(value, type(instance)) and value == instance:
            yield value


def _anchored(document: Json, name: str) -> Json:
    """The first subschema with that anchor."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if name in (value.get("$anchor"), value.get("$dynamicAnchor")) or value.get("$id") == f"#{name}":
                return value
            pending += reversed(value.values())
        elif isinstance(value, list):
            pending += reversed(value)
    return None


def _finds(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False


def _as_dict(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _as_list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []
