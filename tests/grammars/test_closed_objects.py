"""`additional_properties: "closed"`: objects that declare keys have only keys that the schema describes."""

from __future__ import annotations

import json
import random
from typing import Any

import all_keywords
import pytest
import schemas
from checks import accepts, random_walk
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import small_vocabulary

from specdec.grammars import (
    Grammar,
    GrammarCompiler,
    InvalidSchemaError,
    LimitExceededError,
    SchemaOptions,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
)
from specdec.grammars.judge import Judge, UnjudgeableError

CLOSED = SchemaOptions(additional_properties="closed")
_REFUSED = (InvalidSchemaError, LimitExceededError, UnsupportedSchemaError, UnjudgeableError, UnsatisfiableSchemaError)


def _compile(schema: Any, options: SchemaOptions = CLOSED) -> Grammar:
    return GrammarCompiler(small_vocabulary()).compile_json_schema(schema, options)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), order=st.sampled_from(["schema", "any"]))
def test_closed_walks_validate_and_are_texts_of_the_open_schema(seed: int, order: Any) -> None:
    rng = random.Random(seed)
    schema = rng.choice([schemas.random_schema, all_keywords.random_schema])(rng)
    vocabulary = small_vocabulary()
    compiler = GrammarCompiler(vocabulary)
    try:
        judge = Judge(schema)
        closed = compiler.compile_json_schema(
            schema, SchemaOptions(additional_properties="closed", property_order=order)
        )
        opened = compiler.compile_json_schema(schema, SchemaOptions(property_order=order))
    except _REFUSED:
        return
    for _ in range(4):
        text = random_walk(vocabulary, compiler, closed, rng, schema=schema, num_checked=4)
        assert judge.violation(text.decode()) is None, (schema, text)
        assert accepts(opened, text), (schema, text)


def _nested(rng: random.Random, depth: int) -> dict[str, Any]:
    """An object schema that is open, in a form that leaves no doubt of what it describes."""
    keys = rng.sample(schemas.KEYS, rng.randint(1, 3))
    members = [{"type": "null"}, {"type": "boolean"}, {"const": "a"}]
    properties = {key: _nested(rng, depth - 1) if depth and rng.random() < 0.5 else rng.choice(members) for key in keys}
    return {"type": "object", "properties": properties, "required": rng.sample(keys, rng.randint(0, len(keys)))}


def _has_undeclared_key(schema: Any, value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    declared = schema["properties"]
    return any(key not in declared or _has_undeclared_key(declared[key], child) for key, child in value.items())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_walks_have_no_key_that_is_not_declared(seed: int) -> None:
    rng = random.Random(seed)
    schema = _nested(rng, 2)
    vocabulary = small_vocabulary()
    compiler = GrammarCompiler(vocabulary)
    closed = compiler.compile_json_schema(schema, CLOSED)
    for _ in range(4):
        text = random_walk(vocabulary, compiler, closed, rng, schema=schema, num_checked=3)
        assert not _has_undeclared_key(schema, json.loads(text)), (schema, text)


_PROPERTIES = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        (_PROPERTIES, ["{}", '{"a":1}'], ['{"b":1}', '{"a":1,"b":1}']),
        ({**_PROPERTIES, "additionalProperties": True}, ['{"a":1}'], ['{"b":1}']),
        ({**_PROPERTIES, "additionalProperties": {"type": "null"}}, ['{"b":null}'], ['{"b":1}']),
        ({**_PROPERTIES, "unevaluatedProperties": {"type": "null"}}, ['{"b":null}'], ['{"b":1}']),
        ({**_PROPERTIES, "patternProperties": {"^x": {"type": "null"}}}, ['{"x":null}'], ['{"x":1}', '{"b":null}']),
        ({**_PROPERTIES, "required": ["b"]}, ['{"a":1,"b":[]}'], ['{"a":1}', '{"b":1,"x":1}']),
        ({"type": "object"}, ['{"b":1}'], []),
        ({"type": "object", "required": ["b"]}, ['{"b":1,"c":2}'], []),
        ({"properties": {"a": {"type": "object"}}, "type": "object"}, ['{"a":{"x":{"y":1}}}'], ['{"b":{}}']),
        # The negation is of the schema as it stands, where {"b":1} is an instance of the inner one.
        ({"type": "object", "not": {"type": "object", "properties": {"a": {"type": "integer"}}}},
         ['{"a":null}'], ['{"b":1}', '{"a":1}']),
        ({**_PROPERTIES, "allOf": [{"properties": {"b": {}}}]}, ['{"a":1,"b":2}'], ['{"c":1}']),
        ({"anyOf": [_PROPERTIES, {"type": "object", "properties": {"b": {}}}]},
         ['{"a":1}', '{"b":1}'], ['{"a":1,"b":1}', '{"c":1}']),
    ],
)  # fmt: skip
def test_texts(schema: Any, accepted: list[str], refused: list[str]) -> None:
    grammar = _compile(schema)
    for text in accepted:
        assert accepts(grammar, text.encode()), text
    for text in refused:
        assert not accepts(grammar, text.encode()), text


@pytest.mark.parametrize(
    "schema",
    [
        {**_PROPERTIES, "minProperties": 2},
        {"type": "array", "minItems": 1, "items": {**_PROPERTIES, "minProperties": 2}},
        {**_PROPERTIES, "not": {"properties": {"a": {}}, "additionalProperties": False}},
    ],
)
def test_a_schema_that_needs_other_keys_is_refused_by_the_options_name(schema: Any) -> None:
    _compile(schema, SchemaOptions())
    with pytest.raises(UnsatisfiableSchemaError, match="additional_properties"):
        _compile(schema)


def test_an_unsatisfiable_schema_is_not_blamed_on_the_option() -> None:
    with pytest.raises(UnsatisfiableSchemaError) as caught:
        _compile({**_PROPERTIES, "required": ["a"], "not": {"required": ["a"]}})
    assert "additional_properties" not in caught.value.message


def test_what_has_lost_its_keys_is_no_alternative_any_more() -> None:
    grammar = _compile({"anyOf": [{**_PROPERTIES, "minProperties": 2}, {"type": "null"}]})
    assert accepts(grammar, b"null")
    assert grammar.advance_bytes(grammar.initial_state, b"{") is None


def test_the_report_names_the_option() -> None:
    def is_named(options: SchemaOptions) -> bool:
        return any("additional_properties" in one.reason for one in _compile(_PROPERTIES, options).report.restrictions)

    assert is_named(CLOSED)
    assert not is_named(SchemaOptions())
