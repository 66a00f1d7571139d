"""Random schemas of every keyword in one of the dialects, with all formats and harder patterns and numbers.

A schema of all_keywords.py is changed here and there: what it says is then spelt as the dialect spells it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import all_keywords
from format_examples import VALID
from schemas import KEYS

DIALECTS: list[str | None] = [
    None,
    "http://json-schema.org/draft-04/schema#",
    "http://json-schema.org/draft-06/schema#",
    "http://json-schema.org/draft-07/schema#",
    "https://json-schema.org/draft/2019-09/schema",
    "https://json-schema.org/draft/2020-12/schema",
]
_OF_ONE = {
    "additionalProperties", "propertyNames", "items", "additionalItems", "contains", "not", "if", "then", "else",
    "unevaluatedProperties", "unevaluatedItems",
}  # fmt: skip
_OF_MANY = {"allOf", "anyOf", "oneOf", "prefixItems"}
_OF_NAMED = {"properties", "patternProperties", "dependentSchemas", "dependencies", "$defs"}
# Formats that take seconds to judge, or to tell from what they are not, are left to their own tests.
FORMATS = sorted(VALID.keys() - {"iri", "iri-reference", "idn-email", "idn-hostname", "uri-template", "regex"})
NUMBER_FORMATS = ["int32", "int64", "float", "double"]
PATTERNS = [
    "^(?=.*a)[ab]{1,3}$", "a(?!b)", "(?<=a)b", "(?<!a)b$", r"\ba", r"b\B", "^(?:a|b)??b", "^(?<n>a)b*", r"^\p{L}+$",
    r"[\u0061-\u{62}]", r"^[^\s\S]|a", r"\x61|\cJ", r"^\W*$", r"^.{0,2}\Z", "a{2,}|^$", "^[\\^\\-a]*$", "é|😀",
]  # fmt: skip
BOUNDS = [-1.5, 0, 0.1, 3, 9.99, 100, 2**31, -(2**31), 2**53, 10**16, 1e300, -1e-5, 0.30000000000000004]
DIVISORS = [0.01, 0.3, 7, 2.5, 1e-5, 100, 12, 1.1]

Schema = dict[str, Any]


def random_schema(rng: random.Random, dialect: str | None) -> Any:
    """A root schema of the dialect; None names none, so that older spellings stand beside those of 2020-12."""
    schema = all_keywords.random_schema(rng)
    changed = _changed(rng, schema, lambda one: _respelt(rng, _hardened(rng, one), dialect))
    changed["$defs"]["r"] = changed["$defs"]["r"] if rng.random() < 0.8 else _recursive(rng, changed, dialect)
    if _is_up_to(dialect, 7):
        changed["definitions"] = changed.pop("$defs")
    return changed if dialect is None else {"$schema": dialect, **changed}


def _is_up_to(dialect: str | None, draft: int) -> bool:
    return dialect is not None and "draft-0" in dialect and int(dialect.split("draft-0")[1][0]) <= draft


def _changed(rng: random.Random, schema: Any, change: Callable[[Schema], Schema]) -> Any:
    """Every subschema, from the inside out."""
    if not isinstance(schema, dict):
        return schema
    inside: Schema = {}
    for keyword, value in schema.items():
        if keyword in _OF_ONE:
            inside[keyword] = _changed(rng, value, change)
        elif keyword in _OF_MANY:
            inside[keyword] = [_changed(rng, one, change) for one in value]
        elif keyword in _OF_NAMED:
            inside[keyword] = {
                key: one if isinstance(one, list) else _changed(rng, one, change) for key, one in value.items()
            }
        else:
            inside[keyword] = value
    return change(inside)


def _hardened(rng: random.Random, schema: Schema) -> Schema:
    if "pattern" in schema and rng.random() < 0.5:
        schema["pattern"] = rng.choice(PATTERNS)
    if "patternProperties" in schema and rng.random() < 0.4:
        schema["patternProperties"] = {rng.choice(PATTERNS): one for one in schema["patternProperties"].values()}
    if "format" in schema or rng.random() < 0.03:
        schema["format"] = rng.choice(FORMATS) if rng.random() < 0.7 else rng.choice(NUMBER_FORMATS)
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if keyword in schema and rng.random() < 0.5:
            schema[keyword] = rng.choice(BOUNDS)
    if "multipleOf" in schema and rng.random() < 0.5:
        schema["multipleOf"] = rng.choice(DIVISORS)
    return schema


def _respelt(rng: random.Random, schema: Schema, dialect: str | None) -> Schema:
    if "prefixItems" in schema and dialect != DIALECTS[-1] and (dialect is not None or rng.random() < 0.5):
        rest = schema.pop("items", None)
        schema["items"] = schema.pop("prefixItems")
        if rest is not None:
            schema["additionalItems"] = rest
    if dialect == DIALECTS[1] or (dialect is None and rng.random() < 0.3):
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if exclusive in schema:
                schema.setdefault(bound, schema[exclusive])
                schema[exclusive] = rng.random() < 0.7
    if _is_up_to(dialect, 7):
        if "dependentSchemas" in schema or "dependentRequired" in schema:
            schema["dependencies"] = {
                **schema.pop("dependentRequired", {}),
                **schema.pop("dependentSchemas", {}),
            }
        schema.pop("$anchor", None)
        if "$ref" in schema:
            schema["$ref"] = {"#x": "#/definitions/x"}.get(
                schema["$ref"], schema["$ref"].replace("$defs", "definitions")
            )
    if dialect == DIALECTS[1]:
        # Draft 4 has neither schemas true and false nor an empty `required`.
        return _without_booleans(schema)
    return schema


def _without_booleans(schema: Schema) -> Schema:
    def instead(value: Any) -> Any:
        return {} if value is True else {"not": {}} if value is False else value

    if schema.get("required") == []:
        del schema["required"]
    for keyword, value in schema.items():
        if (
            keyword in _OF_ONE
            and keyword not in {"additionalProperties", "additionalItems"}
            and not isinstance(value, list)
        ):
            schema[keyword] = instead(value)
        elif keyword in _OF_MANY or (keyword == "items" and isinstance(value, list)):
            schema[keyword] = [instead(one) for one in value]
        elif keyword in _OF_NAMED:
            schema[keyword] = {key: instead(one) for key, one in value.items()}
    return schema


def _recursive(rng: random.Random, schema: Schema, dialect: str | None) -> Any:
    """The part r as one branch of a tree that goes on at its root, in the dialect's way where it has one of its own."""
    part = schema["$defs"]["r"]
    ref: Schema = {"$ref": "#/definitions/r" if _is_up_to(dialect, 7) else "#/$defs/r"}
    if dialect == DIALECTS[-1]:
        schema["$dynamicAnchor"] = "tree"
        ref = {"$dynamicRef": "#tree"}
    elif dialect == DIALECTS[-2]:
        schema["$recursiveAnchor"] = True
        ref = {"$recursiveRef": "#"}
    applied = rng.choice([{"properties": {rng.choice(KEYS): ref}}, {"items": ref}, {"additionalProperties": ref}])
    return {**applied, rng.choice(["allOf", "anyOf", "oneOf"]): [{} if isinstance(part, bool) else part]}
