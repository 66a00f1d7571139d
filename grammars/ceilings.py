"""Ceilings: the most tokens that it can take to complete a text after one more token, whichever the mask allows.

Where a budget leaves as many, it forbids nothing, and the mask without it will do: so it is at all but the last tokens
of most texts. A ceiling adds up over the few places that a mask's tokens lead to, without a look at the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from specdec.grammars.automaton import Automaton
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frame_keys import FRESH
from specdec.grammars.frames import Frame, ObjectFrame
from specdec.grammars.lexeme_bounds import LexemeBounds
from specdec.grammars.positions import Completed, Key, Position
from specdec.grammars.reach import Place, Reach
from specdec.grammars.stacks import Config, Stack

_UNKNOWN = 2**30
"""In place of the ceiling of a mask of which some token may have no known completion."""

_Known = tuple[Reach, ObjectFrame | None, Stack | None]
_At = Callable[[Position, Stack | None, Iterable[object]], int | None]


class Ceilings:
    """Of one grammar's states."""

    def __init__(self, automaton: Automaton, bounds: LexemeBounds) -> None:
        self._automaton = automaton
        self._bounds = bounds
        self._rough: BoundedCache[_Known, int] = BoundedCache(2048)
        self._close: BoundedCache[_Known, int] = BoundedCache(2048)

    def rough(self, config: Config, reach: Reach) -> int | None:
        """No fewer tokens than complete the text after any token that leads to one of the places; None if unknown.

        In a hurry: beginnings of lexemes cost what it may cost inside them.
        """
        return self._of(config, reach, self._rough, reach.outline, self._bounds.near)

    def close(self, config: Config, reach: Reach) -> int | None:
        """The same, and seldom more than any token needs."""
        return self._of(config, reach, self._close, reach.places, self._bounds.at)

    def _of(
        self, config: Config, reach: Reach, known: BoundedCache[_Known, int], places: tuple[Place, ...], at: _At
    ) -> int | None:
        position, stack = config
        # Of keys that share a mask, the bounds inside the key are the same; what follows knows the keys seen.
        key = (reach, position.frame if isinstance(position, Key) else None, stack)
        ceiling = known.get(key)
        if ceiling is None:
            ceiling = 0
            for place in places:
                cost = self._cost(config, place, at)
                ceiling = max(ceiling, _UNKNOWN if cost is None else cost)
            known.put(key, ceiling)
        return None if ceiling == _UNKNOWN else ceiling

    def _cost(self, config: Config, place: Place, at: _At) -> int | None:
        """No fewer tokens than it takes from any configuration that the place stands for."""
        own, stack = config
        for _ in range(place.num_closed):
            assert stack is not None, "states that share a mask have the frames that it closes"
            stack = stack.below
        position = own if place.position is None else place.position
        frames = place.frames
        if not place.num_closed and isinstance(own, Key):
            position, frames = _with_keys_of(own, position, frames)
        for frame in reversed(frames):
            stack = self._automaton.push(frame, stack)
        if place.is_inside:
            return self._bounds.inside(position, stack)
        return at(position, stack, frames)


def _with_keys_of(own: Key, position: Position, frames: tuple[Frame, ...]) -> tuple[Position, tuple[Frame, ...]]:
    """The place for the object of the state's own key, where the walk may have been that of a key of another object.

    The two objects differ by the keys that they have had, and only in places after a key that is in no way special.
    """
    if frames:
        *inner, outermost = frames
        return position, (*inner, _with_keys(own, outermost))
    frame = getattr(position, "frame", None)
    if isinstance(position, Completed) or not isinstance(frame, ObjectFrame):
        return position, frames
    changed = _with_keys(own, frame)
    return (position if changed is frame else msgspec.structs.replace(position, frame=changed)), frames


def _with_keys(own: Key, frame: Frame) -> Frame:
    if not isinstance(frame, ObjectFrame) or FRESH not in frame.seen:
        return frame
    seen = own.frame.seen | {FRESH}
    return frame if frame.seen == seen else msgspec.structs.replace(frame, seen=seen)
