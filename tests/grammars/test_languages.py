"""Languages are exact sets of strings, and their automata are canonical."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.grammars.errors import LimitExceededError
from specdec.grammars.language_rests import MAX_COUNT
from specdec.grammars.languages import EVERYTHING, MAX_STATES, NOTHING, Language, from_automaton

# The ends of the ranges that surrogates and planes make, and letters.
ALPHABET = "ab\0\ud7ff\ue000\U0010ffff"
ALL_SHORT = ["".join(letters) for length in range(4) for letters in itertools.product(ALPHABET, repeat=length)]
# Where spellings change their length, surrogates begin and end, and code points do.
EDGE_POINTS = [0, 1, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xD800, 0xDFFF, 0xE000, 0xFFFF, 0x10000, 0x10FFFE, 0x10FFFF]

words = st.text(alphabet=ALPHABET, max_size=3)
finite_sets = st.frozensets(words, max_size=8)
ranges = st.lists(st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF)).map(sorted).map(tuple), max_size=5)


def random_language(seed: int, num_states: int = 6) -> Language:
    rng = random.Random(seed)
    rows = np.array([[rng.randrange(num_states) for _ in range(3)] for _ in range(num_states)], np.int32)
    final = np.array([rng.random() < 0.4 for _ in range(num_states)], np.uint8)
    return from_automaton({0: 0, ord("a"): 1, ord("b"): 2, ord("c"): 0}, rows, final)


languages = st.integers(0, 10_000).map(random_language) | finite_sets.map(Language.of) | ranges.map(Language.of_ranges)


@given(languages, languages)
@settings(max_examples=150, deadline=None)
def test_operators_are_the_set_operations(a: Language, b: Language) -> None:
    both, either, minus, other = a & b, a | b, a - b, ~a
    for text in ALL_SHORT:
        mine, its = text in a, text in b
        assert (text in both, text in either, text in minus, text in other) == (
            mine and its, mine or its, mine and not its, not mine
        )  # fmt: skip
    assert (a <= b) == minus.is_empty


@given(languages, languages, languages)
@settings(max_examples=100, deadline=None)
def test_equal_sets_are_equal_and_hash_alike_however_they_were_made(a: Language, b: Language, c: Language) -> None:
    for one, same in [
        (~~a, a),
        (a | b, ~(~a & ~b)),
        (a & (b | c), (a & b) | (a & c)),
        (a - (b | c), (a - b) - c),
        (a | ~a, EVERYTHING),
        (a - a, NOTHING),
    ]:
        assert one == same
        assert hash(one) == hash(same)
        assert (one.boundaries, one.table, one.accepting) == (same.boundaries, same.table, same.accepting)


@given(finite_sets, finite_sets)
@settings(max_examples=100, deadline=None)
def test_finite_languages_are_their_words(first: frozenset[str], second: frozenset[str]) -> None:
    a, b = Language.of(first), Language.of(second)
    assert a.words(100) == tuple(sorted(first))
    assert a.num_words == len(first)
    assert (a == b) == (first == second)
    assert (a | b) == Language.of(first | second)
    assert (a & b) == Language.of(first & second)
    assert len(first) == 0 or a.words(len(first) - 1) is None


Holds = Callable[[str], bool]
EDGE_LETTERS = [chr(point) for point in [*EDGE_POINTS, ord("a")] if not 0xD800 <= point < 0xE000]
SHORT_OF_EDGES = ["".join(letters) for length in range(3) for letters in itertools.product(EDGE_LETTERS, repeat=length)]


def random_expression(rng: random.Random, depth: int) -> tuple[Language, Holds]:
    """A language, and which strings belong to it."""
    kind = rng.random()
    if depth == 0 or kind < 0.1:
        if kind < 0.4:
            listed = set(rng.sample(SHORT_OF_EDGES, rng.randint(0, 6)))
            return Language.of(listed), listed.__contains__
        if kind < 0.6:
            spans = [tuple(sorted(rng.choices(EDGE_POINTS, k=2))) for _ in range(rng.randint(0, 3))]
            return Language.of_ranges(
                spans
            ), lambda text: len(text) == 1 and any(low <= ord(text) <= high for low, high in spans)
        num_states, starts = rng.randint(1, 4), [0, *rng.sample(EDGE_POINTS[1:], 3)]
        columns = {start: rng.randrange(3) for start in starts}
        rows = [[rng.randrange(num_states) for _ in range(3)] for _ in range(num_states)]
        final = [rng.random() < 0.4 for _ in rows]

        def runs(text: str) -> bool:
            state = 0
            for character in text:
                state = rows[state][columns[max(start for start in starts if start <= ord(character))]]
            return final[state]

        return from_automaton(columns, np.array(rows, np.int32), np.array(final, np.uint8)), runs
    a, in_a = random_expression(rng, depth - 1)
    if kind < 0.3:
        return ~a, lambda text: not in_a(text)
    b, in_b = random_expression(rng, depth - 1)
    if kind < 0.55:
        return a & b, lambda text: in_a(text) and in_b(text)
    if kind < 0.8:
        return a | b, lambda text: in_a(text) or in_b(text)
    return a - b, lambda text: in_a(text) and not in_b(text)


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_nested_operators_are_set_operations_at_every_edge_of_the_code_points(seed: int) -> None:
    rng = random.Random(seed)
    language, holds = random_expression(rng, 3)
    expected = sorted(filter(holds, SHORT_OF_EDGES))
    short = Language.of(SHORT_OF_EDGES)
    assert [text for text in SHORT_OF_EDGES if text in language] == [text for text in SHORT_OF_EDGES if holds(text)]
    assert (language & short).words(1000) == tuple(expected)
    assert (language & short).num_words == len(expected)
    assert (language & short).shortest() == min(expected, key=lambda text: (len(text), text), default=None)
    assert language & short == Language.of(expected)
    assert (language & short) | (language - short) == language
    other, _ = random_expression(rng, 2)
    # Being equal is holding one another, and both are asked of the automata in other ways.
    assert (language == other) == (language <= other <= language)
    assert hash((language & other) | (language - other)) == hash(language)


@given(st.frozensets(st.sampled_from(EDGE_POINTS), max_size=6))
@settings(max_examples=100, deadline=None)
def test_words_of_one_code_point_are_ranges_of_one(points: frozenset[int]) -> None:
    listed = Language.of(map(chr, points))
    spans = Language.of_ranges([(point, point) for point in points])
    assert listed == spans
    assert hash(listed) == hash(spans)
    assert listed <= spans <= listed


@given(languages)
@settings(max_examples=100, deadline=None)
def test_automaton_is_complete_minimal_and_breadth_first(language: Language) -> None:
    table, accepting = language.table, language.accepting
    assert language.boundaries[0] == 0
    assert list(language.boundaries) == sorted(set(language.boundaries))
    assert not any(0xD800 <= boundary <= 0xDFFF for boundary in language.boundaries)
    assert all(len(row) == len(language.boundaries) for row in table)
    columns = list(zip(*table, strict=True))
    assert all(left != right for left, right in itertools.pairwise(columns))
    seen = [0]
    for state in seen:
        seen += [target for target in dict.fromkeys(table[state]) if target not in seen]
    assert seen == list(range(len(table)))
    # Moore's refinement, the specification of minimality, tells every two states apart.
    blocks = [int(flag) for flag in accepting]
    for _ in table:
        signatures = [(blocks[s], *(blocks[t] for t in table[s])) for s in range(len(table))]
        blocks = [signatures.index(signature) for signature in signatures]
    assert len(set(blocks)) == len(table)


@given(st.text(alphabet=st.characters(codec=None), max_size=4), languages)
@settings(max_examples=150, deadline=None)
def test_membership_follows_the_table_and_no_surrogate_is_in_any_word(text: str, language: Language) -> None:
    state = 0
    for character in text:
        index = max(i for i, boundary in enumerate(language.boundaries) if boundary <= ord(character))
        assert language.step(state, ord(character)) == language.table[state][index]
        state = language.table[state][index]
    has_surrogate = any(0xD800 <= ord(character) <= 0xDFFF for character in text)
    assert (text in language) == (language.accepting[state] and not has_surrogate)


@given(ranges)
@settings(max_examples=100, deadline=None)
def test_ranges_hold_exactly_their_scalar_values(spans: list[tuple[int, int]]) -> None:
    language = Language.of_ranges(spans)
    edges = {edge + d for span in [*spans, (0xD800, 0xDFFF)] for edge in span for d in (-1, 0, 1)}
    for point in edges - {-1, 0x110000}:
        is_inside = any(low <= point <= high for low, high in spans) and not 0xD800 <= point <= 0xDFFF
        assert (chr(point) in language) == is_inside
    merged = sum(
        not 0xD800 <= start <= 0xDFFF and any(low <= start <= high for low, high in spans) for start in range(300)
    )
    assert (language & Language.of_ranges([(0, 299)])).num_words == merged


def rests_by_walking(language: Language, state: int, limit: int) -> set[int]:
    lengths = set()
    here = {state}
    for length in range(limit + 1):
        if any(language.accepting[s] for s in here):
            lengths.add(length)
        here = {target for s in here for target in language.table[s]}
    return lengths


@given(languages)
@settings(max_examples=150, deadline=None)
def test_rests_are_the_lengths_that_walks_find(language: Language) -> None:
    limit = 4 * language.num_states
    all_consecutive = True
    for state in range(language.num_states):
        lengths = rests_by_walking(language, state, limit)
        assert language.is_live(state) == bool(lengths)
        if not lengths:
            assert language.num_words_from(state) == 0
            continue
        longest = language.max_rest(state)
        assert language.min_rest(state) == min(lengths)
        assert longest == max(lengths) if longest is not None else max(lengths) > language.num_states
        assert (language.num_words_from(state) is None) == (longest is None)
        top = max(lengths) if longest is not None else 2 * language.num_states
        all_consecutive &= all(length in lengths for length in range(min(lengths), top))
    assert language.has_all_lengths == all_consecutive


@given(languages)
@settings(max_examples=100, deadline=None)
def test_shortest_is_the_first_of_the_shortest_words(language: Language) -> None:
    word = language.shortest()
    assert (word is None) == language.is_empty
    if word is not None:
        assert word in language
        assert len(word) == language.min_rest(0)
        firsts = [text for text in ALL_SHORT if text in language and len(text) == len(word)]
        assert all(word <= text for text in firsts)


def test_words_with_surrogates_are_in_no_language() -> None:
    assert Language.of(["\ud800", "a\udfff"]) is NOTHING
    assert Language.of(["a", "\ud800"]) == Language.of(["a"])
    assert Language.of_ranges([(0xD800, 0xDFFF)]) is NOTHING
    assert "\ud800" not in EVERYTHING
    assert "\ud800" not in ~Language.of(["a"])
    assert ~Language.of_ranges([(0, 0xD7FF), (0xE000, 0x10FFFF)]) == ~Language.of_ranges([(0, 0x10FFFF)])
    assert Language.of_ranges([(0, 0x10FFFF)]).num_words == 0x110000 - 0x800


def test_constants_are_what_they_are_called() -> None:
    assert EVERYTHING.is_everything
    assert NOTHING.is_empty
    assert (EVERYTHING.num_words, NOTHING.num_words) == (None, 0)
    assert (NOTHING.words(0), NOTHING.shortest(), EVERYTHING.shortest()) == ((), None, "")
    assert EVERYTHING - NOTHING is EVERYTHING
    assert ~EVERYTHING is NOTHING


def test_counts_stay_at_their_ceiling() -> None:
    rows = np.array([[min(s + 1, 21)] for s in range(22)], np.int32)
    twenty = from_automaton({0: 0}, rows, np.array([s == 20 for s in range(22)], np.uint8))
    assert twenty.num_words == MAX_COUNT
    assert twenty.max_rest(0) == 20


def test_five_thousand_words_take_well_under_a_second() -> None:
    rng = random.Random(7)
    texts = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz_0123456789", k=rng.randint(1, 12))) for _ in range(5000)]
    NOTHING - Language.of(["a"])
    start = time.process_time()
    language = Language.of(texts)
    # Measured 0.07 s of processor time; the margin is for a slow machine.
    assert time.process_time() - start < 1.5
    assert language.words(5000) == tuple(sorted(set(texts)))


def test_too_many_states_are_refused_by_the_limits_name() -> None:
    with pytest.raises(LimitExceededError, match=f"{MAX_STATES} states, the limit max_language_states"):
        Language.of(["a" * (MAX_STATES + 1)])
    with pytest.raises(LimitExceededError, match="max_language_states"):
        Language.of(["abcdef"], max_states=5)

    def counter(modulus: int, letter: str) -> Language:
        rows = np.array([[s, (s + 1) % modulus] for s in range(modulus)], np.int32)
        flags = np.array([s == 0 for s in range(modulus)], np.uint8)
        return from_automaton({0: 0, ord(letter): 1, ord(letter) + 1: 0}, rows, flags)

    with pytest.raises(LimitExceededError, match="max_language_states"):
        counter(151, "a") & counter(149, "b")
