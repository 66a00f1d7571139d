"""Items that must differ: the bytes that are tried for another item are all that can come."""

from __future__ import annotations

import random

import pytest
from vocabularies import small_vocabulary

from specdec.grammars import GrammarCompiler

OBJECT = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y", 1]}, "bb": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}
CLASSED = {
    "type": "object",
    "patternProperties": {"^x": {"type": "null"}},
    "properties": {"xa": {}, "b": {"type": "integer"}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "items",
    [
        OBJECT,
        {"anyOf": [CLASSED, {"enum": ["q", "qq", "qé"]}, {"type": "number"}]},
        {"type": "string", "maxLength": 2},
        {"type": "array", "items": {"anyOf": [{"type": "integer"}, OBJECT]}, "maxItems": 2},
    ],
    ids=["declared", "classed", "strings", "nested"],
)
def test_every_byte_that_can_come_is_tried(items) -> None:
    compiler = GrammarCompiler(small_vocabulary())
    grammar = compiler.compile_json_schema({"type": "array", "uniqueItems": True, "items": items})
    automaton = grammar._automaton
    num_checked = 0
    for seed in range(30):
        rng, state = random.Random(seed), grammar.initial_state
        for _ in range(60):
            config = state.position, state.stack
            taken = [byte for byte in range(256) if automaton._feed(config, bytes((byte,))) is not None]
            if state.stack is not None and state.stack.is_remembered:
                assert set(taken) <= set(automaton.possible_bytes(config)), state.position
                num_checked += 1
            following = [after for byte in taken if (after := grammar.advance_bytes(state, bytes((byte,)))) is not None]
            if not following:
                break
            state = rng.choice(following)
    assert num_checked > 100
