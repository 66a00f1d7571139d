"""Random schemas of every keyword of draft 2020-12, and random values near the edges that they draw."""

from __future__ import annotations

import random
from typing import Any

from schemas import KEYS, TYPES, add_bounds

NUMBERS = [0, 1, -1, 2, 3, 12, 1.0, -2.0, 0.5, -1.5, 0.1, 0.25, 0.75, 2.5, 10**17, 1e22]
STRINGS = [
    "", "a", "b", "ab", "aab", "abc", "é", "😀", 'q"', "\n", "a\n", "b\u0001", "0", "12", "2024-02-29", "2023-02-29",
    "0.0.0.0", "1.2.3.4", "256.1.1.1", "23:59:59Z", "23:59:60Z", "2eb8aa08-aa98-11ea-b4aa-73b441d16380",
]  # fmt: skip
# Not the empty pattern: the validator overlooks it among patternProperties when it judges additionalProperties.
PATTERNS = ["a", "^a", "b$", "^[ab]*$", "^.{2}$", "^(ab|é)+$", "[^a]", "\\d", "^$", "^a?b?$", "^(?!a)", "q|\\n"]
FORMATS = ["date", "ipv4", "uuid", "time"]
_BOUNDS = [-1, 0, 1, 2, 0.5, 1.5, -0.25, 12]
_DIVISORS = [1, 2, 3, 0.5, 0.25, 0.1, 1.5, 10]

SCALAR_GROUPS = ["type", "enum", "const", "length", "pattern", "format", "bounds", "multipleOf"]
OBJECT_GROUPS = [
    "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "counts",
    "dependentRequired", "dependentSchemas", "dependencies",
]  # fmt: skip
ARRAY_GROUPS = ["items", "prefixItems", "contains", "itemCounts", "uniqueItems"]
LOGIC_GROUPS = ["allOf", "anyOf", "oneOf", "not", "if", "$ref", "unevaluatedProperties", "unevaluatedItems"]
GROUPS = SCALAR_GROUPS + OBJECT_GROUPS + ARRAY_GROUPS + LOGIC_GROUPS


def random_value(rng: random.Random, depth: int = 2) -> Any:
    kind = rng.randrange(9 if depth else 5)
    if kind in {5, 6}:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind in {7, 8}:
        return {key: random_value(rng, depth - 1) for key in rng.sample(KEYS, rng.randrange(4))}
    return [None, rng.random() < 0.5, rng.choice(NUMBERS), rng.choice(STRINGS[:12]), rng.choice(STRINGS)][kind]


def random_schema(rng: random.Random) -> Any:
    """A root schema; its `$defs` x and y may refer to each other, to themselves and to the root's own part r."""
    return {"$ref": "#/$defs/r", "$defs": random_definitions(rng)}


def random_definitions(rng: random.Random) -> dict[str, Any]:
    """The parts r, x (with an anchor) and y of a schema."""
    x = subschema(rng, 1)
    if isinstance(x, dict):
        x["$anchor"] = "x"
    return {"r": subschema(rng, 2), "x": x if isinstance(x, dict) else {"$anchor": "x"}, "y": subschema(rng, 0)}


def subschema(rng: random.Random, depth: int) -> Any:
    if rng.random() < 0.08:
        return rng.random() < 0.6
    family = rng.random()
    if family < 0.3 or depth < 0:
        groups = SCALAR_GROUPS
    elif family < 0.5:
        groups = OBJECT_GROUPS
    elif family < 0.65:
        groups = ARRAY_GROUPS
    else:
        groups = GROUPS + LOGIC_GROUPS * 2
    schema: dict[str, Any] = {}
    for group in rng.choices(groups, k=rng.choice([1, 1, 2, 2, 3, 4])):
        _add(rng, schema, group, depth)
    if groups is OBJECT_GROUPS and rng.random() < 0.5:
        schema.setdefault("type", "object")
    if groups is ARRAY_GROUPS and rng.random() < 0.5:
        schema.setdefault("type", "array")
    return schema


def _add(rng: random.Random, schema: dict[str, Any], group: str, depth: int) -> None:
    add = _ADDERS.get(group)
    if add is not None:
        add(rng, schema, depth)
    elif group == "anyOf":
        schema["anyOf"] = [subschema(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    elif group in {"allOf", "oneOf"}:
        schema[group] = [subschema(rng, depth - 1) for _ in range(rng.randint(1, 2 + (group == "oneOf")))]
    elif group == "$ref":
        schema["$ref"] = rng.choice(["#/$defs/x", "#x", "#/$defs/y", "#/$defs/r"])
    elif group == "additionalProperties" and rng.random() < 0.5:
        schema[group] = False
    else:
        assert group in _OF_A_SUBSCHEMA, group
        schema[group] = rng.random() < 0.3 if group.startswith("uneval") else subschema(rng, depth - 1)


_OF_A_SUBSCHEMA = {"additionalProperties", "not", "unevaluatedProperties", "unevaluatedItems"}


def _add_type(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    schema["type"] = rng.choice(TYPES) if rng.random() < 0.7 else rng.sample(TYPES, rng.randint(1, 3))


def _add_enum(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    schema["enum"] = [random_value(rng) for _ in range(rng.randint(1, 4))]


def _add_const(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    schema["const"] = random_value(rng)


def _add_length(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    add_bounds(rng, schema, "minLength", "maxLength")


def _add_pattern(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    schema["pattern"] = rng.choice(PATTERNS)


def _add_format(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    schema["format"] = rng.choice(FORMATS)


def _add_numeric_bounds(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    for keyword in rng.sample(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"], rng.randint(1, 2)):
        schema[keyword] = rng.choice(_BOUNDS)


def _add_multiple(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    schema["multipleOf"] = rng.choice(_DIVISORS)


def _add_properties(rng: random.Random, schema: dict[str, Any], depth: int) -> None:
    schema["properties"] = {key: subschema(rng, depth - 1) for key in rng.sample(KEYS, rng.randrange(4))}


def _add_required(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    schema["required"] = rng.sample(KEYS, rng.randint(0, 2))


def _add_pattern_properties(rng: random.Random, schema: dict[str, Any], depth: int) -> None:
    schema["patternProperties"] = {rng.choice(PATTERNS): subschema(rng, depth - 1) for _ in range(rng.randint(1, 2))}


def _add_property_names(rng: random.Random, schema: dict[str, Any], depth: int) -> None:
    names: Any = subschema(rng, min(depth - 1, 0))
    if rng.random() < 0.7:
        names = rng.choice([{"pattern": rng.choice(PATTERNS)}, {"enum": KEYS[:3]}, {"maxLength": 1}, {"const": "a"}])
    schema["propertyNames"] = names


def _add_counts(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    add_bounds(rng, schema, "minProperties", "maxProperties")


def _add_item_counts(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    add_bounds(rng, schema, "minItems", "maxItems")


def _add_dependent_required(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    schema["dependentRequired"] = {rng.choice(KEYS): rng.sample(KEYS, rng.randint(0, 2)) for _ in range(2)}


def _add_dependent_schemas(rng: random.Random, schema: dict[str, Any], depth: int) -> None:
    schema["dependentSchemas"] = {rng.choice(KEYS): subschema(rng, depth - 1)}


def _add_dependencies(rng: random.Random, schema: dict[str, Any], depth: int) -> None:
    schema["dependencies"] = {rng.choice(KEYS): subschema(rng, depth - 1), rng.choice(KEYS): [rng.choice(KEYS)]}


def _add_items(rng: random.Random, schema: dict[str, Any], depth: int) -> None:
    schema["items"] = subschema(rng, depth - 1)


def _add_prefix_items(rng: random.Random, schema: dict[str, Any], depth: int) -> None:
    schema["prefixItems"] = [subschema(rng, depth - 1) for _ in range(rng.randint(1, 2))]


def _add_contains(rng: random.Random, schema: dict[str, Any], depth: int) -> None:
    schema["contains"] = subschema(rng, depth - 1)
    add_bounds(rng, schema, "minContains", "maxContains")


def _add_unique_items(rng: random.Random, schema: dict[str, Any], _depth: int) -> None:
    schema["uniqueItems"] = rng.random() < 0.7


def _add_if(rng: random.Random, schema: dict[str, Any], depth: int) -> None:
    schema["if"] = subschema(rng, depth - 1)
    for keyword in rng.sample(["then", "else"], rng.randint(0, 2)):
        schema[keyword] = subschema(rng, depth - 1)


_ADDERS = {
    "type": _add_type, "enum": _add_enum, "const": _add_const, "length": _add_length, "pattern": _add_pattern,
    "format": _add_format, "bounds": _add_numeric_bounds, "multipleOf": _add_multiple, "properties": _add_properties,
    "required": _add_required, "patternProperties": _add_pattern_properties, "propertyNames": _add_property_names,
    "counts": _add_counts, "dependentRequired": _add_dependent_required, "dependentSchemas": _add_dependent_schemas,
    "dependencies": _add_dependencies, "items": _add_items, "prefixItems": _add_prefix_items,
    "contains": _add_contains, "itemCounts": _add_item_counts, "uniqueItems": _add_unique_items, "if": _add_if,
}  # fmt: skip
