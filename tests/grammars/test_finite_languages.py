"""Masks against an oracle that knows no automaton: all instances of a finite language, written out."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from vocabularies import merged_vocabulary, small_vocabulary
from written_out import compare_masks, orders

from specdec.grammars import SchemaOptions, Vocabulary
from specdec.grammars.options import DEFAULT_OPTIONS

SCALARS = [None, True, False, 0, 12, -1, 0.5, "", "a", "ab", "é", 'q"', "\n"]


def _instances() -> list[Any]:
    """Everything that the schemas below can allow, and more; keys in the one order that they declare."""
    values = [*SCALARS]
    values += [list(items) for length in range(3) for items in itertools.product(SCALARS, repeat=length)]
    members = [*SCALARS, [], [0], ["a"], [True, None], {}, {"a": 0}]
    for keys in ((), ("a",), ("ab",), ("a", "ab")):
        values += [dict(zip(keys, items, strict=True)) for items in itertools.product(members, repeat=len(keys))]
    return values


INSTANCES = _instances()


def _finite_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["enum", "enum", "const", "types", "string", "numbers", "pattern"]
    deep_kinds = ["array", "object", "anyOf", "oneOf", "not", "if", "allOf", "contains", "tuple", "keys"]
    kind = rng.choice(kinds + deep_kinds * (2 if depth else 0))
    if kind == "enum":
        return {"enum": rng.sample(SCALARS, rng.randint(1, 5))}
    if kind == "const":
        return {"const": rng.choice([*SCALARS, [], ["a"], {}, {"a": 0}])}
    if kind == "types":
        return {"type": rng.sample(["null", "boolean"], rng.randint(1, 2))}
    if kind == "string":
        return {"enum": SCALARS, "type": ["string", "integer"], "minLength": rng.randint(0, 1), "maxLength": 1}
    if kind == "array":
        low = rng.randint(0, 2)
        items = {"enum": rng.sample(SCALARS, 3)} if rng.random() < 0.7 else {"type": "boolean"}
        return {"type": "array", "items": items, "minItems": low, "maxItems": rng.randint(low, 2)}
    if kind == "object":
        properties = {key: _member(rng) for key in ("a", "ab")}
        required = rng.sample(["a", "ab"], rng.randint(0, 2))
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "numbers":
        bound = {rng.choice(["minimum", "exclusiveMaximum", "multipleOf"]): rng.choice([0.5, 1, 4])}
        return {"enum": SCALARS, "type": ["number", "null"], **bound}
    if kind == "pattern":
        return {"enum": SCALARS, "type": ["string"], "pattern": rng.choice(["a", "^[ab]", "^[^a]", "b|é", "^(?!a)"])}
    if kind == "tuple":
        prefix = [{"enum": rng.sample(SCALARS, 3)}, {"enum": SCALARS, "type": ["string", "boolean"], "maxLength": 1}]
        return {"type": "array", "prefixItems": prefix, "minItems": rng.randint(0, 2), rng.choice(_ENDS): False}
    if kind == "contains":
        bounds = {"minContains": rng.randint(0, 2), "maxContains": rng.randint(1, 2)}
        items = {"enum": rng.sample(SCALARS, 4)}
        return {"type": "array", "items": items, "maxItems": 2, "contains": {"type": "string"}, **bounds}
    if kind == "keys":
        return _object_of_keys(rng)
    parts = [_finite_schema(rng, depth - 1) for _ in range(rng.randint(2, 3))]
    if kind == "not":
        return {"allOf": [parts[0]], "not": parts[1]}
    if kind == "if":
        return {"if": parts[0], "then": parts[1], "else": parts[-1], "anyOf": parts}
    return {kind: parts}


_ENDS = ["items", "unevaluatedItems"]


def _object_of_keys(rng: random.Random) -> dict[str, Any]:
    """Objects with at most the keys a and ab, in that order, which other keywords than `properties` say."""
    keys = {"a": _member(rng), "ab": _member(rng)}
    # Only the first: a key that is required but declared further in would come before those that are declared.
    required = rng.sample(["a"], rng.randint(0, 1))
    return {
        "type": "object",
        "required": required,
        rng.choice(["maxProperties", "minProperties"]): 1,
        **rng.choice(
            [
                {"properties": keys, "unevaluatedProperties": False},
                {"allOf": [{"properties": keys}], "unevaluatedProperties": False},
                {"properties": keys, "propertyNames": {"enum": ["a", "ab"]}},
                {
                    "properties": keys,
                    "patternProperties": {"^a": {"type": ["null", "array"]}},
                    "propertyNames": {"enum": ["a", "ab", "b"], "pattern": "^a"},
                },
                {"properties": keys, "dependentRequired": {"ab": ["a"]}, "additionalProperties": False},
                {"properties": keys, "dependentSchemas": {"a": {"required": ["ab"]}}, "additionalProperties": False},
            ]
        ),
    }


def _member(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        [
            {"enum": rng.sample([*SCALARS, [], [0], ["a"], {}, {"a": 0}], 4)},
            {"type": ["null", "boolean"]},
            {"const": {"a": 0}},
            {"anyOf": [{"const": ["a"]}, {"enum": ["a", "ab", 12]}]},
        ]
    )


def _texts(schema: dict[str, Any], options: SchemaOptions) -> set[bytes]:
    validator = Draft202012Validator(schema)
    return {
        json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        for value in INSTANCES
        if validator.is_valid(value)
        for ordered in (orders(value) if options.property_order == "any" else [value])
    }


def _compare(seed: int, vocabulary: Vocabulary, options: SchemaOptions = DEFAULT_OPTIONS) -> None:
    rng = random.Random(seed)
    schema = _finite_schema(rng, 2)
    compare_masks(schema, _texts(schema, options), vocabulary, options, rng)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_masks_are_exactly_the_prefixes_of_the_written_out_language(seed: int) -> None:
    _compare(seed, small_vocabulary())


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_masks_of_merged_tokens_are_exactly_the_prefixes(seed: int) -> None:
    _compare(seed, merged_vocabulary())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_masks_in_any_order_are_exactly_the_prefixes_of_every_order(seed: int) -> None:
    _compare(seed, small_vocabulary(), SchemaOptions(property_order="any"))
