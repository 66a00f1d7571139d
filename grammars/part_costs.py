"""PartCosts: what completions cost of which each part is spelt by itself.

What completes a position, what then completes each of the frames that a token opened, and what follows: spelt together,
the parts take no more tokens than one by one, and often fewer. But each part is known without those around it, and so
all that is open nowhere else in the text is costed once.
"""

from __future__ import annotations

from collections.abc import Iterable

from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.closings import Closings
from specdec.grammars.frames import Frame, ObjectFrame
from specdec.grammars.item_closings import Part
from specdec.grammars.positions import Done, Position
from specdec.grammars.speller import Speller
from specdec.grammars.stacks import Stack

Ends = tuple[tuple[int, int], ...]
"""Goals that a value may meet, each with the tokens that it takes until then."""


class PartCosts:
    """Of one grammar, where no item is remembered. `frames` are on top of the stack, the innermost first."""

    def __init__(self, closings: Closings, speller: Speller) -> None:
        self._closings = closings
        self._speller = speller
        self._ends: BoundedCache[Position, Ends] = BoundedCache(2048)
        self._through: BoundedCache[tuple[Frame, int], Ends] = BoundedCache(2048)
        self._after_key: BoundedCache[ObjectFrame, Ends] = BoundedCache(1024)

    def at(self, position: Position, frames: tuple[Frame, ...], stack: Stack | None) -> int | None:
        """No fewer tokens than a short completion takes; None where none is known."""
        if isinstance(position, Done):
            return 0
        ends = self._ends.get(position)
        if ends is None:
            ends = self._cheapest(self._closings.parts(position))
            self._ends.put(position, ends)
        return self._least(ends, frames, stack)

    def beyond(self, frames: tuple[Frame, ...], stack: Stack | None, goal: int) -> int | None:
        """The same after a value that was the innermost frame's child and has met the goal."""
        if not frames:
            after = self._closings.after(stack, goal)
            return None if after is None else after.num_tokens
        frame, *outer = frames
        through = self._through.get((frame, goal))
        if through is None:
            through = self._cheapest(self._closings.frame_parts(frame, goal))
            self._through.put((frame, goal), through)
        return self._least(through, tuple(outer), stack)

    def most_after_key(self, frame: ObjectFrame, frames: tuple[Frame, ...], stack: Stack | None) -> int | None:
        """No fewer tokens than a short completion takes after a key that may come next, whichever.

        None where some have none, or members are counted.
        """
        ends = self._after_key.get(frame)
        if ends is None:
            found = self._closings.most_after_plain_key(frame)
            if found is None:
                return None
            ends = found
            self._after_key.put(frame, ends)
        most = 0
        for goal, num_tokens in ends:
            rest = self.beyond(frames, stack, goal)
            if rest is None:
                return None
            most = max(most, num_tokens + rest)
        return most

    def _least(self, ends: Ends, frames: tuple[Frame, ...], stack: Stack | None) -> int | None:
        least: int | None = None
        for goal, num_tokens in ends:
            rest = self.beyond(frames, stack, goal)
            if rest is not None and (least is None or num_tokens + rest < least):
                least = num_tokens + rest
        return least

    def _cheapest(self, parts: Iterable[Part]) -> Ends:
        cheapest: dict[int, int] = {}
        for data, goal in parts:
            num_tokens = self._speller.num_tokens(data)
            cheapest[goal] = min(num_tokens, cheapest.get(goal, num_tokens))
        return tuple(cheapest.items())
