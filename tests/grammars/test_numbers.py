"""Sets of numbers against predicates on Fractions, and their bounds against Python's own comparisons."""

from __future__ import annotations

import functools
import math
import operator
import random
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.grammars.decimals import exact, numeral, plain
from specdec.grammars.errors import InvalidSchemaError, LimitExceededError
from specdec.grammars.numbers import NumberSet

Pair = tuple[NumberSet, Callable[[Fraction], bool]]

STEP = Fraction(1, 20)
SAMPLES = [STEP * k for k in range(-120, 121)] + [Fraction(k, 7) for k in (-9, 1, 22)] + [Fraction(10**30), Fraction(6)]
BOUNDS = st.integers(-100, 100).map(lambda k: Decimal(k) / 20)
MODULI = st.sampled_from([Decimal(text) for text in ("1", "2", "3", "6", "0.5", "0.05", "0.15", "1.25", "7", "100")])


def _atoms() -> st.SearchStrategy[Pair]:
    def bounds(value: Decimal) -> list[Pair]:
        bound = Fraction(value)
        return [
            (NumberSet.of(value), lambda x: x == bound),
            (NumberSet.at_least(value), lambda x: x >= bound),
            (NumberSet.above(value), lambda x: x > bound),
            (NumberSet.at_most(value), lambda x: x <= bound),
            (NumberSet.below(value), lambda x: x < bound),
        ]

    def multiples(value: Decimal) -> Pair:
        return NumberSet.multiples_of(value), lambda x: x % Fraction(value) == 0

    def enumeration(values: list[Decimal]) -> Pair:
        members = {Fraction(value) for value in values}
        return NumberSet.of_many(values), lambda x: x in members

    return st.one_of(
        BOUNDS.flatmap(lambda value: st.sampled_from(bounds(value))),
        MODULI.map(multiples),
        st.lists(BOUNDS, max_size=4).map(enumeration),
    )


def _wider(pairs: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.one_of(
        pairs.map(lambda a: (~a[0], lambda x: not a[1](x))),
        st.tuples(pairs, pairs).map(lambda ab: (ab[0][0] & ab[1][0], lambda x: ab[0][1](x) and ab[1][1](x))),
        st.tuples(pairs, pairs).map(lambda ab: (ab[0][0] | ab[1][0], lambda x: ab[0][1](x) or ab[1][1](x))),
    )


PAIRS = st.recursive(_atoms(), _wider, max_leaves=10)


@settings(max_examples=300, deadline=None)
@given(PAIRS)
def test_membership_is_what_the_operations_say(pair: Pair) -> None:
    numbers, predicate = pair
    assert [x for x in SAMPLES if numbers.holds(x)] == [x for x in SAMPLES if predicate(x)]


@settings(max_examples=200, deadline=None)
@given(PAIRS, PAIRS)
def test_a_set_and_its_complement_share_nothing_and_leave_nothing(a: Pair, b: Pair) -> None:
    assert (a[0] & ~a[0]).is_empty()
    assert (~(a[0] | ~a[0])).is_empty()
    assert ~~a[0] == a[0]
    left, right = ~(a[0] & b[0]), ~a[0] | ~b[0]
    assert (left & ~right).is_empty()
    assert (right & ~left).is_empty()


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_members_of_a_bounded_grid_are_listed_and_emptiness_is_exact(pair: Pair) -> None:
    numbers, predicate = pair
    bounded = numbers & NumberSet.multiples_of(0.05) & NumberSet.at_least(-6) & NumberSet.at_most(6)
    members = [x for x in (STEP * k for k in range(-120, 121)) if predicate(x)]
    assert bounded.is_empty() == (not members)
    assert bounded.finite_values(241) == tuple(plain(x) for x in members)
    assert not members or bounded.finite_values(len(members) - 1) is None


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_a_set_that_is_called_empty_has_no_sampled_member(pair: Pair) -> None:
    numbers, predicate = pair
    assert not (numbers.is_empty() and any(predicate(x) for x in SAMPLES))


@settings(max_examples=50, deadline=None)
@given(st.lists(PAIRS, max_size=7))
def test_a_union_of_many_has_the_members_of_each(pairs: list[Pair]) -> None:
    numbers = NumberSet.union([one for one, _ in pairs])
    assert [numbers.holds(x) for x in SAMPLES] == [any(predicate(x) for _, predicate in pairs) for x in SAMPLES]


CONDITIONS = st.recursive(
    st.sampled_from([Decimal(text) for text in ("0.5", "1", "1.5", "2", "3", "4", "6")]).map(
        lambda modulus: (NumberSet.multiples_of(modulus), lambda x: x % Fraction(modulus) == 0)
    ),
    _wider,
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(CONDITIONS)
def test_conditions_on_multiples_are_empty_iff_no_number_of_a_period_meets_them(pair: Pair) -> None:
    numbers, predicate = pair
    period = [Fraction(k, 4) for k in range(48)]
    assert numbers.is_empty() == (not any(predicate(x) for x in period))
    assert (~numbers).is_empty() == all(predicate(x) for x in period)
    assert (numbers & NumberSet.above(10**9)).is_empty() == numbers.is_empty()


def test_unbounded_sets_list_no_members() -> None:
    assert NumberSet.INTEGERS.finite_values(10**9) is None
    assert (NumberSet.at_least(0) & NumberSet.at_most(1)).finite_values(10**9) is None
    assert (NumberSet.INTEGERS & NumberSet.above(0)).finite_values(5) is None
    assert (NumberSet.INTEGERS & NumberSet.at_least(1) & NumberSet.at_most(5)).finite_values(5) == (1, 2, 3, 4, 5)


def test_one_number_is_one_value_however_it_is_written() -> None:
    assert NumberSet.of(1) == NumberSet.of(1.0) == NumberSet.of(Decimal("1.00"))
    assert NumberSet.of(1e22) == NumberSet.of(10**22)
    assert 1.0 in NumberSet.INTEGERS
    assert 4.0 in NumberSet.multiples_of(2.0)
    assert NumberSet.INTEGERS & NumberSet.multiples_of(0.5) == NumberSet.INTEGERS


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_double_is_recovered_from_its_value_and_from_its_numeral(value: float) -> None:
    assert exact(plain(exact(value))) == exact(value)
    text = numeral(value)
    assert text is not None
    assert float(text) == value
    assert Fraction(Decimal(text)) == exact(value) or len(str(int(value))) > 60


def _numerals_near(bound: float, rng: random.Random) -> list[str]:
    """Numerals of up to 15 digits, or integers of up to 18, close to the bound, many of them next to it."""
    texts = []
    for num_digits in (1, 5, 14, 15, 16, 17, 18):
        num_decimals = num_digits - max(len(str(abs(int(bound)))), 1) if abs(bound) >= 1 else num_digits
        if num_digits > 15 or num_decimals <= 0:
            scaled, num_decimals = int(bound), 0
        else:
            scaled = int(Fraction(bound) * 10**num_decimals)
        for offset in (-2, -1, 0, 1, 2, rng.randint(-1000, 1000)):
            value = scaled + offset
            digits = str(abs(value)).rjust(num_decimals + 1, "0")
            text = f"{digits[:-num_decimals]}.{digits[-num_decimals:]}" if num_decimals else digits
            if len(text.lstrip("0").replace(".", "")) <= (15 if num_decimals else 18):
                texts.append(("-" if value < 0 else "") + text)
    return texts


def _bounds(rng: random.Random) -> list[float]:
    bounds = [0.1, 0.1 + 0.2, 1 / 3, 5e-324, 1e22, 2.0**53, 2.0**53 + 2, 1.5, 1e-7, 9007199254740993.0, 1e17 + 16]
    bounds += [rng.uniform(-1, 1) * 10.0 ** rng.randint(-16, 18) for _ in range(1500)]
    bounds += [float(f"{rng.uniform(-1, 1) * 10.0 ** rng.randint(-6, 15):.{rng.randint(1, 15)}g}") for _ in range(500)]
    return bounds + [math.nextafter(bound, 1e300) for bound in bounds] + [math.nextafter(b, -1e300) for b in bounds]


def test_bounds_compare_with_numerals_as_python_compares_parsed_numbers() -> None:
    rng = random.Random(3)
    num_equal = 0
    for bound in _bounds(rng):
        least, above, only = NumberSet.at_least(bound), NumberSet.above(bound), NumberSet.of(bound)
        for text in _numerals_near(bound, rng):
            parsed: int | float = float(text) if "." in text else int(text)
            value = Fraction(Decimal(text))
            assert least.holds(value) == (parsed >= bound), (text, bound)
            assert above.holds(value) == (parsed > bound), (text, bound)
            assert only.holds(value) == (parsed == bound), (text, bound)
            num_equal += parsed == bound
    assert num_equal > 500


def test_the_complement_of_an_enumeration_is_no_larger_than_it() -> None:
    rng = random.Random(5)
    members = [rng.randint(-(10**9), 10**9) / 64 for _ in range(1000)]
    enumeration = NumberSet.of_many(members)
    others = ~enumeration
    assert len(others.points) == len(set(members))
    assert enumeration | others == NumberSet.EVERYTHING
    assert enumeration & others == NumberSet.NOTHING
    assert (others & NumberSet.INTEGERS & NumberSet.of_many(members)).is_empty()
    assert enumeration.finite_values(1000) == tuple(plain(exact(value)) for value in sorted(set(members)))


def test_what_is_too_large_is_refused_by_name() -> None:
    with pytest.raises(LimitExceededError, match="40000 terms is over max_number_terms=32768"):
        NumberSet.of_many(range(40_000))
    many = NumberSet.of_many(range(0, 40_000, 2))
    with pytest.raises(LimitExceededError, match="max_number_terms"):
        many | NumberSet.of_many(range(1, 40_000, 2))
    with pytest.raises(LimitExceededError, match="max_number_digits"):
        NumberSet.of(Decimal("1e-400000000"))
    with pytest.raises(LimitExceededError, match="max_number_digits"):
        NumberSet.at_least(10**4100)
    primes = [n for n in range(2, 600) if all(n % k for k in range(2, n))]
    multiples = [NumberSet.multiples_of(prime) for prime in primes]
    with pytest.raises(LimitExceededError, match="max_number_moduli"):
        functools.reduce(operator.or_, multiples)
    with pytest.raises(LimitExceededError, match="max_condition_steps"):
        functools.reduce(operator.and_, map(operator.or_, multiples[::2], multiples[1::2]))
    with pytest.raises(LimitExceededError, match="max_number_digits"):
        NumberSet.multiples_of(3**8000) & NumberSet.multiples_of(7**4500)


@pytest.mark.parametrize("value", [0, -1, 0.0, Decimal("-0.5")])
def test_multiples_of_nothing_positive_are_refused(value: float | Decimal) -> None:
    with pytest.raises(InvalidSchemaError, match="above 0"):
        NumberSet.multiples_of(value)


def test_what_is_no_json_number_is_refused() -> None:
    with pytest.raises(InvalidSchemaError, match="not a JSON number"):
        NumberSet.of(math.inf)


def test_thousands_of_excluded_multiples_end_in_time_and_not_as_empty() -> None:
    numbers = NumberSet.INTEGERS & NumberSet.above(0) & NumberSet.below(10**9)
    for prime in (2, 3, 5, 7, 11):
        numbers &= ~NumberSet.multiples_of(prime)
    assert not numbers.is_empty()
    assert numbers.finite_values(10**6) is None
