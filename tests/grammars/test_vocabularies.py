"""Vocabularies of other makes and sizes: masks are what `advance` takes, and every instance can be written."""

from __future__ import annotations

import json
import random
from typing import Any, get_args

import numpy as np
import pytest
from large_vocabularies import LargeVocabulary, VocabularyName, made_vocabulary
from numpy.typing import NDArray

from specdec.grammars import BudgetedGrammar, BudgetedState, Grammar, GrammarCompiler, GrammarState, SchemaOptions
from specdec.grammars.judge import Judge
from specdec.models.config import ModelConfig
from specdec.tokenizer import Tokenizer

_FLEXIBLE = SchemaOptions(whitespace="flexible")
_COMPACT = SchemaOptions()
_ITEM = {
    "type": "object",
    "properties": {"id": {"enum": ["ba", "bab", "née"]}, "n": {"type": "integer"}},
    "required": ["id"],
    "additionalProperties": False,
}
_CASES: list[tuple[Any, SchemaOptions, list[Any]]] = [
    (
        {"type": "object", "properties": {"name": {"type": "string"}, "on": {"type": "boolean"}}, "required": ["name"]},
        _FLEXIBLE,
        [{"name": "é😀 — 中国"}, {"name": 'a "quoted"\n\\ line', "on": True, "日本": [1.5, {"x": None}]}],
    ),
    (
        {"type": "array", "uniqueItems": True, "items": {"type": "string", "maxLength": 12}},
        _COMPACT,
        [["", "ba", "bab", "b", "中", "中国", '"'], ["ru", "rura", "rurara"]],
    ),
    (
        {"type": "array", "uniqueItems": True, "items": _ITEM, "minItems": 2},
        _COMPACT,
        [[{"id": "ba"}, {"id": "bab"}], [{"id": "ba", "n": 1}, {"id": "ba", "n": 12}, {"id": "née"}]],
    ),
    ({"type": "string", "pattern": "^[a-zà-ÿж-я]{2,9}-\\d+$"}, _COMPACT, ["née-1204", "шя-0", "babeli-77"]),
    ({"type": "array", "items": {"type": "number", "multipleOf": 0.25}}, _FLEXIBLE, [[0.25, -128, 1e3, 100000.75], []]),
    (
        {"type": "object", "patternProperties": {"^k": {"type": "string"}, "é$": {"type": "array"}}},
        _COMPACT,
        [{"ka": "x", "é": [], "": 0, "plain": {"deep": [[["😀"]]]}}],
    ),
    ({"enum": ["é😀", "née", 'a"b', "bab", 12, 128.5, None, ["ba", {"x": "中"}]]}, _COMPACT, ["é😀", 128.5, None]),
]


_NAMES = [*get_args(VocabularyName), pytest.param("default model", marks=pytest.mark.model)]


@pytest.fixture(scope="module", params=_NAMES)
def large(request: pytest.FixtureRequest) -> LargeVocabulary:
    if request.param != "default model":
        return made_vocabulary(request.param)
    folder = request.getfixturevalue("default_model_folder")
    return LargeVocabulary(Tokenizer.from_folder(folder), ModelConfig.from_folder(folder).vocab_size)


@pytest.fixture(scope="module")
def compiler(large: LargeVocabulary) -> GrammarCompiler:
    return GrammarCompiler(large.vocabulary)


def _bits(compiler: GrammarCompiler, grammar: Any, state: Any) -> NDArray[np.uint8]:
    """uint8 [V padded to 32]: the mask, by token."""
    return np.unpackbits(compiler.mask_table.rows[grammar.mask_row(state)].view(np.uint8), bitorder="little")


def _allowed(compiler: GrammarCompiler, grammar: Any, state: Any) -> NDArray[np.int64]:
    return np.flatnonzero(_bits(compiler, grammar, state))


def _is_cut(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return True
    return False


def _sample(large: LargeVocabulary, allowed: NDArray[np.int64], rng: random.Random) -> set[int]:
    """Tokens of every kind: allowed ones, any, those without bytes, and those beside the text of an allowed one."""
    size = large.vocabulary.size
    sampled = {*rng.sample(range(size), 150), *rng.choices(allowed.tolist(), k=150), *large.special_ids, size - 1}
    for token_id in rng.choices(allowed.tolist(), k=40):
        token = large.vocabulary.token_bytes(token_id) or b""
        for near in (*(token + bytes((byte,)) for byte in b'",]}:0 \xc3'), token[:-1], token + b'","', token + b'":'):
            if near in large.id_of:
                sampled.add(large.id_of[near])
    return sampled


def _check_mask(
    large: LargeVocabulary, compiler: GrammarCompiler, grammar: Grammar, state: GrammarState, rng: random.Random
) -> None:
    allowed = _allowed(compiler, grammar, state)
    assert len(allowed), f"empty mask at {state}"
    is_allowed = set(allowed.tolist())
    for token_id in _sample(large, allowed, rng):
        is_taken = grammar.advance(state, token_id) is not None
        assert is_taken is (token_id in is_allowed), (state, token_id, large.vocabulary.token_bytes(token_id))
    with_bytes = {token_id for token_id in is_allowed if large.vocabulary.token_bytes(token_id) is not None}
    assert is_allowed - with_bytes <= set(large.vocabulary.eos_token_ids)


def test_each_is_of_its_make(large: LargeVocabulary) -> None:
    vocabulary = large.vocabulary
    tokens = list(vocabulary.tokens())
    assert vocabulary.size > 1.2e5 or len(vocabulary.spellable_bytes) == 256 - 21
    assert vocabulary.size < 1.2e5 or len(vocabulary.spellable_bytes) == 256
    assert sum(map(_is_cut, tokens)) > 100
    assert sum(token.count(b'"') > 1 for token in tokens) > 10
    assert any(vocabulary.token_bytes(token_id) is None for token_id in range(vocabulary.size))
    if vocabulary.size > 2e5:
        assert len(tokens) > len(set(tokens)), "bytes have tokens of their own beside the characters"


@pytest.mark.parametrize("index", range(len(_CASES)))
def test_masks_are_what_advance_takes_along_walks_that_close_in_their_budget(
    large: LargeVocabulary, compiler: GrammarCompiler, index: int
) -> None:
    schema, options, _ = _CASES[index]
    rng = random.Random(index)
    grammar = compiler.compile_json_schema(schema, options)
    assert grammar.minimum_tokens is not None, "short answers are enough"
    for _ in range(4):
        budgeted = BudgetedGrammar(grammar, grammar.minimum_tokens + rng.choice([0, 1, 4, 16]))
        state, text = budgeted.initial_state, b""
        while not budgeted.only_eos(state):
            _check_mask(large, compiler, grammar, state.state, rng)
            token_id = _drawn(large, _allowed(compiler, budgeted, state).tolist(), rng)
            if token_id in large.vocabulary.eos_token_ids:
                break
            after = budgeted.advance(state, token_id)
            assert after is not None, (text, large.vocabulary.token_bytes(token_id))
            state, text = after, text + (large.vocabulary.token_bytes(token_id) or b"")
        assert budgeted.is_accepting(state), text
        assert Judge(schema).violation(text.decode()) is None, text


def _drawn(large: LargeVocabulary, allowed: list[int], rng: random.Random) -> int:
    """One that structures the text, if some do and chance wills."""
    structural = [
        token_id
        for token_id in rng.choices(allowed, k=200)
        if any(byte in b'"{}[]:,' for byte in large.vocabulary.token_bytes(token_id) or b"")
    ]
    return rng.choice(structural if structural and rng.random() < 0.7 else allowed)


@pytest.mark.parametrize("index", range(len(_CASES)))
def test_instances_can_be_written_in_any_tokens_that_spell_them(
    large: LargeVocabulary, compiler: GrammarCompiler, index: int
) -> None:
    schema, options, instances = _CASES[index]
    grammar = compiler.compile_json_schema(schema, options)
    rng = random.Random(index)
    longest = max(map(len, large.id_of))
    for instance in instances:
        text = json.dumps(instance, ensure_ascii=False, separators=(",", ":")).encode()
        for most_bytes in (longest, longest, 1, 3):
            state: GrammarState | None = grammar.initial_state
            begin = 0
            while begin < len(text):
                ends = range(begin + 1, min(len(text), begin + most_bytes) + 1)
                spelt = [large.id_of[text[begin:end]] for end in ends if text[begin:end] in large.id_of]
                assert state is not None, text[:begin]
                assert _bits(compiler, grammar, state)[spelt].all(), text[:begin]
                token_id = spelt[-1] if most_bytes == longest else rng.choice(spelt)
                state, begin = (
                    grammar.advance(state, token_id),
                    begin + len(large.vocabulary.token_bytes(token_id) or b""),
                )
            assert state is not None, text
            assert grammar.is_accepting(state), text
            assert _bits(compiler, grammar, state)[list(large.vocabulary.eos_token_ids)].all()


def test_budgets_allow_the_plan_and_nothing_that_does_not_fit(
    large: LargeVocabulary, compiler: GrammarCompiler
) -> None:
    grammar = compiler.compile_json_schema(_CASES[2][0])
    minimum = grammar.minimum_tokens
    assert minimum is not None, "short answers are enough"
    budgeted = BudgetedGrammar(grammar, minimum + 2)
    state: BudgetedState | None = budgeted.initial_state
    rng = random.Random(3)
    while state is not None and not budgeted.only_eos(state):
        allowed = _allowed(compiler, budgeted, state).tolist()
        assert _bits(compiler, grammar, state.state)[allowed].all()
        for token_id in rng.choices(allowed, k=30):
            assert budgeted.advance(state, token_id) is not None, large.vocabulary.token_bytes(token_id)
        planned = budgeted.planned_token(state)
        assert planned in allowed
        state = budgeted.advance(state, planned)
    assert state is not None, "the plan fits"
    assert budgeted.is_accepting(state)
