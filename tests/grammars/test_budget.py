"""Budgets: whatever is drawn, the text is complete and valid when the tokens are spent."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import all_keywords
import mixed_arrays
import pytest
import schemas
from budgeted_walks import walk, with_spare_tokens
from checks import allowed_ids
from vocabularies import merged_vocabulary, small_vocabulary

from specdec.grammars import (
    BudgetedGrammar,
    BudgetedState,
    BudgetError,
    Grammar,
    GrammarCompiler,
    GrammarError,
    GrammarState,
    SchemaOptions,
    Vocabulary,
)
from specdec.grammars.judge import Judge, UnjudgeableError
from specdec.grammars.options import DEFAULT_OPTIONS


def _compiled(compiler: GrammarCompiler, schema: Any, options: SchemaOptions) -> tuple[Grammar, Judge] | None:
    """The grammar and its judge; None where either refuses the schema."""
    try:
        return compiler.compile_json_schema(schema, options), Judge(schema)
    except (GrammarError, UnjudgeableError):
        return None


def _bounds(grammar: Grammar, state: GrammarState) -> Iterator[int]:
    """What no token of the state's mask is said to cost more than."""
    grammar.mask_row(state)
    bounds = [grammar._closings.bound(state.stack)]
    if state._mask is not None and state._mask.reach is not None:
        config = state.position, state.stack
        bounds += [of(config, state._mask.reach) for of in (grammar._ceilings.rough, grammar._ceilings.close)]
    yield from (bound for bound in bounds if bound is not None)


def _check_state(compiler: GrammarCompiler, budgeted: BudgetedGrammar, state: BudgetedState) -> None:
    """Every allowed token advances, and the plan's next token is among them."""
    vocabulary = compiler.vocabulary
    allowed = set(allowed_ids(compiler, budgeted, state))
    accepted = {token_id for token_id in range(vocabulary.size) if budgeted.advance(state, token_id) is not None}
    assert allowed <= accepted, [vocabulary.token_bytes(token_id) for token_id in allowed - accepted]
    bound = min(_bounds(budgeted.grammar, state.state), default=None)
    if bound is not None:
        for token_id in allowed_ids(compiler, budgeted.grammar, state.state):
            after = budgeted.grammar.advance(state.state, token_id)
            closing = None if after is None else budgeted.grammar.closing(after)
            assert closing is not None, "bounds are known only where closings are"
            assert closing.num_tokens <= bound, f"{closing} takes more than {bound}"
    unguarded_from = budgeted.grammar.unguarded_from(state.state)
    if unguarded_from is not None:
        # What a table on the device takes for granted of a state, however much more is left.
        for remaining in {max(unguarded_from + 1, state.plan.num_tokens) + more for more in (0, 1, 40)}:
            relaxed = BudgetedState(state.state, state.plan, remaining)
            assert budgeted.mask_row(relaxed) == budgeted.grammar.mask_row(state.state), remaining
    if state.plan.data:
        following = [
            token_id
            for token_id in allowed
            if (data := vocabulary.token_bytes(token_id)) and state.plan.data.startswith(data)
        ]
        assert following, f"no token of {state.plan} is allowed"


def _walk(compiler: GrammarCompiler, budgeted: BudgetedGrammar, rng: random.Random, *, num_checked: int) -> bytes:
    check = functools.partial(_check_state, compiler, budgeted)
    return walk(compiler, budgeted, rng, check=check, num_checked=num_checked)


def _check_walks(
    seeds: range,
    random_schema: Callable[[random.Random], Any],
    vocabulary: Vocabulary,
    *,
    num_checked: int = 2,
    num_walks: int = 3,
) -> None:
    num_compiled = num_unbounded = 0
    options = [DEFAULT_OPTIONS, SchemaOptions(property_order="any"), SchemaOptions(whitespace="pretty")]
    for seed in seeds:
        rng = random.Random(seed)
        compiler = GrammarCompiler(vocabulary)
        schema = random_schema(rng)
        compiled = _compiled(compiler, schema, options[seed % 5 % 3])
        if compiled is None:
            continue
        num_compiled += 1
        grammar, judge = compiled
        minimum = grammar.minimum_tokens
        if minimum is None:
            num_unbounded += 1
            continue
        if minimum > 0:
            with pytest.raises(BudgetError, match=f"has {minimum} tokens") as error:
                BudgetedGrammar(grammar, minimum - 1)
            assert error.value.minimum_tokens == minimum
        for _ in range(num_walks):
            budgeted = BudgetedGrammar(grammar, rng.randint(minimum, 3 * minimum + 3))
            try:
                text = _walk(compiler, budgeted, rng, num_checked=num_checked)
                why = judge.violation(text.decode())
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, {schema}: {error}") from error
            assert why is None, f"seed {seed}, {schema}: {text!r}: {why}"
    assert num_compiled > 0.5 * len(seeds)
    assert num_unbounded <= 0.01 * num_compiled


def test_walks_end_within_their_budget_and_validate() -> None:
    _check_walks(range(60), schemas.random_schema, small_vocabulary())


def test_walks_end_within_their_budget_and_validate_with_every_keyword() -> None:
    _check_walks(range(1000, 1050), all_keywords.random_schema, small_vocabulary())


def test_walks_end_within_their_budget_with_tokens_over_many_symbols() -> None:
    _check_walks(range(2000, 2040), all_keywords.random_schema, merged_vocabulary(), num_checked=1)


_DISTINCT = [
    {"enum": ["ba", "bab", "b", "a"]},
    {"enum": [1, 12, 2, 0, "a"]},
    {"type": "integer", "minimum": 0, "maximum": 12},
    {"type": "string", "maxLength": 1},
    {"type": "string"},
    {"type": "array", "items": {"enum": [1, 12, "a"]}, "maxItems": 2},
    {
        "type": "object",
        "properties": {"id": {"enum": ["ba", "bab", "q"]}, "n": {"type": "integer"}},
        "required": ["id"],
        "additionalProperties": False,
    },
    {"type": "object", "propertyNames": {"pattern": "^a*$"}, "maxProperties": 1},
    {},
]


def _distinct_items(rng: random.Random) -> Any:
    """Arrays that must go on with items unlike those before, some of them inside other values."""
    array: dict[str, Any] = {"type": "array", "uniqueItems": True, "items": rng.choice(_DISTINCT)}
    array["minItems"] = rng.randint(2, 4)
    if rng.random() < 0.3:
        array["prefixItems"] = [rng.choice(_DISTINCT)]
    if rng.random() < 0.3:
        return {"anyOf": [array, {"type": "array", "items": rng.choice(_DISTINCT), "minItems": 1, "maxItems": 2}]}
    if rng.random() < 0.4:
        return {"type": "object", "properties": {"x": array, "y": rng.choice(_DISTINCT)}, "required": ["x", "y"]}
    return {"type": "array", "items": array} if rng.random() < 0.3 else array


@pytest.mark.parametrize("make_vocabulary", [small_vocabulary, merged_vocabulary], ids=["small", "merged"])
def test_arrays_that_must_go_on_with_other_items_end_within_their_budget(
    make_vocabulary: Callable[[], Vocabulary],
) -> None:
    num = 25 if make_vocabulary is small_vocabulary else 10
    _check_walks(range(3000, 3000 + num), _distinct_items, make_vocabulary(), num_checked=20, num_walks=2)


@pytest.mark.slow
def test_arrays_that_must_go_on_with_other_items_end_within_their_budget_over_many_schemas() -> None:
    _check_walks(range(30_000, 30_600), _distinct_items, small_vocabulary(), num_checked=30)


@pytest.mark.slow
def test_walks_end_within_their_budget_over_many_schemas() -> None:
    _check_walks(range(10_000, 10_400), schemas.random_schema, merged_vocabulary())
    _check_walks(range(20_000, 20_800), all_keywords.random_schema, small_vocabulary())


@pytest.mark.slow
def test_walks_end_within_their_budget_where_arrays_with_and_without_unique_items_meet() -> None:
    _check_walks(range(40_000, 40_120), mixed_arrays.random_schema, small_vocabulary(), num_checked=3)


@pytest.mark.slow
def test_walks_end_within_their_budget_where_arrays_with_and_without_unique_items_meet_over_many_schemas() -> None:
    _check_walks(range(41_000, 43_000), mixed_arrays.random_schema, small_vocabulary(), num_checked=6)
    _check_walks(range(43_000, 43_300), mixed_arrays.random_schema, merged_vocabulary(), num_checked=3)


@pytest.mark.parametrize("layout", [SchemaOptions(), SchemaOptions(whitespace="pretty")], ids=["compact", "pretty"])
@pytest.mark.parametrize(
    "schema",
    [
        # The item before may go on where the next one, of the same beginning, is complete.
        {
            "type": "array",
            "uniqueItems": True,
            "prefixItems": [{"type": "number"}, {}],
            "items": {"enum": [1, 2, 12]},
            "minItems": 3,
        },
        # Past an item that only the other alternative takes, whitespace comes.
        {
            "anyOf": [
                {"type": "array", "items": {"enum": ["a", 1, 12]}, "contains": {"type": "string"}, "minContains": 2},
                {"type": "array", "uniqueItems": True, "items": {"type": "number"}, "minItems": 5},
            ]
        },
        # Most items are none of those that must follow, and the one that is meets another goal.
        {
            "type": "array",
            "uniqueItems": True,
            "items": {},
            "contains": {"const": "a"},
            "maxContains": 2,
        },
    ],
    ids=["complete", "forgotten", "contained"],
)
def test_what_follows_items_that_must_differ_is_costed_in_every_layout(schema: Any, layout: SchemaOptions) -> None:
    compiler = GrammarCompiler(small_vocabulary())
    grammar, judge = compiler.compile_json_schema(schema, layout), Judge(schema)
    rng = random.Random(11)
    for _ in range(30):
        budgeted = with_spare_tokens(grammar, rng.randint(0, 12))
        text = _walk(compiler, budgeted, rng, num_checked=0)
        assert judge.violation(text.decode()) is None, text


def test_planned_tokens_complete_the_text_with_as_many_as_the_plan_has() -> None:
    compiler = GrammarCompiler(merged_vocabulary())
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["one", "two"]}, "b": {"minItems": 2}},
        "required": ["a", "b"],
    }
    grammar = compiler.compile_json_schema(schema)
    budgeted = BudgetedGrammar(grammar, 60)
    state = budgeted.initial_state
    for num_left in range(state.plan.num_tokens, 0, -1):
        assert state.plan.num_tokens == num_left
        token_id = budgeted.planned_token(state)
        assert token_id is not None
        after = budgeted.advance(state, token_id)
        assert after is not None
        state = after
    assert budgeted.is_accepting(state)
    assert budgeted.planned_token(state) is None


def test_a_key_written_inside_a_token_is_not_used_again_by_the_plan() -> None:
    base = small_vocabulary()
    words: list[bytes | None] = [b'":true,"', b'":1,"', b'a":true,"', b'","', b'":{"']
    vocabulary = Vocabulary(
        [*(base.token_bytes(token_id) for token_id in range(base.size)), *words], base.eos_token_ids
    )
    compiler = GrammarCompiler(vocabulary)
    rng = random.Random(5)
    for schema in (
        {"type": "object", "minProperties": 3},
        {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]},
        {"type": "object", "propertyNames": {"pattern": "^a*$"}, "minProperties": 4},
    ):
        grammar, judge = compiler.compile_json_schema(schema), Judge(schema)
        for _ in range(20):
            budgeted = with_spare_tokens(grammar, rng.randint(0, 12))
            text = _walk(compiler, budgeted, rng, num_checked=30)
            assert judge.violation(text.decode()) is None, text
