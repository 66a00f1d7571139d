"""Sets of JSON values: what a schema denotes, before any thought of how values are spelt.

A ValueSet is a union over the JSON types. Numbers and strings are sets of their own, closed under and, or, not;
objects and arrays are disjunctions of shapes, each shape a conjunction of constraints whose children are goals. A goal
is a set of nodes (a subschema, or its negation), all of which a value must satisfy: intersecting two shapes unites
the goals of each key and item, which is exact, and costs nothing until the goal is looked at (goals.py).

Equality is JSON Schema's: 1 and 1.0 are one number (as in Python), true is not 1 (booleans are a type apart).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from specdec.grammars.languages import NOTHING, Language
from specdec.grammars.numbers import NumberSet
from specdec.grammars.strings import ALL_STRINGS, StringSet, least

_T = TypeVar("_T")

Goal = frozenset[int]

ANYTHING: Goal = frozenset()
"""No node to satisfy."""


class Property(msgspec.Struct, frozen=True, cache_hash=True):
    """One declared key."""

    goal: Goal | None
    """What its value satisfies; None where the key must not occur."""
    is_required: bool = False
    is_declared: bool = True
    """False of a key that is only required, which comes later in the text."""


class Witness(msgspec.Struct, frozen=True, cache_hash=True):
    """At least one key of the language has a value that satisfies the goal."""

    keys: Language
    goal: Goal


class ObjectShape(msgspec.Struct, frozen=True, cache_hash=True):
    """Objects whose declared keys have these values, and all other keys those of their class, or `additional`."""

    properties: tuple[tuple[str, Property], ...] = ()
    additional: Goal | None = ANYTHING
    """None where there are no other keys."""
    classes: tuple[tuple[Language, Goal | None], ...] = ()
    """Disjoint languages of keys; they say nothing of declared ones."""
    min_properties: int = 0
    max_properties: int | None = None
    witnesses: tuple[Witness, ...] = ()

    def intersect(self, other: ObjectShape) -> ObjectShape | None:
        """None where no object has both shapes. Keys keep this shape's order; the other's new ones follow."""
        if self == ANY_OBJECT:
            return other
        if other == ANY_OBJECT:
            return self
        low = max(self.min_properties, other.min_properties)
        high = least(self.max_properties, other.max_properties)
        if high is not None and low > high:
            return None
        mine, its = dict(self.properties), dict(other.properties)
        properties = []
        for key in mine | its:
            a = mine.get(key) or Property(self.undeclared_goal(key), is_declared=False)
            b = its.get(key) or Property(other.undeclared_goal(key), is_declared=False)
            both = Property(united(a.goal, b.goal), a.is_required or b.is_required, a.is_declared or b.is_declared)
            if both.goal is None and both.is_required:
                return None
            properties.append((key, both))
        return ObjectShape(
            tuple(properties),
            united(self.additional, other.additional),
            self._common_classes(other),
            low,
            high,
            tuple(dict.fromkeys(self.witnesses + other.witnesses)),
        )

    def undeclared_goal(self, key: str) -> Goal | None:
        """The goal of a key, were it not declared."""
        return next((goal for language, goal in self.classes if key in language), self.additional)

    def rest(self) -> Language:
        """The keys of no class."""
        return ~union_of(language for language, _ in self.classes)

    def _common_classes(self, other: ObjectShape) -> tuple[tuple[Language, Goal | None], ...]:
        if not self.classes and not other.classes:
            return ()
        mine = [*self.classes, (self.rest(), self.additional)]
        its = [*other.classes, (other.rest(), other.additional)]
        joined: dict[Goal | None, Language] = {}
        for i, (a, a_goal) in enumerate(mine):
            for j, (b, b_goal) in enumerate(its):
                if i == len(mine) - 1 and j == len(its) - 1:
                    continue
                common = a & b
                if not common.is_empty:
                    goal = united(a_goal, b_goal)
                    joined[goal] = joined[goal] | common if goal in joined else common
        return tuple((language, goal) for goal, language in joined.items())


class Contained(msgspec.Struct, frozen=True, cache_hash=True):
    """From item `start` on, at least `minimum` and at most `maximum` items satisfy `inside`.

    Where there is a maximum every item is known to satisfy `inside` or `outside`, its negation.
    """

    inside: Goal
    outside: Goal | None
    minimum: int = 1
    maximum: int | None = None
    start: int = 0


class ArrayShape(msgspec.Struct, frozen=True, cache_hash=True):
    """Arrays whose first items satisfy `prefix` in turn and the rest `items`."""

    prefix: tuple[Goal, ...] = ()
    items: Goal = ANYTHING
    min_items: int = 0
    max_items: int | None = None
    contained: tuple[Contained, ...] = ()
    is_unique: bool = False

    def intersect(self, other: ArrayShape) -> ArrayShape | None:
        """None where no array has both shapes."""
        if self == ANY_ARRAY:
            return other
        if other == ANY_ARRAY:
            return self
        low = max(self.min_items, other.min_items)
        high = least(self.max_items, other.max_items)
        if high is not None and low > high:
            return None
        length = max(len(self.prefix), len(other.prefix))
        prefix = tuple(self.goal_at(index) | other.goal_at(index) for index in range(length))
        return ArrayShape(
            prefix,
            self.items | other.items,
            low,
            high,
            tuple(dict.fromkeys(self.contained + other.contained)),
            self.is_unique or other.is_unique,
        )

    def goal_at(self, index: int) -> Goal:
        return self.prefix[index] if index < len(self.prefix) else self.items


ANY_OBJECT = ObjectShape()
ANY_ARRAY = ArrayShape()


class ValueSet(msgspec.Struct, frozen=True):
    """A set of JSON values: the union of its fields."""

    null: bool = False
    booleans: frozenset[bool] = frozenset()
    numbers: NumberSet = NumberSet.NOTHING
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
            numbers=self.numbers & other.numbers,
            strings=self.strings.intersect(other.strings),
            objects=tuple(dict.fromkeys(shape for shape in objects if shape is not None)),
            arrays=tuple(dict.fromkeys(shape for shape in arrays if shape is not None)),
        )

    @staticmethod
    def union(sets: Sequence[ValueSet]) -> ValueSet:
        if any(one is ALL_VALUES for one in sets):
            return ALL_VALUES
        return ValueSet(
            null=any(one.null for one in sets),
            booleans=frozenset[bool]().union(*(one.booleans for one in sets)),
            numbers=NumberSet.union([one.numbers for one in sets]),
            strings=StringSet.union([one.strings for one in sets]),
            objects=_distinct((one.objects for one in sets), ANY_OBJECT),
            arrays=_distinct((one.arrays for one in sets), ANY_ARRAY),
        )

    def has_scalar(self) -> bool:
        return bool(self.null or self.booleans or not self.numbers.is_empty() or not self.strings.is_empty())


ALL_VALUES = ValueSet(
    null=True,
    booleans=frozenset((False, True)),
    numbers=NumberSet.EVERYTHING,
    strings=ALL_STRINGS,
    objects=(ANY_OBJECT,),
    arrays=(ANY_ARRAY,),
)
NO_VALUES = ValueSet()


def union_of(languages: Iterable[Language]) -> Language:
    """The union of languages, none of them if there are none."""
    union = NOTHING
    for language in languages:
        union |= language
    return union


def united(a: Goal | None, b: Goal | None) -> Goal | None:
    """The goal of both; None, which nothing meets, where either is."""
    return None if a is None or b is None else a | b


def _distinct(members: Iterable[tuple[_T, ...]], everything: _T) -> tuple[_T, ...]:
    distinct = tuple(dict.fromkeys(itertools.chain.from_iterable(members)))
    return (everything,) if everything in distinct else distinct


def array_with(index: int, goal: Goal, length: int | None = None) -> ArrayShape:
    """Arrays that have an item at the index, and it satisfies the goal."""
    return ArrayShape((ANYTHING,) * index + (goal,), ANYTHING, length or index + 1, length)


def only_objects(shape: ObjectShape) -> ValueSet:
    """Objects of the shape; values of other types pass."""
    return msgspec.structs.replace(ALL_VALUES, objects=(shape,))


def only_arrays(shape: ArrayShape) -> ValueSet:
    """Arrays of the shape; values of other types pass."""
    return msgspec.structs.replace(ALL_VALUES, arrays=(shape,))
