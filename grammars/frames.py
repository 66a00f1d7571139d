"""Frames: the open objects and arrays of a state, each a set of runs.

A value position has several goals when the objects or arrays around it have several alternatives left. A frame
opened there runs every alternative of every such goal side by side; a run remembers the goal it was entered for
and the goal its pending child must satisfy. When the child closes it reports which goals it met: runs that waited
for others end. When the frame closes it reports the goals of the runs that may close. This is determinisation of a
visibly pushdown automaton (Alur and Madhusudan 2004): the stack symbol is the set of alternatives, and all of them
push and pop together. A run is deterministic given the text, so a frame never has more runs than the grammar has
alternatives, a number that compiling limits.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from specdec.grammars.rules import FORBIDDEN, ArrayRule, ObjectRule

Goals = tuple[int, ...]
"""Numbers of rules, ascending: the goals of one value position, at least one of which its value must meet."""

NO_CHILD = -1


class ObjectRun(NamedTuple):
    """One alternative of an open object."""

    goal: int
    rule: ObjectRule
    position: int = 0
    """Declared keys before it have occurred or no longer can."""
    child: int = NO_CHILD


class ArrayRun(NamedTuple):
    """One alternative of an open array."""

    goal: int
    rule: ArrayRule
    child: int = NO_CHILD


class ObjectFrame(msgspec.Struct, frozen=True, cache_hash=True):
    """An open object."""

    runs: tuple[ObjectRun, ...]
    seen: frozenset[bytes] = frozenset()
    """Keys that have occurred and that some run would otherwise take again as a free key."""

    def closed(self) -> frozenset[int]:
        """The goals met if the object ends here."""
        return frozenset(run.goal for run in self.runs if run.rule.may_close(run.position))

    def continued(self) -> ObjectFrame | None:
        """The frame if another key comes."""
        runs = tuple(run for run in self.runs if run.rule.may_continue(run.position))
        return _object_frame(runs, self.seen) if runs else None

    def takes_free_keys(self) -> bool:
        return any(run.rule.takes_free_keys(run.position) for run in self.runs)

    def after_key(self, key: bytes) -> ObjectFrame | None:
        """The frame waiting for the value of a key (spelt, with its closing quote)."""
        if key in self.seen:
            return None
        runs = []
        is_free = False
        for run in self.runs:
            step = run.rule.after_key(run.position, key)
            if step is not None:
                runs.append(run._replace(position=step[0], child=step[1]))
                is_free = is_free or key not in run.rule.positions
        if not runs:
            return None
        return _object_frame(tuple(runs), self.seen | {key} if is_free else self.seen)

    def after_value(self, met: frozenset[int]) -> ObjectFrame:
        """The frame once the pending value has met these goals."""
        runs = tuple(run._replace(child=NO_CHILD) for run in self.runs if run.child in met)
        return _object_frame(runs, self.seen)

    def children(self) -> Goals:
        return tuple(sorted({run.child for run in self.runs}))

    def special_keys(self) -> set[bytes]:
        """The keys that may not be treated as any other: those that may come next and those that may not."""
        keys = set(self.seen) if self.takes_free_keys() else set()
        for run in self.runs:
            keys.update(run.rule.keys if run.rule.takes_free_keys(run.position) else run.rule.candidates(run.position))
        return keys


class ArrayFrame(msgspec.Struct, frozen=True, cache_hash=True):
    """An open array with `num_items` items, counted only as far as the count matters to some run."""

    runs: tuple[ArrayRun, ...]
    num_items: int = 0

    def closed(self) -> frozenset[int]:
        """The goals met if the array ends here."""
        return frozenset(run.goal for run in self.runs if run.rule.may_close(self.num_items))

    def continued(self) -> ArrayFrame | None:
        """The frame waiting for another item."""
        runs = tuple(
            run._replace(child=run.rule.item(self.num_items))
            for run in self.runs
            if run.rule.may_continue(self.num_items)
        )
        if not runs:
            return None
        saturation = max(run.rule.saturation for run in runs)
        return ArrayFrame(runs, min(self.num_items + 1, saturation))

    def after_value(self, met: frozenset[int]) -> ArrayFrame:
        """The frame once the pending item has met these goals."""
        return ArrayFrame(tuple(run._replace(child=NO_CHILD) for run in self.runs if run.child in met), self.num_items)

    def children(self) -> Goals:
        return tuple(sorted({run.child for run in self.runs}))


Frame = ObjectFrame | ArrayFrame


def _object_frame(runs: tuple[ObjectRun, ...], seen: frozenset[bytes]) -> ObjectFrame:
    """Forget seen keys once no run takes free keys: states that behave alike are one."""
    return ObjectFrame(runs, seen if any(run.rule.additional != FORBIDDEN for run in runs) else frozenset())
