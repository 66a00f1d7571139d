"""Arrays of which some alternatives forbid repetition: each is generated as far as it goes by itself."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any, Literal

import pytest
from checks import accepts, check_against_judge, check_state
from vocabularies import small_vocabulary

from specdec.grammars import GrammarCompiler, GrammarState, SchemaOptions, UnsupportedSchemaError
from specdec.grammars.judge import Judge

_ITEMS = [{}, {"type": "integer"}, {"enum": [1, 2]}, {"enum": ["a", "ab", "b"]}, {"type": "string", "maxLength": 1}]


def _text(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def test_both_alternatives_are_kept() -> None:
    grammar = GrammarCompiler(small_vocabulary()).compile_json_schema(
        {"type": "array", "items": {"enum": [1, 2, 3]}, "anyOf": [{"uniqueItems": True}, {"maxItems": 2}]}
    )
    for length in range(5):
        for value in itertools.product([1, 2, 3], repeat=length):
            is_instance = len(set(value)) == len(value) or len(value) <= 2
            assert accepts(grammar, _text(value)) is is_instance, value


def test_a_repetition_that_another_alternative_takes_can_be_written_byte_by_byte() -> None:
    grammar = GrammarCompiler(small_vocabulary()).compile_json_schema(
        {
            "type": "array",
            "anyOf": [
                {"uniqueItems": True, "items": {"enum": ["a", "ab", {"x": 1}]}},
                {"items": {"enum": ["a", {"x": 1}]}, "maxItems": 2},
            ],
        }
    )
    for value in (["a", "a"], [{"x": 1}, {"x": 1}]):
        state: GrammarState | None = grammar.initial_state
        for byte in _text(value):
            assert state is not None, value
            state = grammar.advance_bytes(state, bytes((byte,)))
        assert state is not None, value
        assert grammar.is_accepting(state), value


def test_an_item_of_the_other_alternative_ends_the_unique_one() -> None:
    schema = {
        "type": "array",
        "anyOf": [
            {"uniqueItems": True, "items": {"type": "integer"}},
            {"items": {"type": ["string", "integer"]}, "maxItems": 2},
        ],
    }
    grammar = GrammarCompiler(small_vocabulary()).compile_json_schema(schema)
    for value in ([1, 2, 3], ["a", "a"], [1, "a"], [1, 1], []):
        assert accepts(grammar, _text(value)), value
    for value in ([1, 2, 1], ["a", "a", "a"], [1, "a", 2], [1, 1, 2]):
        assert not accepts(grammar, _text(value)), value


def test_alternatives_that_cannot_be_remembered_are_kept_alone() -> None:
    schema = {
        "type": "array",
        "anyOf": [
            {"uniqueItems": True, "items": {"type": "integer"}},
            {"items": {"type": "object", "minProperties": 2}, "maxItems": 1},
        ],
    }
    grammar = GrammarCompiler(small_vocabulary()).compile_json_schema(schema)
    assert accepts(grammar, b'[{"a":1,"b":2}]')
    assert not accepts(grammar, b"[1,1]")
    assert any("only that alternative" in one.reason for one in grammar.report.restrictions)


def test_a_budget_plans_no_alternative_that_is_not_kept() -> None:
    schema = {
        "type": "array",
        "anyOf": [
            {"uniqueItems": True, "items": {"type": "integer"}},
            {"items": {"type": "object", "maxProperties": 1}, "minItems": 1},
        ],
    }
    grammar = GrammarCompiler(small_vocabulary()).compile_json_schema(schema)
    plan = grammar.initial_plan
    assert plan is not None, "short answers are enough"
    assert plan.data == b"[{}]"
    assert accepts(grammar, plan.data)


_UNIQUE = {"type": "array", "uniqueItems": True, "items": {"type": "integer"}}
_NOT_REMEMBERED = {"type": "array", "items": {"type": "object", "minProperties": 2}, "minItems": 2}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def test_a_budget_plans_no_alternative_that_is_not_kept_beside_those_of_another_object() -> None:
    schema = {"anyOf": [_object(["x"], x=_UNIQUE), _object(["x", "y"], x=_NOT_REMEMBERED, y={"const": "abc"})]}
    grammar = GrammarCompiler(small_vocabulary()).compile_json_schema(schema)
    plan = grammar.initial_plan
    assert plan is not None, "short answers are enough"
    assert accepts(grammar, plan.data)
    assert Judge(schema).violation(plan.data.decode()) is None
    assert accepts(grammar, b'{"x":[{"a":1,"b":2},{"a":1,"b":2}],"y":"abc"}')
    assert not accepts(grammar, b'{"x":[]}')


def test_alternatives_that_a_required_key_has_told_apart_are_all_kept() -> None:
    schema = {
        "oneOf": [
            _object(["kind", "x"], kind={"const": "u"}, x=_UNIQUE),
            _object(["kind", "x"], kind={"const": "v"}, x=_NOT_REMEMBERED),
        ]
    }
    grammar = GrammarCompiler(small_vocabulary()).compile_json_schema(schema)
    assert accepts(grammar, b'{"kind":"u","x":[1,2]}')
    assert not accepts(grammar, b'{"kind":"u","x":[1,1]}')
    assert accepts(grammar, b'{"kind":"v","x":[{"a":1,"b":2},{"a":1,"b":2}]}')


@pytest.mark.parametrize(
    "properties", [{"x": 1, "kind": 1}, {"kind": 0, "x": 1}], ids=["told apart too late", "told apart perhaps"]
)
def test_alternatives_that_may_meet_are_not_both_kept(properties: dict[str, int]) -> None:
    required = [name for name, is_required in properties.items() if is_required]

    def branch(kind: str, array: Any) -> dict[str, Any]:
        return _object(required, **{name: {"const": kind} if name == "kind" else array for name in properties})

    schema = {"anyOf": [branch("u", _UNIQUE), branch("v", _NOT_REMEMBERED)]}
    grammar = GrammarCompiler(small_vocabulary()).compile_json_schema(schema)
    plan = grammar.initial_plan
    assert plan is not None, "short answers are enough"
    assert b'"x":[{' in plan.data
    assert accepts(grammar, plan.data)


def test_nothing_is_left_where_each_alternative_needs_unique_items_beside_the_other() -> None:
    schema = {
        "anyOf": [
            _object(["x", "y"], x=_UNIQUE, y=_NOT_REMEMBERED),
            _object(["x", "y"], x=_NOT_REMEMBERED, y=_UNIQUE),
        ]
    }
    with pytest.raises(UnsupportedSchemaError, match="uniqueItems") as error:
        GrammarCompiler(small_vocabulary()).compile_json_schema(schema)
    assert error.value.pointer.startswith("/anyOf/")


def test_items_unlike_those_before_are_other_numbers_in_every_plan() -> None:
    schema = {
        "type": "array",
        "uniqueItems": True,
        "items": {"type": "number", "minimum": 0, "maximum": 1},
        "minItems": 5,
    }
    grammar = GrammarCompiler(small_vocabulary()).compile_json_schema(schema)
    plan = grammar.initial_plan
    assert plan is not None, "short answers are enough"
    assert accepts(grammar, plan.data), plan.data


def test_closed_walks_validate_and_instances_are_accepted() -> None:
    vocabulary = small_vocabulary()
    for seed in range(60):
        rng = random.Random(seed)
        branches = []
        for is_unique in (True, False):
            branch: dict[str, Any] = {"items": rng.choice(_ITEMS)}
            if is_unique:
                branch["uniqueItems"] = True
            if rng.random() < 0.6:
                branch["maxItems"] = rng.randint(1, 3)
            if rng.random() < 0.3:
                branch["minItems"] = rng.randint(1, branch.get("maxItems", 2))
                branch["minItems"] = min(branch["minItems"], 2)
            branches.append(branch)
        rng.shuffle(branches)
        schema = {"type": "array", "anyOf": branches}
        check_against_judge(vocabulary, GrammarCompiler(vocabulary), schema, rng, num_walks=3, num_checked=12)


@pytest.mark.parametrize("seed", range(6))
def test_every_short_array_is_accepted_where_it_is_an_instance(seed: int) -> None:
    rng = random.Random(seed)
    schema = {
        "type": "array",
        "anyOf": [
            {"uniqueItems": True, "items": {"enum": [1, 12, "a"]}, "maxItems": rng.choice([2, 3])},
            {"items": {"enum": rng.sample([1, 12, "a", "ab"], 2)}, "minItems": 1},
            {"items": {"enum": [1, 12]}, "maxItems": 2},
        ],
    }
    grammar = GrammarCompiler(small_vocabulary()).compile_json_schema(schema)
    judge = Judge(schema)
    for length in range(5):
        for value in itertools.product([1, 12, "a", "ab"], repeat=length):
            text = _text(value)
            assert accepts(grammar, text) is (judge.violation(text.decode()) is None), value


@pytest.mark.parametrize("seed", range(12))
def test_unique_items_by_position_are_exactly_the_instances_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    values = [1, 2, 12, "a", "ab"]
    schema: dict[str, Any] = {
        "type": "array",
        "uniqueItems": True,
        "prefixItems": [{"enum": rng.sample(values, rng.randint(2, 4))} for _ in range(rng.randint(1, 2))],
        "items": {"enum": rng.sample(values, rng.randint(2, 4))} if rng.random() < 0.7 else False,
    }
    schema["minItems"] = rng.randint(0, 2) if schema["items"] else rng.randint(0, len(schema["prefixItems"]))
    vocabulary = small_vocabulary()
    grammar = GrammarCompiler(vocabulary).compile_json_schema(schema)
    judge = Judge(schema)
    for length in range(5):
        for value in itertools.product(values, repeat=length):
            text = _text(value)
            assert accepts(grammar, text) is (judge.violation(text.decode()) is None), value
    check_against_judge(vocabulary, GrammarCompiler(vocabulary), schema, rng, num_walks=4, num_checked=20)


def test_unique_items_with_fewer_values_than_must_differ_are_refused() -> None:
    schema = {"uniqueItems": True, "minItems": 2, "prefixItems": [{"const": 1}, {"enum": [1, 2]}], "type": "array"}
    with pytest.raises(UnsupportedSchemaError, match="uniqueItems"):
        GrammarCompiler(small_vocabulary()).compile_json_schema(schema)


@pytest.mark.parametrize("whitespace", ["compact", "pretty", "flexible"])
@pytest.mark.parametrize("num_items", [1, 2, 3])
def test_masks_know_the_whitespace_after_the_item_that_ends_the_last_unique_alternative(
    whitespace: Literal["compact", "pretty", "flexible"], num_items: int
) -> None:
    vocabulary = small_vocabulary()
    compiler = GrammarCompiler(vocabulary)
    schema = {
        "type": "array",
        "anyOf": [
            {"uniqueItems": True, "items": {"type": "integer", "multipleOf": 7}},
            {"items": {"type": "integer", "minimum": 0}, "maxItems": num_items},
        ],
    }
    options = SchemaOptions(whitespace=whitespace)
    grammar = compiler.compile_json_schema(schema, options)
    # The number is as long as it can be, so that without whitespace nothing may come.
    for text in (b"[1", b"[7", b"[7,7", b"[7,1", b"[7,14,7", b"[999999999999999999", b"[7,7,8"):
        state = grammar.advance_bytes(grammar.initial_state, text)
        if state is not None:
            check_state(vocabulary, compiler, grammar, state)
    for seed in range(6):
        check_against_judge(
            vocabulary, compiler, schema, random.Random(seed), num_walks=2, num_instances=0, num_checked=9,
            options=options,
        )  # fmt: skip
