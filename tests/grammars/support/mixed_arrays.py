"""Random schemas in which arrays with and without unique items meet in one place, under different alternatives."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

_SCALARS: list[Any] = [
    {"enum": ["a", "ab", "b", 1, 12]},
    {"enum": [1, 2, 12]},
    {"type": "integer", "minimum": 0, "maximum": 12},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number"},
    {"type": "string", "maxLength": 1},
    {"type": "string"},
    {"type": ["boolean", "null"]},
    {},
]
_OTHERS: list[Any] = [
    {"type": "object", "minProperties": 2},
    {"type": "object", "maxProperties": 1},
    {"type": "object", "minProperties": 1, "patternProperties": {"^a": {"type": "integer"}}},
    {"type": "array", "uniqueItems": True, "items": {"type": "integer"}, "minItems": 1},
    {"type": "array", "items": {"type": "object", "minProperties": 1}},
    {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]},
    {"type": "object", "required": ["a"]},
    {"type": "array", "items": {"type": "string"}, "minItems": 1},
    {"type": ["object", "integer"], "minProperties": 1},
]


def _unique_array(rng: random.Random) -> Any:
    array: dict[str, Any] = {"type": "array", "uniqueItems": True, "items": rng.choice(_SCALARS)}
    array["minItems"] = rng.choice([0, 0, 1, 2, 3, 5])
    if rng.random() < 0.2:
        array["prefixItems"] = [rng.choice(_SCALARS) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.15:
        array["contains"] = rng.choice([{"type": "string"}, {"type": "integer"}, {"const": "a"}])
        array["minContains"] = rng.randint(0, 2)
        if rng.random() < 0.3:
            array["maxContains"] = 2
    return array


def _other_array(rng: random.Random) -> Any:
    array: dict[str, Any] = {"type": "array", "items": rng.choice(_OTHERS + _SCALARS[:3])}
    array["minItems"] = rng.choice([0, 1, 2, 3])
    if rng.random() < 0.3:
        array["prefixItems"] = [rng.choice(_OTHERS + _SCALARS) for _ in range(rng.randint(1, 2))]
        if rng.random() < 0.4:
            del array["items"]
            array["unevaluatedItems"] = rng.choice([*_OTHERS, False])
            array["minItems"] = min(array["minItems"], len(array["prefixItems"]))
    if rng.random() < 0.2:
        array["contains"] = rng.choice(_OTHERS + _SCALARS)
        array["minContains"] = rng.randint(0, 2)
    if rng.random() < 0.2:
        array["not"] = rng.choice([{"maxItems": 1}, {"items": {"type": "integer"}}, {"contains": {"const": 1}}])
    return array


def _either(rng: random.Random) -> Any:
    if rng.random() < 0.2:
        return {"anyOf": [_unique_array(rng), _other_array(rng), rng.choice(_SCALARS)]}
    return rng.choice([_unique_array, _other_array])(rng)


def _in_object(rng: random.Random, value: Any) -> Any:
    """The value under a key, perhaps after a key that tells the object apart, perhaps before another."""
    properties: dict[str, Any] = {}
    required = []
    if rng.random() < 0.4:
        properties["kind"] = {"const": rng.choice(["u", "v"])}
        required += ["kind"] * (rng.random() < 0.7)
    properties["x"] = value
    required += ["x"] * (rng.random() < 0.8)
    if rng.random() < 0.3:
        properties["y"] = rng.choice([{"const": "abcab"}, {"type": "integer"}, _either(rng)])
        required += ["y"] * (rng.random() < 0.6)
    if rng.random() < 0.2:
        properties = dict(reversed(properties.items()))
    schema = {"type": "object", "properties": properties, "required": required}
    if rng.random() < 0.5:
        schema["additionalProperties"] = rng.choice([False, {"type": "integer"}, _either(rng)])
    if rng.random() < 0.15:
        schema["patternProperties"] = {"^x": _either(rng)}
    return schema


def _in_array(rng: random.Random, value: Any) -> Any:
    if rng.random() < 0.5:
        return {"type": "array", "items": value, "minItems": rng.randint(0, 2)}
    return {"type": "array", "prefixItems": [rng.choice([value, {"enum": ["u", "v"]}]), value], "minItems": 2}


def _within(rng: random.Random, value: Any, wrappers: list[Callable[[random.Random, Any], Any]]) -> Any:
    for wrap in wrappers:
        value = wrap(rng, value)
    return value


def random_schema(rng: random.Random) -> Any:
    """Two or three alternatives of objects or arrays of one form, in which arrays of either kind stand."""
    wrappers = rng.choice(
        [[_in_object], [_in_object], [_in_array], [_in_object, _in_object], [_in_object, _in_array], []]
    )
    branches = [
        _within(rng, _unique_array(rng), wrappers),
        _within(rng, _other_array(rng), wrappers),
        *([_within(rng, _either(rng), wrappers)] * (rng.random() < 0.3)),
    ]
    rng.shuffle(branches)
    match rng.choice(["anyOf", "anyOf", "anyOf", "oneOf", "if", "allOf", "ref"]):
        case "oneOf":
            return {"oneOf": branches}
        case "if":
            condition = {"properties": {"kind": {"const": "u"}}, "required": ["kind"]}
            return {"if": condition, "then": branches[0], "else": branches[1]}
        case "allOf":
            return {"allOf": [{"anyOf": branches}, {"not": {"properties": {"y": {"const": 1}}, "required": ["y"]}}]}
        case "ref":
            nested = _in_object(rng, {"anyOf": [{"$ref": "#/$defs/r"}, {"type": "integer"}]})
            return {"$ref": "#/$defs/r", "$defs": {"r": {"anyOf": [*branches, nested]}}}
    return {"anyOf": branches}
