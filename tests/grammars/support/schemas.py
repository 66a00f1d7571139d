"""Random schemas of a dozen plain keywords, and random instances that are often close to valid."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

KEYS = ["a", "b", "ab", "", "é", 'q"']
STRINGS = ["", "a", "ab", "abc", "é", "😀", 'q"', "\n", "b\u0001"]
NUMBERS = [0, 1, -1, 12, 1.0, 0.5, -1.5, 1e22, 10**17]
TYPES = ["null", "boolean", "integer", "number", "string", "object", "array"]


def random_value(rng: random.Random, depth: int = 2) -> Any:
    kind = rng.randrange(7 if depth else 5)
    if kind == 5:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    if kind == 6:
        return {key: random_value(rng, depth - 1) for key in rng.sample(KEYS, rng.randrange(3))}
    return [None, rng.random() < 0.5, rng.choice(NUMBERS), rng.choice(STRINGS), rng.choice(STRINGS)][kind]


def random_schema(rng: random.Random) -> Any:
    """A root schema; its `$defs` x and y may refer to each other, to themselves and to the root."""
    schema = _subschema(rng, 3)
    if not isinstance(schema, dict):
        return schema
    return {**schema, "$defs": {"x": _subschema(rng, 2), "y": _subschema(rng, 1)}}


def _subschema(rng: random.Random, depth: int) -> Any:
    if rng.random() < 0.06:
        return rng.random() < 0.7
    groups = ["type", "enum", "const", "string"]
    weights = [3, 1, 1, 2]
    if depth >= 0:
        groups += ["object", "array"]
        weights += [3, 2]
    if depth > 0:
        groups += ["anyOf", "$ref"]
        weights += [2, 1]
    schema: dict[str, Any] = {}
    for group in rng.choices(groups, weights, k=rng.choice([1, 1, 1, 2, 2, 3])):
        _add(rng, schema, group, depth)
    return schema


def _add(rng: random.Random, schema: dict[str, Any], group: str, depth: int) -> None:
    if group == "type":
        schema["type"] = rng.choice(TYPES) if rng.random() < 0.7 else rng.sample(TYPES, rng.randint(1, 3))
    elif group == "enum":
        schema["enum"] = [random_value(rng) for _ in range(rng.randint(1, 4))]
    elif group == "const":
        schema["const"] = random_value(rng)
    elif group == "string":
        schema.setdefault("type", "string")
        add_bounds(rng, schema, "minLength", "maxLength")
    elif group == "array":
        if rng.random() < 0.7:
            schema["type"] = "array"
        if rng.random() < 0.8:
            schema["items"] = _subschema(rng, depth - 1)
        add_bounds(rng, schema, "minItems", "maxItems")
    elif group == "object":
        if rng.random() < 0.7:
            schema["type"] = "object"
        schema["properties"] = {key: _subschema(rng, depth - 1) for key in rng.sample(KEYS, rng.randrange(4))}
        if rng.random() < 0.6:
            schema["required"] = rng.sample(KEYS, rng.randint(0, 2))
        if rng.random() < 0.6:
            schema["additionalProperties"] = rng.random() < 0.3 or (
                _subschema(rng, -1) if rng.random() < 0.5 else False
            )
    elif group == "anyOf":
        schema["anyOf"] = [_subschema(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    else:
        schema["$ref"] = rng.choice(["#/$defs/x", "#/$defs/y", "#"])


def add_bounds(rng: random.Random, schema: dict[str, Any], low: str, high: str) -> None:
    """One of the two bounds, both or neither, not always in order."""
    if rng.random() < 0.5:
        schema[low] = rng.randint(0, 2)
    if rng.random() < 0.5:
        schema[high] = rng.randint(0, 3)


def mutated(rng: random.Random, value: Any, new_value: Callable[[random.Random, int], Any] = random_value) -> Any:
    """The value with one part replaced, dropped or added."""
    value = copy.deepcopy(value)
    spots = [value]
    for spot in spots:
        spots += [
            child
            for child in (spot.values() if isinstance(spot, dict) else spot if isinstance(spot, list) else ())
            if isinstance(child, (dict, list))
        ]
    spot = rng.choice(spots)
    if isinstance(spot, list):
        if spot and rng.random() < 0.6:
            index = rng.randrange(len(spot))
            spot[index : index + rng.randint(0, 1)] = [new_value(rng, 1)] if rng.random() < 0.5 else []
        else:
            spot.append(new_value(rng, 1))
    elif isinstance(spot, dict):
        key = rng.choice([*KEYS, *spot])
        if key in spot and rng.random() < 0.5:
            del spot[key]
        else:
            spot[key] = new_value(rng, 1)
    else:
        return new_value(rng, 1)
    return value


def num_renderings(value: Any) -> int:
    """How many texts `renderings` yields."""
    if isinstance(value, dict):
        return math.factorial(len(value)) * math.prod(map(num_renderings, value.values()))
    if isinstance(value, list):
        return math.prod(map(num_renderings, value))
    return 2 if isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value) else 1


def renderings(value: Any) -> Iterator[bytes]:
    """The compact texts of a value over all key orders, whole numbers with and without a fraction."""
    return (text.encode() for text in _render(value))


def _render(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for order in itertools.permutations(value):
            members = [
                [json.dumps(key, ensure_ascii=False) + ":" + text for text in _render(value[key])] for key in order
            ]
            yield from ("{" + ",".join(parts) + "}" for parts in itertools.product(*members))
    elif isinstance(value, list):
        yield from ("[" + ",".join(parts) + "]" for parts in itertools.product(*map(list, map(_render, value))))
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value):
        yield str(int(value))
        yield json.dumps(float(value))
    else:
        yield json.dumps(value, ensure_ascii=False)
