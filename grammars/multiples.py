"""Conditions on what a number is a multiple of: decision trees over moduli, closed under and, or, not.

A Condition is True (every number), False (none) or a Branch on one modulus; 1 asks for an integer. A test
whose outcome those above it decide is left out, so that some number takes each path: the least common multiple of
the moduli that it passes is a multiple of none that it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import gcd, lcm
from typing import TypeAlias

import msgspec

from specdec.grammars.decimals import check_digits
from specdec.grammars.errors import LimitExceededError

MAX_NUMBER_MODULI = 64
MAX_CONDITION_STEPS = 32_768


class Branch(msgspec.Struct, frozen=True, cache_hash=True):
    """One condition for the multiples of a positive modulus, and one for all other numbers."""

    modulus: Fraction
    multiples: Condition
    others: Condition


Condition: TypeAlias = "bool | Branch"


def negation(condition: Condition) -> Condition:
    if isinstance(condition, bool):
        return not condition
    return Branch(condition.modulus, negation(condition.multiples), negation(condition.others))


def holds(condition: Condition, value: Fraction) -> bool:
    while not isinstance(condition, bool):
        condition = condition.multiples if value % condition.modulus == 0 else condition.others
    return condition


def depth(condition: Condition) -> int:
    return 0 if isinstance(condition, bool) else 1 + max(depth(condition.multiples), depth(condition.others))


def num_branches(condition: Condition) -> int:
    return 0 if isinstance(condition, bool) else 1 + num_branches(condition.multiples) + num_branches(condition.others)


def without(condition: Condition, is_absent: Callable[[Fraction], bool]) -> Condition:
    """The condition for numbers of which none is a multiple of an absent modulus."""
    if isinstance(condition, bool):
        return condition
    others = without(condition.others, is_absent)
    if is_absent(condition.modulus):
        return others
    return branch(condition.modulus, without(condition.multiples, is_absent), others)


def paths(condition: Condition) -> Iterator[tuple[Fraction | None, tuple[Fraction, ...]]]:
    """The disjoint parts: multiples of the first (None: all numbers), but of none of the second."""
    pending: list[tuple[Condition, Fraction | None, tuple[Fraction, ...]]] = [(condition, None, ())]
    while pending:
        part, common, excluded = pending.pop()
        if part is True:
            yield common, excluded
        elif isinstance(part, Branch):
            pending.append((part.others, common, (*excluded, part.modulus)))
            pending.append((part.multiples, common_multiple(common, part.modulus), excluded))


def branch(modulus: Fraction, multiples: Condition, others: Condition) -> Condition:
    if multiples == others:
        return multiples
    if isinstance(multiples, Branch) and multiples.others == others:
        return Branch(common_multiple(modulus, multiples.modulus), multiples.multiples, others)
    return Branch(modulus, multiples, others)


def common_multiple(a: Fraction | None, b: Fraction) -> Fraction:
    """The least positive multiple of both, where None is a multiple of nothing; LimitExceededError on its digits."""
    if a is None:
        return b
    least = Fraction(lcm(a.numerator, b.numerator), gcd(a.denominator, b.denominator))
    check_digits(least)
    return least


class ConditionAlgebra:
    """Operations on conditions, whose steps together count against MAX_CONDITION_STEPS."""

    def __init__(self) -> None:
        self._num_steps = 0

    def intersection(self, a: Condition, b: Condition) -> Condition:
        """The numbers of both; LimitExceededError where it asks about too many moduli."""
        return self._whole(a, b, decisive=False)

    def union(self, a: Condition, b: Condition) -> Condition:
        return self._whole(a, b, decisive=True)

    def _whole(self, a: Condition, b: Condition, decisive: bool) -> Condition:
        if a is decisive or b is decisive:
            return decisive
        if isinstance(a, bool) or isinstance(b, bool):
            return b if isinstance(a, bool) else a
        whole = self._combination(a, b, decisive, None, (), 0)
        if depth(whole) > MAX_NUMBER_MODULI:
            raise LimitExceededError(
                f"a condition on the multiples of {depth(whole)} numbers is over max_number_moduli={MAX_NUMBER_MODULI}"
            )
        return whole

    def on_grid(self, condition: Condition, step: Fraction) -> Condition:
        """The condition for multiples of `step` alone, in units of it: all its moduli are integers."""
        return self._on_grid(condition, step, Fraction(1), (), 0)

    # Below a path of tests only the multiples of `common` matter that are multiples of none of `excluded`.

    def _combination(
        self,
        a: Condition,
        b: Condition,
        decisive: bool,
        common: Fraction | None,
        excluded: tuple[Fraction, ...],
        depth: int,
    ) -> Condition:
        """`decisive` where one of the two is, else its opposite."""
        self._spend(depth)
        if a is decisive or b is decisive:
            return decisive
        if isinstance(a, Branch) and (not isinstance(b, Branch) or a.modulus <= b.modulus):
            modulus = a.modulus
        elif isinstance(b, Branch):
            modulus = b.modulus
        else:
            return not decisive
        outcome, both = _decided(modulus, common, excluded)
        multiples: Condition = False
        if outcome is not False:
            multiples = self._combination(
                _when(a, modulus, True), _when(b, modulus, True), decisive, both, excluded, depth + 1
            )
        if outcome is True:
            return multiples
        excluded = excluded if outcome is False else (*excluded, modulus)
        others = self._combination(
            _when(a, modulus, False), _when(b, modulus, False), decisive, common, excluded, depth + 1
        )
        return others if outcome is False else branch(modulus, multiples, others)

    def _on_grid(
        self, condition: Condition, step: Fraction, common: Fraction, excluded: tuple[Fraction, ...], depth: int
    ) -> Condition:
        self._spend(depth)
        if isinstance(condition, bool):
            return condition
        # The multiples of p/q that are integers are those of p.
        modulus = Fraction((condition.modulus / step).numerator)
        outcome, both = _decided(modulus, common, excluded)
        multiples: Condition = False
        if outcome is not False:
            multiples = self._on_grid(condition.multiples, step, both, excluded, depth + 1)
        if outcome is True:
            return multiples
        excluded = excluded if outcome is False else (*excluded, modulus)
        others = self._on_grid(condition.others, step, common, excluded, depth + 1)
        return others if outcome is False else branch(modulus, multiples, others)

    def _spend(self, depth: int) -> None:
        self._num_steps += 1
        if self._num_steps > MAX_CONDITION_STEPS:
            raise LimitExceededError(
                f"conditions of {self._num_steps} cases on the multiples of numbers are over"
                f" max_condition_steps={MAX_CONDITION_STEPS}"
            )
        assert depth <= 2 * MAX_NUMBER_MODULI, "each step down leaves a branch of one of two trees"


def _decided(
    modulus: Fraction, common: Fraction | None, excluded: tuple[Fraction, ...]
) -> tuple[bool | None, Fraction]:
    """Whether multiples of `common` that are none of `excluded` are multiples of the modulus (None: some are).

    Besides, the least common multiple of both.
    """
    both = common_multiple(common, modulus)
    if both == common:
        return True, both
    if any(both % other == 0 for other in excluded):
        return False, both
    return None, both


def _when(condition: Condition, modulus: Fraction, is_multiple: bool) -> Condition:
    if isinstance(condition, Branch) and condition.modulus == modulus:
        return condition.multiples if is_multiple else condition.others
    return condition
