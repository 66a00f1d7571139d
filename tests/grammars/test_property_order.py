"""Keys in every order: what `property_order: "any"` accepts, and that it keeps what schema order promises."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import all_keywords
import pytest
import schemas
from checks import accepts, check_against_judge, check_state, nearby_values, random_walk
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from vocabularies import merged_vocabulary, small_vocabulary
from written_out import compare_masks, orders

from specdec.grammars import (
    Grammar,
    GrammarCompiler,
    InvalidSchemaError,
    LimitExceededError,
    SchemaOptions,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
)
from specdec.grammars.any_order import AnyOrderRule
from specdec.grammars.judge import UnjudgeableError
from specdec.grammars.rules import FreeKeys, ObjectRule

ANY_ORDER = SchemaOptions(property_order="any")
_REFUSED = (InvalidSchemaError, LimitExceededError, UnsupportedSchemaError, UnjudgeableError)


def _compile(schema: Any) -> Grammar:
    return GrammarCompiler(small_vocabulary()).compile_json_schema(schema, ANY_ORDER)


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _check_walks(seed: int, schema: Any) -> None:
    vocabulary = small_vocabulary() if seed % 3 else merged_vocabulary()
    try:
        check_against_judge(
            vocabulary, GrammarCompiler(vocabulary), schema, random.Random(seed), num_checked=4, options=ANY_ORDER
        )
    except _REFUSED:
        return


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_walks_validate_and_instances_are_accepted(seed: int) -> None:
    _check_walks(seed, schemas.random_schema(random.Random(seed)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_walks_validate_and_instances_are_accepted_with_every_keyword(seed: int) -> None:
    _check_walks(seed, all_keywords.random_schema(random.Random(seed)))


@pytest.mark.slow
def test_walks_validate_and_instances_are_accepted_over_many_schemas() -> None:
    for seed in range(100):
        _check_walks(seed, schemas.random_schema(random.Random(seed)))
        _check_walks(seed, all_keywords.random_schema(random.Random(seed)))


def test_a_declared_key_that_has_occurred_is_no_fresh_key_of_a_class() -> None:
    compiler = GrammarCompiler(small_vocabulary())
    schema = {"properties": {"b": {}}, "not": {"dependentRequired": {'q"': ["ab"]}, "additionalProperties": False}}
    grammar = compiler.compile_json_schema(schema, ANY_ORDER)
    for text in (b'{"b":0,"b', b'{"b":0,"a":1,"b', b'{"b":0,"', b'{"a":1,"b'):
        state = grammar.advance_bytes(grammar.initial_state, text)
        assert state is not None
        check_state(compiler.vocabulary, compiler, grammar, state)


def _has_unique_items(schema: Any) -> bool:
    return '"uniqueItems": true' in json.dumps(schema)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_an_order_is_accepted_exactly_where_some_order_is_in_schema_order(seed: int) -> None:
    rng = random.Random(seed)
    vocabulary = small_vocabulary()
    schema = rng.choice([schemas.random_schema, all_keywords.random_schema])(rng)
    compiler = GrammarCompiler(vocabulary)
    try:
        ordered, free = compiler.compile_json_schema(schema), compiler.compile_json_schema(schema, ANY_ORDER)
    except (*_REFUSED, UnsatisfiableSchemaError):
        return
    walks = [json.loads(random_walk(vocabulary, compiler, free, rng, schema=schema)) for _ in range(2)]
    few = [value for value in walks if schemas.num_renderings(value) <= 200]
    for value in [*few, *nearby_values(rng, few, 8)]:
        texts = [_dumps(one) for one in orders(value)]
        accepted = [accepts(free, text) for text in texts]
        is_ordered = any(accepts(ordered, text) for text in texts)
        if _has_unique_items(schema):
            assert is_ordered == any(accepted), (schema, value)
        else:
            assert accepted == [is_ordered] * len(texts), (schema, value)


_KEYS = ["a", "ab", "b"]
_VALUES: list[Any] = [None, 0, "a"]
_OBJECTS = [
    dict(zip(keys, values, strict=True))
    for length in range(4)
    for keys in itertools.combinations(_KEYS, length)
    for values in itertools.product(_VALUES, repeat=length)
]


def _object_schema(rng: random.Random, depth: int = 1) -> dict[str, Any]:
    def keys() -> list[str]:
        return rng.sample(_KEYS, rng.randint(0, 2))

    def value() -> dict[str, Any]:
        return rng.choice([{"type": "null"}, {"type": ["null", "string"]}, {"const": 0}, {"not": {"const": 0}}, {}])

    parts: list[dict[str, Any]] = [
        {"properties": {key: value() for key in keys()}, "required": keys()},
        {"minProperties": rng.randint(0, 3)},
        {"maxProperties": rng.randint(0, 3)},
        {"dependentRequired": {rng.choice(_KEYS): keys()}},
        {"patternProperties": {rng.choice(["^a", "b$", "^b"]): value()}},
        {"not": {"patternProperties": {rng.choice(["^a", "b$", "^b"]): value()}}},
        {"not": {"additionalProperties": value()}},
        {"properties": {key: value() for key in keys()}, "unevaluatedProperties": value()},
        {"properties": {key: value() for key in keys()}, "additionalProperties": rng.choice([False, value()])},
    ]
    if depth:
        branches = [_object_schema(rng, 0) for _ in range(2)]
        parts += [{"oneOf": branches}, {"anyOf": branches}, {"if": branches[0], "then": branches[1]}]
    return {"allOf": rng.sample(parts, rng.randint(1, 3))}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_masks_of_objects_are_exactly_the_prefixes_of_every_order(seed: int) -> None:
    rng = random.Random(seed)
    bounds = {"type": "object", "propertyNames": {"enum": _KEYS}, "patternProperties": {"^[ab]": {"enum": _VALUES}}}
    schema = {**bounds, **_object_schema(rng)}
    validator = Draft202012Validator(schema)
    texts = {_dumps(one) for value in _OBJECTS if validator.is_valid(value) for one in orders(value)}
    try:
        compare_masks(schema, texts, small_vocabulary(), ANY_ORDER, rng)
    except LimitExceededError:
        # More witnesses in one place than are told apart.
        reject()


_WITNESSES = 2


@st.composite
def _rules(draw: st.DrawFn) -> ObjectRule:
    """Rules of up to four declared keys; who can make some claims can make fewer."""
    below = [(0,), (0, 1), (0, 2), (0, 1, 2, 3)]

    def choices(options: list[tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
        return tuple((claims, 0) for claims in draw(st.sampled_from(options)))

    num_keys = draw(st.integers(0, 4))
    required = tuple(draw(st.booleans()) for _ in range(num_keys))
    low = draw(st.integers(0, 4))
    return ObjectRule(
        keys=tuple(b'%d"' % index for index in range(num_keys)),
        choices=tuple(choices(below if is_required else [(), *below]) for is_required in required),
        required=required,
        free=tuple(FreeKeys(None, choices(below)) for _ in range(draw(st.integers(0, 1)))),
        min_properties=low,
        max_properties=draw(st.none() | st.integers(low, 5)),
        num_witnesses=_WITNESSES,
    )


def _can_finish(rule: ObjectRule, occurred: int, num_keys: int, pending: int, num_free: int = 0) -> bool:
    """By trying every continuation, with no more free keys than could matter."""
    is_enough = all(not is_required or occurred >> i & 1 for i, is_required in enumerate(rule.required))
    if is_enough and not pending and num_keys >= rule.min_properties:
        return rule.max_properties is None or num_keys <= rule.max_properties
    if rule.max_properties is not None and num_keys >= rule.max_properties:
        return False
    return any(
        _can_finish(rule, occurred | 1 << i, num_keys + 1, pending & ~claims, num_free)
        for i, choices in enumerate(rule.choices)
        if not occurred >> i & 1
        for claims, _ in choices
    ) or (
        num_free < 4 + _WITNESSES
        and any(
            _can_finish(rule, occurred, num_keys + 1, pending & ~claims, num_free + 1)
            for free in rule.free
            for claims, _ in free.choices
        )
    )


@settings(max_examples=60, deadline=None)
@given(rule=_rules())
def test_what_can_finish_is_what_some_continuation_finishes(rule: ObjectRule) -> None:
    any_order = AnyOrderRule(rule)
    for occurred in range(1 << len(rule.keys)):
        if any(occurred >> i & 1 and not choices for i, choices in enumerate(rule.choices)):
            continue
        num_declared = occurred.bit_count()
        for num_keys, pending in itertools.product(range(num_declared, num_declared + 2), range(1 << _WITNESSES)):
            expected = _can_finish(rule, occurred, num_keys, pending)
            assert any_order.can_finish(occurred, num_keys, pending) == expected, (occurred, num_keys, pending)


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        (
            {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]},
            ['{"b":1,"a":2}', '{"x":0,"b":1,"y":2,"a":3}', '{"a":0,"b":1}'],
            ['{"a":1,"x":2}', '{"a":1,"b":2,"a":3}', '{"x":1,"b":2,"x":3}'],
        ),
        # A key that one alternative declares and the other takes as any other.
        (
            {"type": "object", "anyOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 1}}}]},
            ['{"a":2,"b":1}', '{"b":2,"a":1}', '{"b":1,"x":0,"a":2}'],
            ['{"a":1,"a":1}', '{"b":1,"a":1,"b":1}', '{"b":2,"a":2}', '{"a":2,"b":1,"a":1}'],
        ),
        ({"enum": [{"a": 1, "b": {"a": 1, "b": 2}}]}, ['{"b":{"b":2,"a":1},"a":1}'], ['{"b":{"a":1},"a":1}']),
        (
            {"type": "array", "uniqueItems": True, "items": {"properties": {"a": {}, "b": {}}, "type": "object"}},
            ['[{"a":1,"b":2},{"a":2,"b":1}]'],
            ['[{"b":1,"a":2}]', '[{"a":1,"b":2},{"b":2,"a":1}]'],
        ),
    ],
)
def test_texts(schema: Any, accepted: list[str], refused: list[str]) -> None:
    grammar = _compile(schema)
    for text in accepted:
        assert accepts(grammar, text.encode()), text
    for text in refused:
        assert not accepts(grammar, text.encode()), text


_SHOWS_B = {"type": "object", "not": {"patternProperties": {"^b": {"type": "string"}}}}
_PATTERNS = [
    {"type": "object", "required": ["x"], "properties": {"x": {}}, "patternProperties": {"^a": {}}},
    {"type": "object", "patternProperties": {"^b": {}}},
]


@pytest.mark.parametrize("order", ["schema", "any"])
@pytest.mark.parametrize(
    ("schema", "open_text", "dead_text"),
    [
        ({**_SHOWS_B, "maxProperties": 1}, '{"b', '{"a'),
        ({**_SHOWS_B, "maxProperties": 2, "properties": {"x": {}}, "required": ["x"]}, '{"x":1,"b', '{"x":1,"a'),
        ({**_SHOWS_B, "maxProperties": 2, "properties": {"x": {}}, "required": ["x"]}, '{"x":1,"b":1', '{"x":1,"b":""'),
        ({"anyOf": [{**one, "additionalProperties": False} for one in _PATTERNS], "maxProperties": 1}, '{"b', '{"a'),
    ],
)  # fmt: skip
def test_a_key_of_a_class_that_cannot_come_is_not_begun(
    schema: Any, open_text: str, dead_text: str, order: Any
) -> None:
    compiler = GrammarCompiler(small_vocabulary())
    grammar = compiler.compile_json_schema(schema, SchemaOptions(property_order=order))
    assert grammar.advance_bytes(grammar.initial_state, open_text.encode()) is not None
    assert grammar.advance_bytes(grammar.initial_state, dead_text.encode()) is None


def test_what_keeps_an_order_is_in_the_report() -> None:
    items = {"properties": {"a": {}, "b": {}}, "type": "object"}
    report = _compile({"properties": {"x": items, "y": {"uniqueItems": True, "items": items}}}).report
    ordered = [one.pointer for one in report.restrictions if "order" in one.reason]
    assert ordered == ["/properties/y"]
