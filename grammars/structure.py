"""Structure: what the bytes between scalars do to a position, worked out once for each position.

Kept where it depends on nothing else: no whitespace is laid out, and no item around is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import Frame, RawFrame
from specdec.grammars.positions import ArrayEnd, ArrayStart, Completed, Position
from specdec.grammars.stacks import Config, Stack

if TYPE_CHECKING:
    from specdec.grammars.automaton import Automaton

_Step = tuple[int, Position, tuple[Frame, ...]]


class Structure:
    """Of one grammar's positions."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._steps: BoundedCache[Position, tuple[_Step, ...]] = BoundedCache(1024)
        """Bytes, each with the position after it and the frame that it opens around that."""
        self._ends: BoundedCache[tuple[Frame, frozenset[int]], Position] = BoundedCache(1024)

    def steps(self, position: Position, stack: Stack | None) -> list[tuple[int, Position, Stack | None]]:
        """The bytes other than those of a scalar that the position takes, each with what comes after it.

        A completed value is not resolved. Whitespace is among the bytes.
        """
        automaton = self._automaton
        if not self._is_alone(position, stack):
            found = []
            for byte in automaton.structure_bytes(position):
                after = automaton.step(position, stack, byte)
                if after is not None:
                    found.append((byte, *after))
            return found
        steps = self._steps.get(position)
        if steps is None:
            steps = tuple(self._find_steps(position))
            self._steps.put(position, steps)
        return [(byte, after, automaton.pushed(opened, stack) if opened else stack) for byte, after, opened in steps]

    def resolve(self, completed: Completed, stack: Stack | None) -> Config | None:
        """As Automaton.resolve."""
        if stack is None or isinstance(stack.frame, RawFrame) or not self._is_alone(completed, stack):
            return self._automaton.resolve(completed, stack)
        key = stack.frame, completed.goals
        after = self._ends.get(key)
        if after is None:
            resolved = self._automaton.resolve(completed, stack)
            assert resolved is not None, "only remembered items can have occurred"
            after = resolved[0]
            self._ends.put(key, after)
        return after, stack.below

    def _is_alone(self, position: Position, stack: Stack | None) -> bool:
        if self._automaton.layout is not None or (stack is not None and stack.is_remembered):
            return False
        return not isinstance(position, (ArrayStart, ArrayEnd)) or position.frame.seen is None

    def _find_steps(self, position: Position) -> Iterator[_Step]:
        for byte in self._automaton.structure_bytes(position):
            step = self._automaton.step(position, None, byte)
            if step is not None:
                after, stack = step
                yield byte, after, () if stack is None else (stack.frame,)
