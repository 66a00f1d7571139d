"""Byte automata of string bodies know exactly which bytes can be completed, and by which terms."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest
from checks import allowed_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import small_vocabulary

from specdec.grammars import GrammarCompiler
from specdec.grammars.errors import LimitExceededError
from specdec.grammars.languages import MAX_CODE_POINT, Language, from_automaton
from specdec.grammars.lexemes import CLOSED
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.speller import Speller
from specdec.grammars.strings import StringTerm
from specdec.grammars.tails import Tails
from specdec.grammars.text_automaton import build_text_automaton, spelling_of
from specdec.grammars.walk import DEAD

# Some begin with the same bytes: escapes, é and è, the ends of the ranges that surrogates and planes make.
LETTERS = 'ab\0\x01\n\t"\\\x7f\x80éè\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U00010001\U0010ffff'
EVERY_BYTE = frozenset(range(256))


def random_term(rng: random.Random) -> StringTerm | None:
    num_states, letters = rng.randint(2, 4), rng.sample(LETTERS, rng.randint(1, 4))
    columns = {0: 0}
    for column, point in enumerate(sorted(map(ord, letters)), start=1):
        columns[point] = column
        if point < MAX_CODE_POINT:
            columns.setdefault(point + 1, 0)
    # Mostly what is not a letter leads nowhere.
    rows = np.array(
        [[rng.randrange(num_states + 1) for _ in range(len(letters) + 1)] for _ in range(num_states + 1)], np.int32
    )
    rows[-1] = num_states
    if rng.random() < 0.7:
        rows[:, 0] = num_states
    language = from_automaton(columns, rows, np.array([rng.random() < 0.4 for _ in rows[1:]] + [False], np.uint8))
    if language.is_empty:
        return None
    if not language.has_all_lengths:
        return StringTerm(language)
    low = rng.randint(0, 3)
    return StringTerm(language, low, rng.choice([None, low, low + rng.randint(0, 3)]))


def code_points_that_begin_with(data: bytes, terms: Iterable[StringTerm]) -> list[int]:
    """One of every class of the languages, of those whose spelling begins so."""
    edges = {edge for term in terms for start in term.language.boundaries for edge in (start - 1, start)}
    edges |= {*range(0x80), *map(ord, LETTERS)}
    points = [point for point in edges if point >= 0 and not 0xD800 <= point < 0xE000]
    return [point for point in points if spelling_of(point).startswith(data)]


def lengths_from(language: Language, state: int, limit: int) -> set[int]:
    lengths, here = set(), {state}
    for length in range(limit + 1):
        if any(language.accepting[one] for one in here):
            lengths.add(length)
        here = {target for one in here for target in language.table[one]}
    return lengths


def can_end(term: StringTerm, text: str) -> bool:
    state = 0
    for character in text:
        state = term.language.step(state, ord(character))
    high = 12 if term.max_length is None else term.max_length
    return any(
        term.min_length <= len(text) + length <= high for length in lengths_from(term.language, state, 12 - len(text))
    )


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_body_is_live_while_some_term_can_end_it_and_accepted_by_the_terms_that_hold_it(seed: int) -> None:
    rng = random.Random(seed)
    terms = tuple(term for term in (random_term(rng) for _ in range(rng.randint(1, 3))) if term is not None)
    if not terms:
        return
    automaton = build_text_automaton(terms, EVERY_BYTE)
    letters = sorted({chr(point) for term in terms for point in term.language.boundaries} | set("aé\n"))
    for _ in range(25):
        text = "".join(rng.choices(letters, k=rng.randint(0, 4)))
        body = b"".join(spelling_of(ord(character)) for character in text)
        before, state, length, _ = automaton.scan(automaton.start, 0, body + b'"', 0)
        accepted = automaton.accepted(before, length) if state == CLOSED else frozenset()
        assert accepted == {i for i, term in enumerate(terms) if term.contains(text)}
        begun, whole = b"", ""
        for character in text:
            spelling = spelling_of(ord(character))
            for cut in range(len(spelling)):
                _, state, length, _ = automaton.scan(automaton.start, 0, begun + spelling[:cut], 0)
                texts = (
                    [whole + chr(point) for point in code_points_that_begin_with(spelling[:cut], terms)]
                    if cut
                    else [whole]
                )
                ends = [any(can_end(term, one) for one in texts) for term in terms]
                is_live = state != DEAD and automaton.is_live(state, length)
                assert (seed, begun + spelling[:cut], is_live) == (seed, begun + spelling[:cut], any(ends))
                if state != DEAD and automaton.is_counted:
                    assert [automaton.is_live_for(i, state, length) for i in range(len(terms))] == ends
            begun, whole = begun + spelling, whole + character


@pytest.mark.parametrize(
    ("schema", "begun"),
    [
        # The last of 300 characters begins with a byte that others begin with too, which would need more.
        ({"type": "string", "pattern": "^(?:è.{3}|x)*é$", "maxLength": 300}, "x" * 299),
        ({"type": "string", "pattern": '^(?:\n.{3}|x)*"$', "maxLength": 300}, "x" * 299),
        # Each alternative has one of two characters that begin alike.
        ({"anyOf": [{"type": "string", "pattern": f"^{c}.*$", "maxLength": 300} for c in "éè"]}, ""),
    ],
)
def test_code_points_that_begin_alike_leave_no_counted_string_without_an_end(
    schema: dict[str, object], begun: str
) -> None:
    vocabulary = small_vocabulary()
    compiler = GrammarCompiler(vocabulary)
    grammar = compiler.compile_json_schema(schema)
    state = grammar.advance_bytes(grammar.initial_state, b'"' + begun.encode())
    assert state is not None
    assert allowed_ids(compiler, grammar, state)


def test_a_key_that_ends_with_the_code_point_begun_has_a_plan() -> None:
    compiler = GrammarCompiler(small_vocabulary())
    grammar = compiler.compile_json_schema(
        {
            "type": "object",
            "additionalProperties": False,
            "patternProperties": {"^a+é$": True},
            "minProperties": 1,
        }
    )
    state = grammar.advance_bytes(grammar.initial_state, b'{"aa\xc3')
    assert state is not None
    assert grammar.closing(state) is not None


def test_too_many_spans_are_refused_by_the_limits_name(monkeypatch: pytest.MonkeyPatch) -> None:
    # After é at most one character follows, after è at least two.
    term = StringTerm(Language.of(["é", "éa", "èaa", "èaaa"]))
    automaton = build_text_automaton((term,), EVERY_BYTE)
    assert len(automaton.shortest) == 2
    monkeypatch.setattr("specdec.grammars.text_automaton.MAX_SPANS", 2 * len(automaton.table) - 1)
    with pytest.raises(LimitExceededError, match="max_text_spans"):
        build_text_automaton((term,), EVERY_BYTE)


def test_no_tail_is_longer_than_the_bound_says() -> None:
    lexicon = Lexicon(EVERY_BYTE)
    tails = Tails(lexicon, Speller(small_vocabulary()))
    num_compared = num_in_ascii = 0
    for seed in range(150):
        rng = random.Random(seed)
        terms = tuple(dict.fromkeys(filter(None, (random_term(rng) for _ in range(rng.randint(1, 2))))))
        if not terms:
            continue
        automaton = lexicon.text_automaton(terms)
        num_in_ascii += automaton.point_bytes == 1
        for state in range(len(automaton.table)):
            for length in range(4) if automaton.is_counted else (0,):
                for term in range(automaton.num_terms):
                    tail = tails.of_text(automaton, state, length, term)
                    num_compared += tail is not None
                    assert tail is None or len(tail) <= automaton.longest_tail(length), f"seed {seed}"
    assert num_compared > 500
    assert num_in_ascii > 5
