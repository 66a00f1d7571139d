"""Automata of numerals against their definition: a regular expression, a count of digits and the value."""

from __future__ import annotations

import functools
import itertools
import json
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from specdec.grammars.decimals import numeral, plain, regular_numeral
from specdec.grammars.errors import LimitExceededError
from specdec.grammars.numbers import NumberSet
from specdec.grammars.numerals import NumeralAutomaton, combine, load_nearest_ends, nearest_ends, numeral_automaton
from specdec.grammars.tails import Tails
from specdec.grammars.walk import DEAD

ALL_BYTES = frozenset(range(256))
INTEGERS = NumberSet.INTEGERS

at_least, at_most, above, below = NumberSet.at_least, NumberSet.at_most, NumberSet.above, NumberSet.below
multiples_of = NumberSet.multiples_of

NAMED = {
    "every number": NumberSet.EVERYTHING,
    "integers": INTEGERS,
    "integers 0..100": INTEGERS & at_least(0) & at_most(100),
    "0..1": at_least(0) & at_most(1),
    "at least 0": at_least(0),
    "above 0": above(0),
    "natural numbers": INTEGERS & at_least(0),
    "int32": INTEGERS & at_least(-(2**31)) & at_most(2**31 - 1),
    "int64": INTEGERS & at_least(-(2**63)) & at_most(2**63 - 1),
    "latitudes": at_least(-90) & at_most(90),
    "cents": multiples_of(0.01),
    "prices": multiples_of(0.01) & at_least(0) & below(1000),
    "fives": multiples_of(5),
    "no fives": ~multiples_of(5),
    "sevens": multiples_of(7) & at_least(-123456) & below(98765432.1),
    "0.00001": multiples_of(0.00001),
    "0.05": multiples_of(0.05),
    "10**12": multiples_of(10**12),
    "no integers": ~INTEGERS,
    "60 but not 7": multiples_of(60) & ~multiples_of(7),
    "all but three": ~NumberSet.of_many([0, 1.5, -3]),
    "integers but three": INTEGERS & ~NumberSet.of_many([0, 15, -3]),
    "a bound of 17 digits": at_least(0.1 + 0.2) & at_most(2 / 3),
    "two ranges": (INTEGERS & at_least(10) & at_most(99)) | (above(1000) & below(1000.5)),
    "multiples of no short numeral": multiples_of(0.1 + 0.2) & at_least(-2) & at_most(10),
}
TYPICAL = [name for name in NAMED if name not in {"multiples of no short numeral", "60 but not 7"}]


@functools.cache
def _automaton(numbers: NumberSet, canonical: bool = False) -> NumeralAutomaton:
    return numeral_automaton(numbers, ALL_BYTES, canonical=canonical)


def _denotes(numbers: NumberSet, text: str, *, canonical: bool = False) -> bool:
    """The definition, for sets without single numbers that are spelt as a whole."""
    match = re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]{1,2})?", text, re.ASCII)
    if match is None:
        return False
    whole, fraction, exponent = match.groups()
    num_digits = len((whole if whole != "0" else "") + (fraction or "")[1:])
    if fraction is None and exponent is None:
        regular = num_digits <= 18 and text != "-0"
    else:
        regular = num_digits <= 15 and (fraction is not None or whole != "0")
    if fraction is not None and (numbers & ~INTEGERS).is_empty():
        regular = False
    if exponent is not None and (canonical or not (~numbers).is_empty()):
        regular = False
    if canonical and fraction is not None and fraction.endswith("0"):
        regular = False
    return regular and numbers.holds(Fraction(Decimal(text)))


def _walk(automaton: NumeralAutomaton, rng: random.Random) -> bytes:
    state, text = automaton.START, bytearray()
    while True:
        edges = [byte for byte, target in enumerate(automaton.steps[state]) if target != DEAD]
        if not edges or (automaton.accepting[state] and rng.random() < 0.15):
            return bytes(text)
        # Ends of ranges are where the mistakes are.
        byte = rng.choice([edges[0], edges[-1], *edges])
        text.append(byte)
        state = automaton.steps[state][byte]


def _language(automaton: NumeralAutomaton) -> Iterator[bytes]:
    pending = [(automaton.START, b"")]
    while pending:
        state, text = pending.pop()
        if automaton.accepting[state]:
            yield text
        pending += [(to, text + bytes([byte])) for byte, to in enumerate(automaton.steps[state]) if to != DEAD]


def _sets() -> st.SearchStrategy[NumberSet]:
    bounds = st.one_of(
        st.integers(-300, 300).map(lambda k: Decimal(k) / 20),
        st.sampled_from([10**17, 10**18, -(10**18) + 1, 123456789012345, 99999999999999.9, 1e-15, -1e-14, 0.1 + 0.2]),
    )
    moduli = st.sampled_from([1, 1, 2, 3, 5, 7, 10, 15, 0.5, 0.05, 0.1, 0.15, 1.25, 0.00001, 10**12, 1e-20])
    atoms = st.one_of(
        bounds.flatmap(lambda v: st.sampled_from([at_least(v), at_most(v), above(v), below(v), ~NumberSet.of(v)])),
        moduli.map(multiples_of),
        st.just(INTEGERS),
    )
    return st.recursive(
        atoms,
        lambda sets: st.one_of(
            sets.map(lambda a: ~a),
            st.tuples(sets, sets).map(lambda ab: ab[0] & ab[1]),
            st.tuples(sets, sets).map(lambda ab: ab[0] | ab[1]),
        ),
        max_leaves=6,
    )


SETS = _sets()


@pytest.mark.parametrize("canonical", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_short_texts_are_accepted_iff_they_denote_a_member(name: str, canonical: bool) -> None:
    numbers = NAMED[name]
    automaton = _automaton(numbers, canonical)
    for length in range(6):
        for letters in itertools.product(
            "-0159.e" if length == 5 else "-0123579.e+", repeat=length if length < 5 else 4
        ):
            text = "".join(letters)
            assert (text.encode() in automaton) == _denotes(numbers, text, canonical=canonical), text


@settings(max_examples=120, deadline=None)
@given(SETS, st.booleans(), st.integers(0, 2**32))
def test_of_any_set_texts_are_accepted_iff_they_denote_a_member(numbers: NumberSet, canonical: bool, seed: int) -> None:
    automaton = _automaton(numbers, canonical)
    whole = _whole(numbers)
    rng = random.Random(seed)
    texts = ["".join(letters) for length in range(5) for letters in itertools.product("-015.", repeat=length)]
    texts += [_random_numeral(rng) for _ in range(100)]
    texts += [_next_to(point, rng) for point in numbers.points for _ in range(20)]
    if not automaton.is_empty():
        walked = [_walk(automaton, rng).decode() for _ in range(60)]
        texts += walked + [_mutated(text, rng) for text in walked]
    for text in texts:
        if text not in whole:
            assert (text.encode() in automaton) == _denotes(numbers, text, canonical=canonical), text


def _whole(numbers: NumberSet) -> set[str | None]:
    """Spellings of single numbers that the definition above leaves out."""
    values = {*numbers.points, *(Fraction(value) for value in numbers.finite_values(64) or ())}
    return {numeral(plain(value)) for value in values if regular_numeral(value) is None}


def _random_numeral(rng: random.Random) -> str:
    num_digits = rng.choice([1, 2, 3, 14, 15, 16, 17, 18, 19])
    digits = "".join(rng.choice("0123456789") for _ in range(num_digits)).lstrip("0") or "0"
    if rng.random() < 0.6:
        digits += "." + "".join(rng.choice("0059") for _ in range(rng.choice([1, 2, 15, max(15 - num_digits, 1)])))
    return rng.choice(["", "-"]) + digits


def _next_to(point: Fraction, rng: random.Random) -> str:
    num_decimals = rng.choice([0, 0, 1, 2, 5, 13, 14, 15])
    scaled = int(point * 10**num_decimals) + rng.choice([-1, 0, 0, 1])
    digits = str(abs(scaled)).rjust(num_decimals + 1, "0")
    text = f"{digits[:-num_decimals]}.{digits[-num_decimals:]}" if num_decimals else digits
    return "-" + text if scaled < 0 else text


def _mutated(text: str, rng: random.Random) -> str:
    index = rng.randrange(len(text))
    return text[:index] + rng.choice(["", *"0123456789.-"]) + text[index + rng.randint(0, 1) :]


@settings(max_examples=120, deadline=None)
@given(SETS, st.booleans())
def test_the_automaton_is_trimmed_acyclic_and_minimal(numbers: NumberSet, canonical: bool) -> None:
    automaton = _automaton(numbers, canonical)
    _check_form(automaton)
    rows = {(row.tobytes(), accepting) for row, accepting in zip(automaton.table, automaton.accepting, strict=True)}
    assert len(rows) == automaton.num_states


def _check_form(automaton: NumeralAutomaton) -> None:
    assert automaton.table.dtype == np.int16
    assert automaton.accepting.dtype == np.uint8
    assert [list(row) for row in automaton.steps] == automaton.table.tolist()
    targets = [{to for to in row if to != DEAD} for row in automaton.table.tolist()]
    assert automaton.is_final == [not states for states in targets]
    # Peeling off the states that lead only to peeled ones ends with none left iff there is no cycle.
    heights: dict[int, int] = {}
    while len(heights) < len(targets):
        peeled = [state for state in range(len(targets)) if state not in heights and targets[state] <= heights.keys()]
        assert peeled, "a cycle"
        heights |= {state: 1 + max((heights[to] for to in targets[state]), default=0) for state in peeled}
    assert heights[0] <= 61
    if automaton.is_empty():
        assert targets == [set()]
    else:
        assert all(automaton.accepting[state] or targets[state] for state in range(len(targets)))


@settings(max_examples=60, deadline=None)
@given(SETS)
def test_it_is_empty_iff_no_member_has_a_numeral(numbers: NumberSet) -> None:
    few = numbers & multiples_of(0.25) & at_least(-3) & at_most(3)
    automaton = _automaton(few, True)
    assert automaton.is_empty() == few.is_empty()
    texts = sorted(text.decode() for text in _language(automaton))
    assert sorted(map(Decimal, texts)) == list(few.finite_values(100) or ())


def test_zeros_at_the_end_and_an_integer_with_a_fraction_are_not_canonical() -> None:
    numbers = multiples_of(0.05) & at_least(-1) & at_most(Decimal("1.5"))
    members = numbers.finite_values(100)
    assert members is not None
    texts = [str(value).encode() for value in members]
    longer = [text + (b"0" if b"." in text else b".0") for text in texts]
    assert sorted(_language(_automaton(numbers, True))) == sorted(texts)
    assert all(text in _automaton(numbers) for text in texts + longer)


@pytest.mark.parametrize("numbers", [NumberSet.EVERYTHING, ~INTEGERS, at_least(-1), multiples_of(0.01)])
def test_canonical_numerals_are_equal_iff_their_values_are(numbers: NumberSet) -> None:
    rng = random.Random(7)
    automaton = _automaton(numbers, True)
    texts = {_walk(automaton, rng) for _ in range(2000)}
    assert len(texts) > 500
    assert len({float(text) if b"." in text else int(text) for text in texts}) == len(texts)
    assert b"-0.0" not in texts


@pytest.mark.parametrize("canonical", [False, True])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e100, b"1e+100"),
        (5e-324, b"5e-324"),
        (-1.5e-17, b"-1.5e-17"),
        (0.1 + 0.2, b"0.30000000000000004"),
        (10**22, b"10000000000000000000000"),
        (2**63, b"9223372036854775808"),
        (-(10**18), b"-1000000000000000000"),
    ],
)
def test_a_number_of_no_regular_numeral_is_spelt_as_a_whole(value: float, text: bytes, canonical: bool) -> None:
    alone = NumberSet.of(value)
    assert list(_language(_automaton(alone, canonical))) == [text]
    assert json.loads(text) == value
    with_others = alone | NumberSet.of_many([0, 7.5])
    assert {text, b"0", b"7.5"} <= set(_language(_automaton(with_others, canonical)))
    assert text not in _automaton(at_least(value), canonical)


def test_a_single_multiple_of_many_digits_is_spelt_as_a_whole() -> None:
    numbers = multiples_of(10**20) & above(0) & below(1.5e20)
    assert list(_language(_automaton(numbers))) == [b"100000000000000000000"]


@pytest.mark.parametrize("numbers", [NumberSet.NOTHING, above(1e-20) & below(1e-19), at_least(1e20) & INTEGERS])
def test_sets_whose_members_have_no_numeral_give_the_empty_automaton(numbers: NumberSet) -> None:
    automaton = _automaton(numbers)
    assert automaton.is_empty()
    assert automaton.table.shape == (1, 256)


def test_only_spellable_bytes_are_used() -> None:
    automaton = numeral_automaton(NumberSet.EVERYTHING, frozenset(b"0123456789.+"))
    assert set(np.flatnonzero((automaton.table != DEAD).any(axis=0)).tolist()) == set(b"0123456789.")
    _check_form(automaton)
    assert numeral_automaton(NumberSet.of(-5), frozenset(b"0123456789")).is_empty()
    assert numeral_automaton(NumberSet.of(5e-324), frozenset(b"0123456789.e")).is_empty()


@pytest.mark.parametrize("name", TYPICAL)
def test_typical_sets_have_few_states(name: str) -> None:
    assert _automaton(NAMED[name]).num_states < 300


SCHEMAS: list[tuple[dict[str, Any], NumberSet]] = [
    ({"minimum": 0.1}, at_least(0.1)),
    ({"maximum": 0.30000000000000004, "minimum": -5e-324}, at_most(0.1 + 0.2) & at_least(-5e-324)),
    ({"exclusiveMinimum": 1 / 3, "exclusiveMaximum": 1e17}, above(1 / 3) & below(1e17)),
    (
        {"type": "integer", "minimum": -(2.0**56), "maximum": 1.2345678901234567e17},
        INTEGERS & at_least(-(2.0**56)) & at_most(1.2345678901234567e17),
    ),
    (
        {"exclusiveMinimum": -99999999999999.9, "maximum": 123456789012345.67},
        above(-99999999999999.9) & at_most(123456789012345.67),
    ),
    ({"multipleOf": 7, "minimum": -100.5}, multiples_of(7) & at_least(-100.5)),
    ({"multipleOf": 0.01}, multiples_of(0.01)),
    ({"multipleOf": 0.35, "maximum": 1e6}, multiples_of(0.35) & at_most(1e6)),
    ({"multipleOf": 0.00001, "exclusiveMinimum": 0}, multiples_of(0.00001) & above(0)),
    ({"not": {"multipleOf": 0.5}, "minimum": -3}, ~multiples_of(0.5) & at_least(-3)),
    ({"not": {"multipleOf": 3}, "type": "integer"}, ~multiples_of(3) & INTEGERS),
    ({"not": {"minimum": 0.7}}, ~at_least(0.7)),
    ({"not": {"enum": [0.3, 1, 1e15]}}, ~NumberSet.of_many([0.3, 1, 1e15])),
]


@pytest.mark.parametrize("canonical", [False, True])
@pytest.mark.parametrize(("schema", "numbers"), SCHEMAS, ids=[json.dumps(schema) for schema, _ in SCHEMAS])
def test_jsonschema_agrees_with_every_numeral_that_is_generated(
    schema: dict[str, Any], numbers: NumberSet, canonical: bool
) -> None:
    rng = random.Random(11)
    automaton = _automaton(numbers, canonical)
    has_fractional_modulus = "0." in json.dumps(schema.get("multipleOf", schema.get("not", {}).get("multipleOf")))
    parse_float = Decimal if has_fractional_modulus or "1e-05" in json.dumps(schema) else float
    validator = Draft202012Validator(json.loads(json.dumps(schema), parse_float=parse_float))
    for _ in range(400):
        text = _walk(automaton, rng)
        assert validator.is_valid(json.loads(text, parse_float=parse_float)), text


@settings(max_examples=60, deadline=None)
@given(st.lists(SETS, min_size=0, max_size=4), st.integers(0, 2**32))
def test_a_combined_automaton_knows_which_members_accept(sets: list[NumberSet], seed: int) -> None:
    rng = random.Random(seed)
    automata = [_automaton(numbers) for numbers in sets]
    combined = combine(automata)
    _check_form(combined)
    texts = [_random_numeral(rng).encode() for _ in range(30)] + [b"", b"-", b"0", b"1.5"]
    texts += [_walk(one, rng) for one in automata if not one.is_empty() for _ in range(30)]
    for text in texts:
        state = combined.START
        for byte in text:
            state = combined.steps[state][byte] if state != DEAD else DEAD
        expected = {index for index, one in enumerate(automata) if text in one}
        assert (combined.accepts[state] if state != DEAD else set()) == expected
        assert (text in combined) == bool(expected)


def test_automata_that_are_too_large_are_refused_by_name() -> None:
    with pytest.raises(LimitExceededError, match="20001 states, over max_numeral_states=20000"):
        _automaton(multiples_of(9973))
    with pytest.raises(LimitExceededError, match="max_numeral_steps"):
        _automaton(multiples_of(10**12 + 39))
    with pytest.raises(LimitExceededError, match="5 states, over max_numeral_states=4"):
        numeral_automaton(INTEGERS, ALL_BYTES, max_states=4)
    parts = [_automaton(multiples_of(prime)) for prime in (7, 11, 13)]
    with pytest.raises(LimitExceededError, match="max_numeral_states=500"):
        combine(parts, max_states=500)


@pytest.mark.parametrize("name", NAMED)
def test_a_nearest_end_is_one_byte_nearer_from_the_next_state(name: str) -> None:
    automaton = _automaton(NAMED[name])
    following, longest = nearest_ends(automaton.table, automaton.accepting)
    compiled, compiled_longest = load_nearest_ends()(automaton.table, automaton.accepting)
    assert np.array_equal(following, compiled)
    assert longest == compiled_longest
    lengths = [len(Tails.of_number(automaton, state)[0]) for state in range(automaton.num_states)]
    assert max(lengths) == longest
    for state, row in enumerate(automaton.table.tolist()):
        if not automaton.accepting[state]:
            assert lengths[state] == 1 + min(lengths[target] for target in row if target != DEAD)
