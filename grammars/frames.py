"""Frames: the open objects and arrays of a state, each a set of runs, and the raw text around them.

A value position has several goals when the objects or arrays around it have several alternatives left. A frame
opened there runs every alternative of every such goal side by side; a run remembers the goal it was entered for
and the goal its pending child must satisfy. When the child closes it reports which goals it met: runs that waited
for others end. When the frame closes it reports the goals of the runs that may close. This is determinisation of a
visibly pushdown automaton (Alur and Madhusudan 2004): the stack symbol is the set of alternatives, and all of them
push and pop together. A run that may claim its next child for several things goes on as several runs; runs that are
equal are one, so a frame never has more of them than there are alternatives and claims, numbers that compiling limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from specdec.grammars.any_order import KeyRule
from specdec.grammars.rules import ArrayRule

Goals = tuple[int, ...]
"""Numbers of rules, ascending: the goals of one value position, at least one of which its value must meet."""

NO_CHILD = -1
_NO_KEYS: frozenset[bytes] = frozenset()

KeyClass = tuple[int, int]
"""A free key's class: (index of the rule among the frame's distinct ones, index in its `free`)."""


class ObjectRun(NamedTuple):
    """One alternative of an open object."""

    goal: int
    rule: KeyRule
    declared: int = 0
    """Which declared keys have occurred: in schema order all those before this position, or no longer can; in any order
    those of this bit set."""
    child: int = NO_CHILD
    num_keys: int = 0
    pending: int = 0
    """Witnesses that no key has shown yet."""

    @property
    def progress(self) -> tuple[int, int, int]:
        return self.declared, self.num_keys, self.pending


class ArrayRun(NamedTuple):
    """One alternative of an open array."""

    goal: int
    rule: ArrayRule
    child: int = NO_CHILD
    counted: tuple[int, ...] = ()


class ObjectFrame(msgspec.Struct, frozen=True, cache_hash=True):
    """An open object."""

    runs: tuple[ObjectRun, ...]
    seen: frozenset[bytes] = _NO_KEYS
    """Keys that have occurred and that some run would otherwise take again as a free key."""
    has_one_free_key: bool = False
    """Inside an array of unique items, where the order of free keys would give one value several texts."""

    def closed(self) -> frozenset[int]:
        """The goals met if the object ends here."""
        return frozenset(run.goal for run in self.runs if run.rule.may_close(*run.progress))

    def continued(self) -> ObjectFrame | None:
        """The frame if another key comes."""
        runs = tuple([run for run in self.runs if run.rule.may_continue(*run.progress)])
        if not runs or (self._is_full and not any(run.rule.candidates(*run.progress) for run in runs)):
            return None
        # Every frame has passed through `_with`.
        return self if len(runs) == len(self.runs) else self._with(runs, self.seen)

    @property
    def _is_full(self) -> bool:
        return self.has_one_free_key and bool(self.seen)

    def _with(self, runs: Iterable[ObjectRun], seen: frozenset[bytes]) -> ObjectFrame:
        """Forget seen keys once no run takes free keys: states that behave alike are one."""
        distinct = tuple(dict.fromkeys(runs))
        kept = seen if seen and any(run.rule.free for run in distinct) else _NO_KEYS
        return ObjectFrame(distinct, kept, self.has_one_free_key)

    def takes_free_keys(self) -> bool:
        if self._is_full:
            return False
        for run in self.runs:  # noqa: SIM110, a generator takes as long as all the rest
            if run.rule.takes_free_keys(*run.progress):
                return True
        return False

    def rules(self) -> tuple[KeyRule, ...]:
        """The distinct rules of the runs."""
        return tuple(dict.fromkeys(run.rule for run in self.runs))

    def open_classes(self) -> frozenset[KeyClass] | None:
        """The classes of free keys that some run can go on with; None where all of those are alike."""
        if self._is_full or all(free.language is None for run in self.runs for free in run.rule.free):
            return None
        index_of = {rule: index for index, rule in enumerate(self.rules())}
        found = [
            (free, (index_of[run.rule], number))
            for run in self.runs
            for number, free in enumerate(run.rule.free)
            if run.rule.after_free(*run.progress, number)
        ]
        return None if all(free.language is None for free, _ in found) else frozenset(one for _, one in found)

    def after_key(self, key: bytes, classes: frozenset[KeyClass] | None = None) -> ObjectFrame | None:
        """The frame waiting for the value of a key (spelt, with its closing quote).

        `classes` are those that the key is in; None stands for a key of which every class is every key.
        """
        if key in self.seen:
            return None
        runs: list[ObjectRun] = []
        is_free = False
        index_of = {rule: index for index, rule in enumerate(self.rules())}
        for run in self.runs:
            rule = run.rule
            declared = rule.positions.get(key)
            if declared is not None:
                after = rule.after_declared(*run.progress, declared)
            elif self._is_full:
                after = []
            else:
                after = [
                    step
                    for number, free in enumerate(rule.free)
                    if (free.language is None if classes is None else (index_of[rule], number) in classes)
                    for step in rule.after_free(*run.progress, number)
                ]
                is_free = is_free or bool(after)
            runs += [
                ObjectRun(run.goal, rule, occurred, child, num_keys, pending)
                for occurred, num_keys, pending, child in after
            ]
        if not runs:
            return None
        return self._with(runs, self.seen | {key} if is_free else self.seen)

    def after_value(self, met: frozenset[int]) -> ObjectFrame:
        """The frame once the pending value has met these goals."""
        runs = [
            ObjectRun(run.goal, run.rule, run.declared, NO_CHILD, run.num_keys, run.pending)
            for run in self.runs
            if run.child in met
        ]
        return self._with(runs, self.seen)

    def children(self) -> Goals:
        return tuple(sorted({run.child for run in self.runs}))

    def special_keys(self) -> set[bytes]:
        """The keys that may not be treated as any other: those that may come next and those that may not."""
        keys = set(self.seen) if self.takes_free_keys() else set()
        for run in self.runs:
            takes = run.rule.takes_free_keys(*run.progress)
            keys.update(run.rule.keys if takes else run.rule.candidates(*run.progress))
        return keys


class ArrayFrame(msgspec.Struct, frozen=True, cache_hash=True):
    """An open array with `num_items` items, counted only as far as the count matters to some run."""

    runs: tuple[ArrayRun, ...]
    num_items: int = 0
    seen: frozenset[bytes] | None = None
    """Texts of the items so far where some run takes no item twice, else None."""
    text: bytes = b""
    """Of the present item, where items are remembered."""

    def closed(self) -> frozenset[int]:
        """The goals met if the array ends here."""
        return frozenset(run.goal for run in self.runs if run.rule.may_close(self.num_items, run.counted))

    def continued(self) -> ArrayFrame | None:
        """The frame waiting for another item."""
        runs = tuple(
            dict.fromkeys(
                run._replace(child=child, counted=counted)
                for run in self.runs
                for child, counted in run.rule.after_item(self.num_items, run.counted)
            )
        )
        if not runs:
            return None
        saturation = max(run.rule.saturation for run in runs)
        return self._with(runs, min(self.num_items + 1, saturation), self.seen)

    def _with(self, runs: tuple[ArrayRun, ...], num_items: int, seen: frozenset[bytes] | None) -> ArrayFrame:
        """Forget the items once no run minds a repetition."""
        return ArrayFrame(runs, num_items, seen if any(run.rule.is_unique for run in runs) else None)

    def after_value(self, met: frozenset[int]) -> ArrayFrame | None:
        """The frame once the pending item has met these goals; None where it occurred before, and every run minds."""
        runs = tuple(dict.fromkeys(run._replace(child=NO_CHILD) for run in self.runs if run.child in met))
        if self.seen is None:
            return ArrayFrame(runs, self.num_items)
        if self.text in self.seen:
            runs = tuple(run for run in runs if not run.rule.is_unique)
            return ArrayFrame(runs, self.num_items) if runs else None
        return self._with(runs, self.num_items, self.seen | {self.text})

    def with_text(self, data: bytes) -> ArrayFrame:
        """The frame after more bytes of the present item."""
        return ArrayFrame(self.runs, self.num_items, self.seen, self.text + data)

    def all_may_close(self) -> bool:
        """Whether the array may end after its present item, whichever alternative goes on."""
        return all(run.rule.may_close(self.num_items, run.counted) for run in self.runs)

    def is_repeating(self) -> bool:
        """Whether the present item may still become one that occurred."""
        return self.seen is not None and any(one.startswith(self.text) for one in self.seen)

    def children(self) -> Goals:
        return tuple(sorted({run.child for run in self.runs}))


class RawFrame(msgspec.Struct, frozen=True, cache_hash=True):
    """Raw text around a value; below all other frames."""

    after: int
    """State of the raw text that follows."""


Frame = ObjectFrame | ArrayFrame | RawFrame
