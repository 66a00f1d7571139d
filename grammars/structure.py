"""Structure: what the bytes between scalars do to a position, worked out once for each position.

Kept where it depends on nothing else: no whitespace is laid out, and no item around is remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import Frame, RawFrame
from specdec.grammars.positions import ArrayEnd, ArrayStart, Completed, Position
from specdec.grammars.stacks import Config, Stack

if TYPE_CHECKING:
    from specdec.grammars.automaton import Automaton


class Structure:
    """Of one grammar's positions."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._steps: BoundedCache[tuple[Position, int], tuple[Position | None, tuple[Frame, ...]]] = BoundedCache(2048)
        """The position after a byte, if it is taken, and the frame that it opens around that."""
        self._ends: BoundedCache[tuple[Frame, frozenset[int]], Position] = BoundedCache(1024)

    def step(self, position: Position, stack: Stack | None, byte: int) -> Config | None:
        """As Automaton.step."""
        if not self._is_alone(position, stack):
            return self._automaton.step(position, stack, byte)
        key = position, byte
        step = self._steps.get(key)
        if step is None:
            after = self._automaton.step(position, None, byte)
            position_after, stack_after = after or (None, None)
            step = position_after, () if stack_after is None else (stack_after.frame,)
            self._steps.put(key, step)
        following, opened = step
        if following is None:
            return None
        return following, self._automaton.pushed(opened, stack) if opened else stack

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
