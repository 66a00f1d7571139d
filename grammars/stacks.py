"""Stacks of frames: persistent, and interned, so that equality is identity."""

from __future__ import annotations

from weakref import WeakValueDictionary

from specdec.grammars.frames import ArrayFrame, Frame
from specdec.grammars.positions import Position


class Stack:
    """The frames around a position, innermost first; interned, so that equality is identity."""

    __slots__ = ("__weakref__", "below", "depth", "frame", "is_remembered")

    def __init__(self, frame: Frame, below: Stack | None) -> None:
        self.frame = frame
        self.below = below
        self.depth: int = 1 if below is None else below.depth + 1
        self.is_remembered: bool = (isinstance(frame, ArrayFrame) and frame.seen is not None) or (
            below is not None and below.is_remembered
        )
        """Whether some array around remembers the text of its present item."""


Config = tuple[Position, Stack | None]


class Stacks:
    """The stacks of one grammar; those that nothing holds are forgotten."""

    def __init__(self) -> None:
        self._stacks: WeakValueDictionary[tuple[Frame, Stack | None], Stack] = WeakValueDictionary()

    def push(self, frame: Frame, below: Stack | None) -> Stack:
        stack = self._stacks.get((frame, below))
        if stack is None:
            stack = self._stacks[frame, below] = Stack(frame, below)
        return stack

    def remember(self, stack: Stack | None, data: bytes, depth: int) -> Stack | None:
        """The stack with the bytes added to the items that its frames up to a depth remember."""
        frames: list[Frame] = []
        below = stack
        while below is not None and (below.depth > depth or below.is_remembered):
            frames.append(below.frame)
            below = below.below
        for frame in reversed(frames):
            level = 1 if below is None else below.depth + 1
            is_extended = data and level <= depth and isinstance(frame, ArrayFrame) and frame.seen is not None
            below = self.push(frame.with_text(data) if is_extended else frame, below)  # type: ignore[union-attr]
        return below
