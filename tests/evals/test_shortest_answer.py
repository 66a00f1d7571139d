"""ShortestSearch: it finds what trying every token finds, and says so where it cannot decide."""

import json

import pytest

from specdec.evals.schema_engine import CompileOptions, SpecdecEngine
from specdec.evals.shortest_answer import ShortestSearch
from specdec.grammars import Vocabulary

NAMED = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 3}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def engine_with(*words):
    """Our compiler over the vocabulary of `specdec eval schema` and some more tokens."""
    base = SpecdecEngine({}).vocabulary
    tokens = [base.token_bytes(token_id) for token_id in range(base.size)]
    return SpecdecEngine({}, Vocabulary([*tokens, *words], base.eos_token_ids))


def grammar_of(engine, schema):
    return engine.grammar(json.dumps(schema), CompileOptions(format="assert"))


def shortest_by_trying(engine, grammar):
    """Every token in every state, level by level."""
    frontier, reached, num_tokens = [grammar.initial_state], {grammar.initial_state}, 0
    while not any(map(grammar.is_accepting, frontier)):
        after = {grammar.advance(state, token_id) for state in frontier for token_id in range(engine.vocabulary.size)}
        frontier = list(after - reached - {None})
        reached.update(frontier)
        num_tokens += 1
    return num_tokens


@pytest.mark.parametrize(
    "schema",
    [
        NAMED | {"additionalProperties": False},
        {"anyOf": [{"type": "string", "pattern": "^[0-9a-f]{4}$"}, {"const": {"a": [1, 2]}}]},
        {"type": "array", "items": {"enum": [1, 2, "a"]}, "minItems": 2, "uniqueItems": True},
        {"type": "object", "properties": {"ab": {"const": True}, "the": {"const": {}}}, "minProperties": 1},
        {"type": "array", "prefixItems": [{"type": "number", "minimum": 10}, {"type": "null"}], "minItems": 2},
        {"type": "string", "minLength": 7, "maxLength": 9},
        {"oneOf": [{"const": [[[]]]}, {"enum": ["a" * 20, [1, [2, [3]]]]}]},
    ],
)
def test_the_search_finds_what_trying_every_token_finds(schema):
    engine = engine_with(b"aaaa", b"[[[", b"]]]", b'":true}', b'{"the', b"10,null]", b"abab")
    grammar = grammar_of(engine, schema)
    expected = shortest_by_trying(engine, grammar)
    assert ShortestSearch(engine.vocabulary).of(grammar, 60).num_tokens == expected <= grammar.minimum_tokens


def test_an_answer_shorter_than_the_plan_is_found_and_is_one():
    engine = engine_with(b"absorption")
    grammar = grammar_of(engine, {"type": "string", "pattern": "^[a-z]{10}$"})
    found = ShortestSearch(engine.vocabulary).of(grammar, 60)
    assert (found.num_tokens, found.text) == (3, b'"absorption"')
    assert grammar.minimum_tokens > 3


def test_free_keys_and_repeated_items_do_not_keep_the_search_from_deciding():
    engine = engine_with()
    search = ShortestSearch(engine.vocabulary)
    for schema in (
        {"type": "object", "minProperties": 1},
        {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "minProperties": 1},
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "uniqueItems": True},
    ):
        found = search.of(grammar_of(engine, schema), 60)
        assert found.num_tokens is not None, f"{schema}: {found.why}"


def test_what_only_the_relaxation_allows_is_not_taken_for_an_answer():
    engine = engine_with(b"[0,0]")
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "uniqueItems": True}
    found = ShortestSearch(engine.vocabulary).of(grammar_of(engine, schema), 60)
    assert found.num_tokens is None
    assert "[0,0]" in found.why


def test_a_search_out_of_time_says_so_and_how_far_it_came():
    engine = engine_with()
    found = ShortestSearch(engine.vocabulary).of(grammar_of(engine, NAMED), 0)
    assert (found.num_tokens, found.why) == (None, "out of time")
    assert found.at_least >= 1
