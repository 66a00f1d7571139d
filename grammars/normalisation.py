"""Normalisation: the published reading of schemas that name no dialect, as 2020-12 with legacy spellings understood.

    items: [A, B], additionalItems: C         prefixItems: [A, B], items: C
    minimum: 1, exclusiveMinimum: true        exclusiveMinimum: 1 (and likewise for maximum)
    dependencies: {a: ["b"], c: S}            dependentRequired: {a: ["b"]}, dependentSchemas: {c: S}
    definitions                               stays: it is a place for subschemas, as $defs is

Each of these spellings is malformed or without meaning in 2020-12, so a schema that is written in 2020-12 stays as it
is. `$ref` by JSON pointer still leads to the same subschema after it has moved.
"""

from __future__ import annotations

import copy
from typing import Any
from urllib.parse import unquote

# A schema's values are whatever JSON holds.
Json = Any

_SUBSCHEMA = frozenset({
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
_LIST_OF_SUBSCHEMAS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED_SUBSCHEMAS = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
_BOUNDS = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}


def normalised(schema: Json) -> Json:
    """The schema in 2020-12 spelling; the argument is left as it was."""
    return _Rewriting().run(copy.deepcopy(schema))


def pointer_tokens(fragment: str) -> list[str]:
    """The keys of a JSON pointer in a URI fragment."""
    return [token.replace("~1", "/").replace("~0", "~") for token in unquote(fragment).split("/")[1:]]


class _Rewriting:
    """Subschemas as they are rewritten, where each was and where it has gone to."""

    def __init__(self) -> None:
        self._moved: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._references: list[dict[str, Json]] = []

    def run(self, schema: Json) -> Json:
        """The schema may be changed on the way."""
        root = self._rewrite(schema, (), ())
        # A reference may lead to a subschema that no keyword holds; it is rewritten too, and may hold references.
        for holder in self._references:
            old = tuple(pointer_tokens(holder["$ref"][1:]))
            new = self._new_place(old)
            target = _value_at(root, new)
            if old not in self._moved and isinstance(target, dict):
                rewritten = self._rewrite(target, old, new)
                target.clear()
                target.update(rewritten)
            if new != old:
                holder["$ref"] = "#" + "".join(f"/{_escaped(token)}" for token in new)
        return root

    def _new_place(self, old: tuple[str, ...]) -> tuple[str, ...]:
        known = next(old[:length] for length in range(len(old), -1, -1) if old[:length] in self._moved)
        return self._moved[known] + old[len(known) :]

    def _rewrite(self, schema: Json, old: tuple[str, ...], new: tuple[str, ...]) -> Json:
        self._moved[old] = new
        if not isinstance(schema, dict):
            return schema
        result: dict[str, Json] = {}
        for keyword, value in schema.items():
            if keyword == "items" and isinstance(value, list) and "prefixItems" not in schema:
                result["prefixItems"] = self._list(value, (*old, "items"), (*new, "prefixItems"))
            elif keyword == "additionalItems" and isinstance(schema.get("items"), list):
                result["items"] = self._rewrite(value, (*old, keyword), (*new, "items"))
            elif keyword in _BOUNDS and isinstance(value, bool):
                if value and _BOUNDS[keyword] in schema:
                    result[keyword] = schema[_BOUNDS[keyword]]
            elif (keyword == "dependencies" and isinstance(value, dict)) or (
                keyword in _BOUNDS.values() and schema.get(f"exclusive{keyword.capitalize()}") is True
            ):
                continue
            elif keyword in _SUBSCHEMA:
                result[keyword] = self._rewrite(value, (*old, keyword), (*new, keyword))
            elif keyword in _LIST_OF_SUBSCHEMAS and isinstance(value, list):
                result[keyword] = self._list(value, (*old, keyword), (*new, keyword))
            elif keyword in _NAMED_SUBSCHEMAS and isinstance(value, dict):
                result[keyword] = {
                    name: self._rewrite(each, (*old, keyword, name), (*new, keyword, name))
                    for name, each in value.items()
                }
            else:
                result[keyword] = value
        dependencies = schema.get("dependencies")
        if isinstance(dependencies, dict):
            self._split_dependencies(dependencies, result, old, new)
        if isinstance(result.get("$ref"), str) and (result["$ref"] == "#" or result["$ref"].startswith("#/")):
            self._references.append(result)
        return result

    def _list(self, values: list[Json], old: tuple[str, ...], new: tuple[str, ...]) -> list[Json]:
        return [self._rewrite(value, (*old, str(i)), (*new, str(i))) for i, value in enumerate(values)]

    def _split_dependencies(
        self, dependencies: dict[str, Json], result: dict[str, Json], old: tuple[str, ...], new: tuple[str, ...]
    ) -> None:
        for name, value in dependencies.items():
            if isinstance(value, list):
                required = dict(result.get("dependentRequired", {}))
                required[name] = [*required.get(name, []), *(key for key in value if key not in required.get(name, []))]
                result["dependentRequired"] = required
                continue
            schemas = dict(result.get("dependentSchemas", {}))
            was = (*old, "dependencies", name)
            place = (*new, "dependentSchemas", name)
            if name in schemas:
                schemas[name] = {"allOf": [schemas[name], self._rewrite(value, was, (*place, "allOf", "1"))]}
            else:
                schemas[name] = self._rewrite(value, was, place)
            result["dependentSchemas"] = schemas


def _value_at(root: Json, place: tuple[str, ...]) -> Json:
    value = root
    for token in place:
        if isinstance(value, dict) and token in value:
            value = value[token]
        elif isinstance(value, list) and token.isdecimal() and int(token) < len(value):
            value = value[int(token)]
        else:
            return None
    return value


def _escaped(token: str) -> str:
    return token.replace("~", "~0").replace("/", "~1").replace("%", "%25")
