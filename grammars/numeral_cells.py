"""What a set of numbers holds of the values that numerals with a common prefix may have.

Of numerals with F digits after the point, those that begin with the digits P and go on with i more have the values
P * 10**i + s for 0 <= s < 10**i, in units of 10**-F: a cell of the grid of that unit. A Cell tells what the set
holds of it relative to its start and no more than can be told apart there, so that prefixes whose continuations are
the same mostly have equal cells, on whatever grid.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from fractions import Fraction
from typing import TypeAlias

from specdec.grammars.errors import LimitExceededError
from specdec.grammars.multiples import Branch, Condition, ConditionAlgebra, holds, num_branches, without
from specdec.grammars.numbers import NumberSet

MAX_NUMERAL_STEPS = 700_000

Cell: TypeAlias = tuple[int, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
"""How many digits are free; from which offsets on which conditions hold; (modulus, offset of its first multiple)."""

_NONE, _ALL = 0, 1
_POWERS = [10**exponent for exponent in range(64)]


class Conditions:
    """Conditions on integers by number (0: none, 1: all), and the work done on them, counted."""

    def __init__(self) -> None:
        self._known: list[Condition] = [False, True]
        self._numbers: dict[Condition, int] = {False: _NONE, True: _ALL}
        self._reduced: dict[tuple[int, tuple[int, ...]], int] = {}
        self._num_steps = 0
        self.algebra = ConditionAlgebra()
        self.moduli: list[tuple[int, ...]] = [(), ()]
        """Of each condition, in ascending order."""

    def number(self, condition: Condition) -> int:
        if condition not in self._numbers:
            self._numbers[condition] = len(self._known)
            self._known.append(condition)
            self.moduli.append(tuple(sorted({modulus.numerator for modulus in _moduli(condition)})))
        return self._numbers[condition]

    def reduced(self, number: int, low: int, high: int) -> int:
        """The condition for the integers from low to high."""
        absent = tuple([modulus for modulus in self.moduli[number] if -low % modulus > high - low])
        if not absent:
            return number
        if (number, absent) not in self._reduced:
            gone = frozenset(absent)
            self.spend(num_branches(self._known[number]))
            condition = without(self._known[number], lambda modulus: modulus.numerator in gone)
            self._reduced[number, absent] = self.number(condition)
        return self._reduced[number, absent]

    def holds(self, number: int, value: int) -> bool:
        return holds(self._known[number], Fraction(value))

    def spend(self, num_steps: int) -> None:
        self._num_steps += num_steps
        if self._num_steps > MAX_NUMERAL_STEPS:
            raise LimitExceededError(
                f"the numerals of a set of numbers take over max_numeral_steps={MAX_NUMERAL_STEPS} to tell apart"
            )


class Grid:
    """The part of a set at or above 0 that is a multiple of 10**-num_decimals, in that unit."""

    def __init__(self, numbers: NumberSet, num_decimals: int, conditions: Conditions) -> None:
        self._conditions = conditions
        self._starts: list[int] = [0]
        self._numbers: list[int] = []
        scale = 10**num_decimals
        step = Fraction(1, scale)
        conditions.spend(len(numbers.points))
        number_of = functools.cache(lambda gap: conditions.number(conditions.algebra.on_grid(gap, step)))
        self._numbers.append(number_of(numbers.gaps[0]))
        for point, is_member, gap in zip(numbers.points, numbers.includes, numbers.gaps[1:], strict=True):
            unit, off = divmod(point.numerator * scale, point.denominator)
            if not off:
                self._append(unit, _ALL if is_member else _NONE)
            self._append(unit + 1, number_of(gap))

    def _append(self, start: int, number: int) -> None:
        start = max(start, 0)
        if start == self._starts[-1]:
            self._numbers[-1] = number
        elif number != self._numbers[-1]:
            self._starts.append(start)
            self._numbers.append(number)

    def holds(self, value: int) -> bool:
        return self._conditions.holds(self._numbers[bisect_right(self._starts, value) - 1], value)

    def cell(self, prefix: int, num_free: int) -> Cell | None:
        """The cell of a prefix with more digits to come; None where it has no member."""
        conditions = self._conditions
        starts = self._starts
        width = _POWERS[num_free]
        low = prefix * width
        past = low + width
        index = bisect_right(starts, low) - 1
        segments: list[tuple[int, int]] = []
        moduli: list[int] | tuple[int, ...] = ()
        num_steps = 0
        start = low
        while start < past:
            index += 1
            num_steps += 1
            end = past if index == len(starts) else min(starts[index], past)
            number = self._numbers[index - 1]
            if number > _ALL:
                # A step is a microsecond or two.
                num_steps += len(conditions.moduli[number])
                number = conditions.reduced(number, start, end - 1)
                moduli = (*moduli, *conditions.moduli[number]) if segments else conditions.moduli[number]
            if not segments or segments[-1][1] != number:
                segments.append((start - low, number))
            start = end
        conditions.spend(num_steps)
        if len(segments) == 1 and segments[0][1] == _NONE:
            return None
        if not moduli:
            return num_free, tuple(segments), ()
        return num_free, tuple(segments), tuple([(modulus, -low % modulus) for modulus in sorted(set(moduli))])


class Grids:
    """The part of a set at or above 0, on every grid that is asked for."""

    def __init__(self, numbers: NumberSet, conditions: Conditions) -> None:
        self._set = numbers
        self._conditions = conditions
        self._grids: dict[int, Grid] = {}
        self._periods = [_period(gap) for gap in numbers.gaps]
        self._floors = [math.floor(point) for point in numbers.points]

    def __getitem__(self, num_decimals: int) -> Grid:
        if num_decimals not in self._grids:
            self._grids[num_decimals] = Grid(self._set, num_decimals, self._conditions)
        return self._grids[num_decimals]

    def stretch(self, prefix: int, max_more: int) -> tuple[int, Condition, int] | None:
        """What the cells of an integer's prefix depend on besides its number of digits; None: on more than that.

        There are at most max_more digits to come, unless the first part says that fewer lead past the last point
        and there are no members there; the condition is the one that holds at all these values.
        """
        self._conditions.spend(1)
        floors = self._floors
        if floors and self._set.gaps[-1] is False:
            if prefix > floors[-1]:
                return 0, False, 0
            max_more = len(str(min(floors[-1] // prefix, _POWERS[max_more]))) - 1
        # Points above the floor of themselves are below all integers above that floor.
        index = bisect_left(floors, prefix)
        if index < len(floors) and floors[index] < (prefix + 1) * _POWERS[max_more]:
            return None
        return max_more, self._set.gaps[index], prefix % self._periods[index]


def mirrored(numbers: NumberSet) -> NumberSet:
    """The set of the negatives: what a number is a multiple of, so is its negative."""
    return NumberSet(tuple(-point for point in reversed(numbers.points)), numbers.includes[::-1], numbers.gaps[::-1])


def _period(condition: Condition) -> int:
    """What integers may be reduced by, as digits that follow them, before or after the point, see no difference."""
    return math.lcm(*(modulus.numerator for modulus in _moduli(condition)))


def _moduli(condition: Condition) -> Iterator[Fraction]:
    pending = [condition]
    while pending:
        part = pending.pop()
        if isinstance(part, Branch):
            yield part.modulus
            pending += [part.multiples, part.others]
