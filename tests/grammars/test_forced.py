"""Forced runs: the bytes are all that is forced and nothing else, the tokens are the tokenizer's own and will stay."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import all_keywords
import pytest
import schemas
from checks import allowed_ids
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import merged_vocabulary, small_vocabulary

from specdec.grammars import (
    HERMES,
    BudgetedGrammar,
    Function,
    Grammar,
    GrammarCompiler,
    GrammarError,
    GrammarState,
    Regex,
    SchemaOptions,
    ToolCalls,
    Vocabulary,
)
from specdec.grammars.forced import MAX_RUN_BYTES, Retokenizer, _code_point, _num_whole_points
from specdec.tokenizer import Tokenizer

RECORD = {
    "type": "object",
    "properties": {
        "identifier": {"type": "integer"},
        "kind": {"enum": ["apple pie", "apricot"]},
        "né 😀": {"type": "string"},
        "done": {"const": True},
    },
    "required": ["identifier", "kind", "né 😀", "done"],
    "additionalProperties": False,
}


def greedy(vocabulary: Vocabulary) -> Retokenizer:
    """The longest token first, in pre-tokens that end with a quote: several tokens each, and all can be merged."""
    ids = {token: token_id for token_id in range(vocabulary.size) if (token := vocabulary.token_bytes(token_id))}
    longest = vocabulary.max_token_bytes

    def split(text: bytes) -> list[list[int]]:
        found: list[list[int]] = []
        for piece in [each + b'"' for each in text.split(b'"')[:-1]] + [text.rpartition(b'"')[2]]:
            own, start = list[int](), 0
            while start < len(piece):
                length = next(n for n in range(longest, 0, -1) if piece[start : start + n] in ids)
                length = min(length, len(piece) - start)
                own.append(ids[piece[start : start + length]])
                start += length
            if own:
                found.append(own)
        return found

    return split


def brute_force(grammar: Grammar, state: GrammarState) -> bytes:
    """The only continuation, by trying every byte; special tokens are choices as well."""
    run = b""
    while not grammar.is_accepting(state) and len(run) < MAX_RUN_BYTES:
        special = [id_ for id_ in grammar._runtime.vocabulary.special_tokens.values() if grammar.allows(state, id_)]
        after = {byte: grammar.advance_bytes(state, bytes((byte,))) for byte in range(256)}
        possible = [byte for byte, successor in after.items() if successor is not None]
        if len(possible) != 1 or special:
            break
        run += bytes(possible)
        successor = after[possible[0]]
        assert successor is not None
        state = successor
    return run


def walked(
    compiler: GrammarCompiler, grammar: Grammar, rng: random.Random, max_tokens: int = 15
) -> Iterator[tuple[GrammarState, list[int]]]:
    """States along a random walk, each with the tokens before it; tokens without bytes are among them."""
    state, token_ids = grammar.initial_state, list[int]()
    for _ in range(max_tokens):
        yield state, token_ids
        ids = [id_ for id_ in allowed_ids(compiler, grammar, state) if id_ not in compiler.vocabulary.eos_token_ids]
        if not ids:
            return
        token_id = rng.choice(ids)
        after = grammar.advance(state, token_id)
        assert after is not None
        state, token_ids = after, [*token_ids, token_id]


def check_tokens(compiler: GrammarCompiler, grammar: Grammar, state: GrammarState, preceding: Sequence[int]) -> int:
    """Forced tokens spell a beginning of the forced bytes, and each is allowed; how many there are."""
    tokens = grammar.forced_tokens(state, preceding)
    spelt = b"".join(compiler.vocabulary.token_bytes(token_id) or b"?" for token_id in tokens)
    assert grammar.forced_bytes(state).startswith(spelt)
    after: GrammarState | None = state
    for token_id in tokens:
        assert after is not None
        after = grammar.advance(after, token_id)
        assert after is not None, compiler.vocabulary.token_bytes(token_id)
    check_likely(compiler, grammar, state, preceding, tokens)
    return len(tokens)


def check_likely(
    compiler: GrammarCompiler, grammar: Grammar, state: GrammarState, preceding: Sequence[int], sure: tuple[int, ...]
) -> None:
    """Likely tokens begin with those that are sure, spell a beginning of the forced bytes, and each is allowed."""
    tokens = grammar.likely_tokens(state, preceding)
    assert tokens[: len(sure)] == sure
    spelt = b"".join(compiler.vocabulary.token_bytes(token_id) or b"?" for token_id in tokens)
    forced = grammar.forced_bytes(state)
    assert forced.startswith(spelt)
    assert tokens or not forced or not is_spelt(compiler, forced), "a run that the tokenizer spells is worth a try"
    after: GrammarState | None = state
    for token_id in tokens:
        assert after is not None
        after = grammar.advance(after, token_id)
        assert after is not None, compiler.vocabulary.token_bytes(token_id)


def is_spelt(compiler: GrammarCompiler, text: bytes) -> bool:
    """Whether the tokenizer's tokens spell a text, which must hold whole code points."""
    retokenizer = compiler._runtime.run_tokens._retokenizer
    try:
        pre_tokens = retokenizer(text)
    except UnicodeDecodeError:
        return False
    ids = [token_id for pre_token in pre_tokens for token_id in pre_token]
    return b"".join(compiler.vocabulary.token_bytes(token_id) or b"?" for token_id in ids) == text


def check_walks(seeds: range, random_schema: Any, vocabulary: Vocabulary) -> None:
    options = [SchemaOptions(), SchemaOptions(property_order="any"), SchemaOptions(whitespace="pretty")]
    num_forced = num_tokens = num_compiled = 0
    for seed in seeds:
        rng = random.Random(seed)
        schema = random_schema(rng)
        compiler = GrammarCompiler(vocabulary, retokenizer=greedy(vocabulary))
        try:
            grammar = compiler.compile_json_schema(schema, options[seed % 3])
        except GrammarError:
            continue
        num_compiled += 1
        for state, preceding in walked(compiler, grammar, rng):
            forced = grammar.forced_bytes(state)
            assert forced == brute_force(grammar, state), f"seed {seed}, {schema}, {preceding}"
            num_forced += len(forced) > 0
            num_tokens += check_tokens(compiler, grammar, state, preceding)
    assert num_compiled > 0.5 * len(seeds)
    assert num_forced > num_compiled / 2
    assert num_tokens > num_compiled / 4


def test_forced_bytes_are_the_only_continuation() -> None:
    check_walks(range(30), schemas.random_schema, merged_vocabulary())


def test_forced_bytes_are_the_only_continuation_with_every_keyword() -> None:
    check_walks(range(1000, 1030), all_keywords.random_schema, merged_vocabulary())


@pytest.mark.slow
def test_forced_bytes_are_the_only_continuation_over_many_schemas() -> None:
    check_walks(range(10_000, 10_300), schemas.random_schema, small_vocabulary())
    check_walks(range(20_000, 20_300), all_keywords.random_schema, merged_vocabulary())


def test_what_is_forced_of_a_record() -> None:
    grammar = GrammarCompiler(merged_vocabulary()).compile_json_schema(RECORD)

    def forced_after(text: str) -> str:
        state = grammar.advance_bytes(grammar.initial_state, text.encode())
        assert state is not None
        return grammar.forced_bytes(state).decode()

    text = '{"identifier":3,"kind":"apple pie","né 😀":"x","done":true}'
    assert forced_after("") == '{"identifier":'
    assert forced_after('{"identifier":3') == ""
    assert forced_after('{"identifier":3,') == '"kind":"ap'
    assert forced_after('{"identifier":3,"kind":"app') == 'le pie","né 😀":"'
    assert forced_after(text[:-10]) == 'one":true}'
    assert forced_after(text) == ""


def test_nothing_is_forced_where_the_text_may_end() -> None:
    grammar = GrammarCompiler(merged_vocabulary()).compile(Regex(pattern="ab(c)?"))
    assert grammar.forced_bytes(grammar.initial_state) == b"ab"
    ab = grammar.advance_bytes(grammar.initial_state, b"ab")
    assert ab is not None
    assert grammar.forced_bytes(ab) == b""
    done = grammar.advance_bytes(ab, b"c")
    assert done is not None
    ended = grammar.advance(done, merged_vocabulary().eos_token_ids[0])
    assert ended is not None
    assert grammar.forced_bytes(done) == grammar.forced_bytes(ended) == b""


def test_a_special_token_is_a_choice_beside_the_bytes() -> None:
    base = small_vocabulary()
    tokens = [*(base.token_bytes(token_id) for token_id in range(base.size)), None]
    special = {"<tool_call>": len(tokens) - 1}
    vocabulary = Vocabulary(tokens, base.eos_token_ids, special_tokens=special)
    calls = ToolCalls(functions=(Function(name="f", parameters=RECORD),), format=HERMES)
    compiler = GrammarCompiler(vocabulary, retokenizer=greedy(vocabulary))
    grammar = compiler.compile(calls)
    assert grammar.forced_bytes(grammar.initial_state) == brute_force(grammar, grammar.initial_state) == b""
    for seed in range(3):
        for state, preceding in walked(compiler, grammar, random.Random(seed), 60):
            assert grammar.forced_bytes(state) == brute_force(grammar, state)
            check_tokens(compiler, grammar, state, preceding)


def test_a_run_is_cut_at_its_limit() -> None:
    grammar = GrammarCompiler(merged_vocabulary()).compile_json_schema({"const": "x" * 2000})
    assert grammar.forced_bytes(grammar.initial_state) == b'"' + b"x" * (MAX_RUN_BYTES - 1)


def test_without_a_tokenizer_there_are_no_forced_tokens() -> None:
    grammar = GrammarCompiler(merged_vocabulary()).compile_json_schema(RECORD)
    with pytest.raises(ValueError, match="retokenizer"):
        grammar.forced_tokens(grammar.initial_state, ())


def test_forced_tokens_fit_the_budget() -> None:
    vocabulary = merged_vocabulary()
    compiler = GrammarCompiler(
        vocabulary, retokenizer=lambda text: [[vocabulary_id(vocabulary, byte)] for byte in text]
    )
    grammar = compiler.compile_json_schema({"const": {"a": "abc"}})
    minimum = grammar.minimum_tokens
    assert minimum is not None
    spelt_singly = grammar.forced_tokens(grammar.initial_state, ())
    assert len(spelt_singly) == len('{"a":"abc"}') > minimum
    for spare in range(len(spelt_singly)):
        budgeted = BudgetedGrammar(grammar, minimum + spare)
        fitting = budgeted.forced_tokens(budgeted.initial_state, ())
        assert fitting == spelt_singly[: len(fitting)]
        state = budgeted.initial_state
        for token_id in fitting:
            after = budgeted.advance(state, token_id)
            assert after is not None
            state = after
        assert fitting == spelt_singly or budgeted.advance(state, spelt_singly[len(fitting)]) is None


def vocabulary_id(vocabulary: Vocabulary, byte: int) -> int:
    return next(id_ for id_ in range(vocabulary.size) if vocabulary.token_bytes(id_) == bytes((byte,)))


@given(st.text(), st.integers(0, 3))
def test_a_code_point_that_is_cut_short_is_no_whole_one(text: str, num_cut: int) -> None:
    data = text.encode()
    cut = data[: len(data) - num_cut]
    assert cut[: _num_whole_points(cut)] == cut.decode(errors="ignore").encode()


@pytest.mark.parametrize("lead", [*range(0x80), *range(0xC2, 0xF5)])
def test_every_lead_byte_begins_a_code_point(lead: int) -> None:
    point = _code_point(lead)
    assert len(point.decode()) == 1
    assert point[0] == lead


# With a tokenizer that merges


@pytest.fixture(scope="module")
def tiny(tiny_model_folder: Path) -> tuple[Tokenizer, GrammarCompiler]:
    return with_tokenizer(Tokenizer.from_folder(tiny_model_folder))


def with_tokenizer(tokenizer: Tokenizer) -> tuple[Tokenizer, GrammarCompiler]:
    vocabulary = Vocabulary(tokenizer.token_bytes(), tokenizer.eos_token_ids, special_tokens=tokenizer.special_tokens())
    return tokenizer, GrammarCompiler(vocabulary, retokenizer=lambda text: tokenizer.encode_by_pre_token(text.decode()))


def check_own_tokens(tokenizer: Tokenizer, compiler: GrammarCompiler, schema: Any, texts: Sequence[str]) -> int:
    """Along each text as the tokenizer splits it, what is forced is what comes; how many tokens are."""
    grammar = compiler.compile_json_schema(schema)
    num_forced = 0
    for text in texts:
        token_ids = tokenizer.encode(text)
        state, position = grammar.initial_state, 0
        while position < len(token_ids):
            assert check_tokens(compiler, grammar, state, token_ids[:position]) >= 0
            forced = grammar.forced_tokens(state, token_ids[:position])
            assert list(forced) == token_ids[position : position + len(forced)], (text, position)
            taken = token_ids[position : position + max(1, len(forced))]
            num_forced += len(forced)
            for token_id in taken:
                after = grammar.advance(state, token_id)
                assert after is not None
                state = after
            position += len(taken)
    return num_forced


def random_records(rng: random.Random, count: int) -> list[str]:
    values = [
        {
            "identifier": rng.randint(0, 10**6),
            "kind": rng.choice(["apple pie", "apricot"]),
            "né 😀": "".join(rng.choices("ab .,:/\\\"'{}é中😀-_s", k=rng.randint(0, 12))),
            "done": True,
        }
        for _ in range(count)
    ]
    return [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values]


def test_forced_tokens_are_those_of_the_whole_text(tiny: tuple[Tokenizer, GrammarCompiler]) -> None:
    tokenizer, compiler = tiny
    assert check_own_tokens(tokenizer, compiler, RECORD, random_records(random.Random(1), 60)) > 60 * 10


def test_a_special_token_is_where_texts_are_split(tiny: tuple[Tokenizer, GrammarCompiler]) -> None:
    tokenizer, compiler = tiny
    grammar = compiler.compile_json_schema(RECORD)
    prompt = tokenizer.encode("<|im_start|>assistant\n")
    alone = grammar.forced_tokens(grammar.initial_state, ())
    assert alone == grammar.forced_tokens(grammar.initial_state, prompt[:1])
    assert tokenizer.decode(alone).startswith('{"')


def test_tokens_that_the_tokenizer_would_not_have_drawn_force_nothing_in_their_pre_token(
    tiny: tuple[Tokenizer, GrammarCompiler],
) -> None:
    tokenizer, compiler = tiny
    grammar = compiler.compile_json_schema({"const": "the the"})
    own = tokenizer.encode('"the the"')
    letters = [token_id for byte in b'"t' for token_id in tokenizer.encode(chr(byte))]
    state = grammar.advance_bytes(grammar.initial_state, b'"t')
    assert state is not None
    assert own[: len(letters)] != letters
    assert grammar.forced_tokens(state, letters) == ()
    assert tokenizer.decode(grammar.likely_tokens(state, letters)) == 'he the"', "by themselves, they are worth a try"
    whole = grammar.advance_bytes(grammar.initial_state, b'"the')
    assert whole is not None
    before = [token_id for byte in b'"the' for token_id in tokenizer.encode(chr(byte))]
    # The next pre-token begins with the space, and stands by itself.
    assert tokenizer.decode(grammar.forced_tokens(whole, before)) == ' the"'


@pytest.mark.model
def test_forced_tokens_of_the_default_model_are_those_of_the_whole_text(default_model_folder: Path) -> None:
    tokenizer, compiler = with_tokenizer(Tokenizer.from_folder(default_model_folder))
    assert check_own_tokens(tokenizer, compiler, RECORD, random_records(random.Random(2), 200)) > 200 * 10
