"""Sets of JSON values: what a schema denotes, before any thought of how values are spelt.

A ValueSet is a union over the JSON types. Numbers and strings are sets of their own, closed under intersection
and union; objects and arrays are disjunctions of shapes, each shape a conjunction of constraints whose children
are goals. A goal is a set of subschema ids, all of which a value must satisfy: intersecting two shapes unites the
goals of each key and item, which is exact, and costs nothing until the goal is looked at (goals.py).

Equality is JSON Schema's: 1 and 1.0 are one number (as in Python), true is not 1 (booleans are a type apart).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

_T = TypeVar("_T")

Goal = frozenset[int]

ANYTHING: Goal = frozenset()
"""No subschema to satisfy."""


class NumberSet(msgspec.Struct, frozen=True):
    """All integers, or all numbers, or neither; and single numbers besides."""

    integers: bool = False
    numbers: bool = False
    literals: tuple[float, ...] = ()

    def intersect(self, other: NumberSet) -> NumberSet:
        mine, its = set(self.literals), set(other.literals)
        literals = [value for value in self.literals if value in its or other.holds_generic(value)]
        literals += [value for value in other.literals if value not in mine and self.holds_generic(value)]
        return NumberSet(
            integers=(self.integers or self.numbers) and (other.integers or other.numbers),
            numbers=self.numbers and other.numbers,
            literals=tuple(literals),
        )

    @staticmethod
    def union(sets: Sequence[NumberSet]) -> NumberSet:
        return NumberSet(
            integers=any(one.integers for one in sets),
            numbers=any(one.numbers for one in sets),
            literals=_distinct(one.literals for one in sets),
        )

    def holds_generic(self, value: float) -> bool:
        """Whether it is one of all numbers or all integers, if those are in the set."""
        return self.numbers or (self.integers and value == int(value))

    def is_empty(self) -> bool:
        return not (self.integers or self.numbers or self.literals)


class LengthRange(msgspec.Struct, frozen=True, order=True):
    """At least min_length and at most max_length code points; None is no bound."""

    min_length: int = 0
    max_length: int | None = None

    def intersect(self, other: LengthRange) -> LengthRange | None:
        low = max(self.min_length, other.min_length)
        high = _least(self.max_length, other.max_length)
        return None if high is not None and low > high else LengthRange(low, high)

    def contains(self, value: str) -> bool:
        return self.min_length <= len(value) and (self.max_length is None or len(value) <= self.max_length)


class StringSet(msgspec.Struct, frozen=True):
    """All strings of some lengths, and single strings besides."""

    ranges: tuple[LengthRange, ...] = ()
    literals: tuple[str, ...] = ()

    def intersect(self, other: StringSet) -> StringSet:
        ranges = {both for mine in self.ranges for its in other.ranges if (both := mine.intersect(its)) is not None}
        mine, its = set(self.literals), set(other.literals)
        literals = [value for value in self.literals if value in its or any(r.contains(value) for r in other.ranges)]
        literals += [
            value for value in other.literals if value not in mine and any(r.contains(value) for r in self.ranges)
        ]
        return StringSet(_merged(ranges), tuple(literals))

    @staticmethod
    def union(sets: Sequence[StringSet]) -> StringSet:
        return StringSet(
            _merged({one for members in sets for one in members.ranges}), _distinct(one.literals for one in sets)
        )

    def is_empty(self) -> bool:
        return not (self.ranges or self.literals)


class Property(msgspec.Struct, frozen=True):
    """One declared key."""

    goal: Goal | None
    """What its value satisfies; None where the key must not occur."""
    is_required: bool = False


class ObjectShape(msgspec.Struct, frozen=True):
    """Objects whose declared keys have these values, and all other keys `additional`."""

    properties: tuple[tuple[str, Property], ...] = ()
    additional: Goal | None = ANYTHING
    """None where there are no other keys."""

    def intersect(self, other: ObjectShape) -> ObjectShape | None:
        """None where no object has both shapes. Keys keep this shape's order; the other's new ones follow."""
        if self == _ANY_OBJECT:
            return other
        if other == _ANY_OBJECT:
            return self
        mine, its = dict(self.properties), dict(other.properties)
        properties = []
        for key in mine | its:
            a = mine.get(key) or Property(self.additional)
            b = its.get(key) or Property(other.additional)
            both = Property(_both(a.goal, b.goal), a.is_required or b.is_required)
            if both.goal is None and both.is_required:
                return None
            properties.append((key, both))
        return ObjectShape(tuple(properties), _both(self.additional, other.additional))


class ArrayShape(msgspec.Struct, frozen=True):
    """Arrays whose first items satisfy `prefix` in turn and the rest `items`."""

    prefix: tuple[Goal, ...] = ()
    items: Goal = ANYTHING
    min_items: int = 0
    max_items: int | None = None

    def intersect(self, other: ArrayShape) -> ArrayShape | None:
        """None where no array has both shapes."""
        low = max(self.min_items, other.min_items)
        high = _least(self.max_items, other.max_items)
        if high is not None and low > high:
            return None
        length = max(len(self.prefix), len(other.prefix))
        prefix = tuple(self.goal_at(index) | other.goal_at(index) for index in range(length))
        return ArrayShape(prefix, self.items | other.items, low, high)

    def goal_at(self, index: int) -> Goal:
        return self.prefix[index] if index < len(self.prefix) else self.items


_ANY_OBJECT = ObjectShape()


class ValueSet(msgspec.Struct, frozen=True):
    """A set of JSON values: the union of its fields."""

    null: bool = False
    booleans: frozenset[bool] = frozenset()
    numbers: NumberSet = NumberSet()
    strings: StringSet = StringSet()
    objects: tuple[ObjectShape, ...] = ()
    arrays: tuple[ArrayShape, ...] = ()

    def intersect(self, other: ValueSet) -> ValueSet:
        if self is ALL_VALUES:
            return other
        if other is ALL_VALUES:
            return self
        objects = (mine.intersect(its) for mine in self.objects for its in other.objects)
        arrays = (mine.intersect(its) for mine in self.arrays for its in other.arrays)
        return ValueSet(
            null=self.null and other.null,
            booleans=self.booleans & other.booleans,
            numbers=self.numbers.intersect(other.numbers),
            strings=self.strings.intersect(other.strings),
            objects=tuple(dict.fromkeys(shape for shape in objects if shape is not None)),
            arrays=tuple(dict.fromkeys(shape for shape in arrays if shape is not None)),
        )

    @staticmethod
    def union(sets: Sequence[ValueSet]) -> ValueSet:
        return ValueSet(
            null=any(one.null for one in sets),
            booleans=frozenset[bool]().union(*(one.booleans for one in sets)),
            numbers=NumberSet.union([one.numbers for one in sets]),
            strings=StringSet.union([one.strings for one in sets]),
            objects=_distinct(one.objects for one in sets),
            arrays=_distinct(one.arrays for one in sets),
        )


ALL_VALUES = ValueSet(
    null=True,
    booleans=frozenset((False, True)),
    numbers=NumberSet(integers=True, numbers=True),
    strings=StringSet((LengthRange(),)),
    objects=(_ANY_OBJECT,),
    arrays=(ArrayShape(),),
)
NO_VALUES = ValueSet()


def _both(a: Goal | None, b: Goal | None) -> Goal | None:
    return None if a is None or b is None else a | b


def _distinct(members: Iterable[tuple[_T, ...]]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(itertools.chain.from_iterable(members)))


def _least(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _merged(ranges: set[LengthRange]) -> tuple[LengthRange, ...]:
    """The same lengths as disjoint ranges in order."""
    merged: list[LengthRange] = []
    for current in sorted(ranges, key=lambda r: r.min_length):
        last = merged[-1] if merged else None
        if last is None or (last.max_length is not None and current.min_length > last.max_length + 1):
            merged.append(current)
        elif last.max_length is not None and (current.max_length is None or current.max_length > last.max_length):
            merged[-1] = LengthRange(last.min_length, current.max_length)
    return tuple(merged)
