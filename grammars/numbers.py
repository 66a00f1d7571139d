"""Exact sets of numbers: values, whatever their spelling, closed under and, or, not.

A set cuts the line at points. It holds each point or does not, and between two neighbours it holds the numbers that
meet a condition on their multiples (multiples.py; "integer" is a multiple of 1). Every operation is one pass over the
points of both operands, so an enumeration and its complement cost the same.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import zip_longest
from typing import ClassVar

import msgspec

from specdec.grammars.decimals import Number, exact, plain
from specdec.grammars.errors import InvalidSchemaError, LimitExceededError
from specdec.grammars.multiples import (
    Branch,
    Condition,
    ConditionAlgebra,
    common_multiple,
    holds,
    negation,
    num_branches,
    paths,
)

MAX_NUMBER_TERMS = 32_768
_MAX_SEARCH_STEPS = 20_000


class NumberSet(msgspec.Struct, frozen=True, cache_hash=True):
    """A set of numbers; equal sets may differ in form, so compare with `(a & ~b).is_empty()`."""

    points: tuple[Fraction, ...]
    """In ascending order."""
    includes: tuple[bool, ...]
    """Whether each point is a member."""
    gaps: tuple[Condition, ...]
    """Which numbers below the first point, between each two, and above the last one are members."""

    EVERYTHING: ClassVar[NumberSet]
    NOTHING: ClassVar[NumberSet]
    INTEGERS: ClassVar[NumberSet]

    @staticmethod
    def of(value: Number) -> NumberSet:
        return NumberSet((exact(value),), (True,), (False, False))

    @staticmethod
    def of_many(values: Iterable[Number]) -> NumberSet:
        points = tuple(sorted({exact(value) for value in values}))
        _check_terms(len(points))
        return NumberSet(points, (True,) * len(points), (False,) * (len(points) + 1))

    @staticmethod
    def at_least(value: Number) -> NumberSet:
        return NumberSet((exact(value),), (True,), (False, True))

    @staticmethod
    def above(value: Number) -> NumberSet:
        return NumberSet((exact(value),), (False,), (False, True))

    @staticmethod
    def at_most(value: Number) -> NumberSet:
        return NumberSet((exact(value),), (True,), (True, False))

    @staticmethod
    def below(value: Number) -> NumberSet:
        return NumberSet((exact(value),), (False,), (True, False))

    @staticmethod
    def multiples_of(value: Number) -> NumberSet:
        modulus = exact(value)
        if modulus <= 0:
            raise InvalidSchemaError(f"the numbers of which others are multiples are above 0, not {value}")
        return NumberSet((), (), (Branch(modulus, multiples=True, others=False),))

    @staticmethod
    def union(sets: Sequence[NumberSet]) -> NumberSet:
        """As `|` of all, but in pairs of pairs, so that many small sets are not each united with a large one."""
        layer = list(sets)
        while len(layer) > 1:
            layer = [one | other for one, other in zip_longest(layer[::2], layer[1::2], fillvalue=NumberSet.NOTHING)]
        return layer[0] if layer else NumberSet.NOTHING

    def __and__(self, other: NumberSet) -> NumberSet:
        if self == NumberSet.EVERYTHING or other == NumberSet.NOTHING:
            return other
        if other == NumberSet.EVERYTHING or self == NumberSet.NOTHING:
            return self
        return _combined(self, other, ConditionAlgebra().intersection)

    def __or__(self, other: NumberSet) -> NumberSet:
        if self == NumberSet.EVERYTHING or other == NumberSet.NOTHING:
            return self
        if other == NumberSet.EVERYTHING or self == NumberSet.NOTHING:
            return other
        return _combined(self, other, ConditionAlgebra().union)

    def __invert__(self) -> NumberSet:
        return NumberSet(
            self.points, tuple(not one for one in self.includes), tuple(negation(gap) for gap in self.gaps)
        )

    def __contains__(self, value: Number) -> bool:
        return self.holds(exact(value))

    def holds(self, value: Fraction) -> bool:
        index = bisect_left(self.points, value)
        if index < len(self.points) and self.points[index] == value:
            return self.includes[index]
        return holds(self.gaps[index], value)

    def is_empty(self) -> bool:
        """True only of an empty set; False of one only where thousands of multiples are all excluded."""
        if any(self.includes):
            return False
        num_steps = _MAX_SEARCH_STEPS
        for gap, low, high in self._bounded_gaps():
            for common, excluded in paths(gap):
                first, past = _multiples_between(common, low, high)
                # No excluded modulus divides the common one, so members recur: an unbounded stretch has some.
                if common is None or first is None or past is None:
                    return False
                num_steps -= max(past - first, 0)
                if num_steps < 0 or next(_members(common, excluded, first, past), None) is not None:
                    return False
        return True

    def finite_values(self, limit: int) -> tuple[int | Decimal, ...] | None:
        """The members in ascending order; None if there are more than `limit`, or it takes too long to tell."""
        members = [point for point, is_member in zip(self.points, self.includes, strict=True) if is_member]
        num_steps = _MAX_SEARCH_STEPS
        for gap, low, high in self._bounded_gaps():
            for common, excluded in paths(gap):
                first, past = _multiples_between(common, low, high)
                if common is None or first is None or past is None:
                    return None
                num_steps -= max(past - first, 0)
                if num_steps < 0 or len(members) > limit:
                    return None
                members += _members(common, excluded, first, past)
        if len(members) > limit:
            return None
        return tuple(plain(value) for value in sorted(members))

    def _bounded_gaps(self) -> Iterator[tuple[Condition, Fraction | None, Fraction | None]]:
        return zip(self.gaps, (None, *self.points), (*self.points, None), strict=True)


def _combined(a: NumberSet, b: NumberSet, combine: Callable[[Condition, Condition], Condition]) -> NumberSet:
    """One pass over the points of both; a point that is like both its sides is left out."""
    points: list[Fraction] = []
    includes: list[bool] = []
    gaps: list[Condition] = []
    known: dict[tuple[Condition, Condition], Condition] = {}
    num_terms = i = j = 0
    while True:
        pair = (a.gaps[i], b.gaps[j])
        if pair not in known:
            known[pair] = combine(*pair)
        gap = known[pair]
        if gaps and gaps[-1] == gap and includes[-1] == holds(gap, points[-1]):
            del points[-1], includes[-1]
        else:
            gaps.append(gap)
            num_terms += 1 + num_branches(gap)
            _check_terms(num_terms)
        p = a.points[i] if i < len(a.points) else None
        q = b.points[j] if j < len(b.points) else None
        if p is None and q is None:
            return NumberSet(tuple(points), tuple(includes), tuple(gaps))
        point = p if q is None or (p is not None and p <= q) else q
        assert point is not None
        in_a = a.includes[i] if p == point else holds(a.gaps[i], point)
        in_b = b.includes[j] if q == point else holds(b.gaps[j], point)
        points.append(point)
        includes.append(bool(combine(in_a, in_b)))
        i += p == point
        j += q == point


def _multiples_between(
    modulus: Fraction | None, low: Fraction | None, high: Fraction | None
) -> tuple[int | None, int | None]:
    """(first, past): k * modulus is between the two, exclusively, for k in range(first, past); None is no bound."""
    if modulus is None:
        return None, None
    first = None if low is None else math.floor(low / modulus) + 1
    past = None if high is None else math.ceil(high / modulus)
    return first, past


def _members(common: Fraction, excluded: tuple[Fraction, ...], first: int, past: int) -> Iterator[Fraction]:
    # k * common is a multiple of an excluded modulus iff k is one of these.
    factors = [common_multiple(common, modulus) / common for modulus in excluded]
    return (k * common for k in range(first, past) if all(k % factor for factor in factors))


def _check_terms(num_terms: int) -> None:
    if num_terms > MAX_NUMBER_TERMS:
        raise LimitExceededError(f"a set of numbers of {num_terms} terms is over max_number_terms={MAX_NUMBER_TERMS}")


NumberSet.EVERYTHING = NumberSet((), (), (True,))
NumberSet.NOTHING = NumberSet((), (), (False,))
NumberSet.INTEGERS = NumberSet.multiples_of(1)
