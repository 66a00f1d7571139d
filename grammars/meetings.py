"""Meetings: where an array of unique items may stand beside one that cannot be held where items are remembered.

Two alternatives of an object or array go on side by side at a key or item (frames.py), but for those that a required
key, or an item, before it has told apart. An alternative that is left out only where an array begins would have been
counted on before: so which ones meet is found out when a schema is compiled, pair by pair, over all goals.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple, TypeVar

import msgspec

from specdec.grammars.rule_graph import children_of_array, children_of_object, leading_to
from specdec.grammars.rules import ArrayRule, Choices, ObjectRule, Rule
from specdec.grammars.stopwatch import Stopwatch
from specdec.grammars.unique import unheld_goals
from specdec.grammars.values import ValueSet

_Shape = TypeVar("_Shape", ObjectRule, ArrayRule)


class _Led(NamedTuple):
    """Whether something leads to an array of unique items, and to one that cannot be held beside it."""

    to_unique: bool
    to_unheld: bool

    def conflicts_with(self, other: _Led) -> bool:
        return (self.to_unique and other.to_unheld) or (self.to_unheld and other.to_unique)


class Meetings:
    """Of one schema's goals; perhaps more than those that some text leads to."""

    def __init__(
        self, rules: Sequence[Rule], value_sets: Sequence[ValueSet], stopwatch: Stopwatch, *, has_any_order: bool
    ) -> None:
        """A goal's rule spells its value set; with `has_any_order` keys come in any order."""
        self._rules = rules
        self._value_sets = value_sets
        self._has_any_order = has_any_order
        self._stopwatch = stopwatch
        self._unique = frozenset(n for n, rule in enumerate(rules) if any(array.is_unique for array in rule.arrays))
        self._unheld = unheld_goals(rules) if self._unique else frozenset[int]()
        self._to_unique = self._to_unheld = frozenset[int]()
        if self._unheld:
            self._to_unique, self._to_unheld = (leading_to(rules, goals) for goals in (self._unique, self._unheld))

    def conflicting(self) -> frozenset[int]:
        """The goals with arrays of unique items that some position has beside arrays which cannot be held there."""
        found: set[int] = set()
        pending = [(0, 0)] if self._led((0,)).conflicts_with(self._led((0,))) else []
        seen = set(pending)
        for pair in pending:
            self._stopwatch.check()
            for one, other in (pair, pair[::-1]):
                if one in self._unique and other in self._unheld:
                    found.add(one)
            for one, other in self._below(*pair):
                below = min(one, other), max(one, other)
                if below not in seen and self._led((one,)).conflicts_with(self._led((other,))):
                    seen.add(below)
                    pending.append(below)
        return frozenset(found)

    def _led(self, goals: Collection[int]) -> _Led:
        return _Led(not self._to_unique.isdisjoint(goals), not self._to_unheld.isdisjoint(goals))

    def _below(self, one: int, other: int) -> Iterator[tuple[int, int]]:
        """The pairs at the keys and items of both."""
        mine, its = self._rules[one], self._rules[other]
        for a, b in self._pairs(mine.objects, its.objects, children_of_object):
            yield from self._at_keys(a, b)
        for first, second in self._pairs(mine.arrays, its.arrays, children_of_array):
            yield from self._at_items(first, second)

    def _pairs(
        self, mine: Iterable[_Shape], its: Iterable[_Shape], children: Callable[[_Shape], Iterable[int]]
    ) -> Iterator[tuple[_Shape, _Shape]]:
        led = [[(shape, self._led(frozenset(children(shape)))) for shape in shapes] for shapes in (mine, its)]
        for (a, a_led), (b, b_led) in product(*led):
            if a_led.conflicts_with(b_led):
                self._stopwatch.check()
                yield a, b

    def _at_keys(self, a: ObjectRule, b: ObjectRule) -> Iterator[tuple[int, int]]:
        end_of_a, end_of_b = self._told_apart(a, b), self._told_apart(b, a)
        for key in dict.fromkeys(a.keys[:end_of_a] + b.keys[:end_of_b]):
            if a.positions.get(key, len(a.keys)) < end_of_a and b.positions.get(key, len(b.keys)) < end_of_b:
                yield from product(_goals_at(a, key), _goals_at(b, key))
        if end_of_a > len(a.keys) and end_of_b > len(b.keys):
            yield from product(_free_goals(a), _free_goals(b))

    def _told_apart(self, a: ObjectRule, b: ObjectRule) -> int:
        """How many of the one's keys, with those that are free after them, come before the two are told apart."""
        for position, key in enumerate(() if self._has_any_order else a.keys):
            if a.required[position] and self._all_disjoint(_goals_at(a, key), _goals_at(b, key)):
                return position + 1
        return len(a.keys) + 1

    def _at_items(self, a: ArrayRule, b: ArrayRule) -> Iterator[tuple[int, int]]:
        for index in range(max(len(a.prefix), len(b.prefix)) + 1):
            mine, its = _goals_of(a.choices(index)), _goals_of(b.choices(index))
            yield from product(mine, its)
            if self._all_disjoint(mine, its):
                return

    def _all_disjoint(self, goals: Sequence[int], others: Sequence[int]) -> bool:
        return all(self._are_disjoint(one, other) for one, other in product(goals, others))

    def _are_disjoint(self, one: int, other: int) -> bool:
        """Whether surely no value meets both goals: where they differ by their scalars, or by their types."""
        a, b = self._value_sets[one], self._value_sets[other]
        if (a.objects and b.objects) or (a.arrays and b.arrays) or (a.strings.terms and b.strings.terms):
            return False
        scalars = [msgspec.structs.replace(values, objects=(), arrays=()) for values in (a, b)]
        return not scalars[0].intersect(scalars[1]).has_scalar()


def _goals_of(choices: Choices) -> list[int]:
    return [number for _, number in choices]


def _free_goals(rule: ObjectRule) -> list[int]:
    return [number for free in rule.free for _, number in free.choices]


def _goals_at(rule: ObjectRule, key: bytes) -> list[int]:
    """Those of a key's value, which is free where it is not declared."""
    position = rule.positions.get(key)
    return _free_goals(rule) if position is None else _goals_of(rule.choices[position])
