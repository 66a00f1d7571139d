"""Ceilings: the most tokens that it can take to complete a text after one more token, whichever the mask allows.

Where a budget leaves as many, it forbids nothing, and the mask without it will do: so it is at all but the last tokens
of most texts. A ceiling adds up over the few places that a mask's tokens lead to, without a look at the tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from specdec.grammars.automaton import Automaton
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frame_keys import FRESH
from specdec.grammars.frames import Frame, ObjectFrame
from specdec.grammars.lexeme_bounds import Frames, LexemeBounds
from specdec.grammars.positions import Completed, Key, Position
from specdec.grammars.reach import Place, Reach
from specdec.grammars.repeated_items import must_go_on
from specdec.grammars.stacks import Config, Stack

_UNKNOWN = 2**30
"""In place of the ceiling of a mask of which some token may have no known completion."""

_Known = BoundedCache[tuple[Reach, ObjectFrame | None, Stack | None], int]


class Ceilings:
    """Of one grammar's states."""

    def __init__(self, automaton: Automaton, bounds: LexemeBounds) -> None:
        self._automaton = automaton
        self._bounds = bounds
        self._rough: _Known = BoundedCache(2048)
        self._close: _Known = BoundedCache(2048)

    def rough(self, config: Config, reach: Reach) -> int | None:
        """No fewer tokens than complete the text after any token that leads to one of the places; None if unknown.

        In a hurry: every part of a completion is spelt by itself, and some places cost what others do.
        """
        if not self._bounds.is_apart(config[1]):
            return self.close(config, reach)
        return _or_none(self._find(config, reach, self._rough, self._cost_apart, is_outline=True))

    def close(self, config: Config, reach: Reach) -> int | None:
        """The same, and seldom more than any token needs."""
        return _or_none(self._find(config, reach, self._close, self._cost, is_outline=False))

    def _find(
        self,
        config: Config,
        reach: Reach,
        known: _Known,
        cost_of: Callable[[Place, Position, Frames, Stack | None], int | None],
        *,
        is_outline: bool,
    ) -> int:
        position, stack = config
        # Of keys that share a mask, the bounds inside the key are the same; what follows knows the keys seen.
        key = (reach, position.frame if isinstance(position, Key) else None, stack)
        ceiling = known.get(key)
        if ceiling is None:
            ceiling = 0
            if reach.like is not None:
                ceiling = self._find(config, reach.like, known, cost_of, is_outline=is_outline)
            for place in reach.outline if is_outline else reach.places:
                cost = cost_of(place, *_found(config, place))
                ceiling = max(ceiling, _UNKNOWN if cost is None else cost)
            known.put(key, ceiling)
        return ceiling

    def _cost_apart(self, place: Place, position: Position, frames: Frames, stack: Stack | None) -> int | None:
        if not place.is_apart:
            return self._cost(place, position, frames, stack)
        if place.is_inside:
            return self._bounds.inside(position, frames, stack)
        cost = self._bounds.near(position, frames, stack)
        if cost is None or not place.is_fresh:
            return cost
        return cost + self._bounds.margins(position, frames)

    def _cost(self, place: Place, position: Position, frames: Frames, stack: Stack | None) -> int | None:
        whole = self._automaton.pushed(frames, stack)
        if place.is_inside:
            return self._bounds.inside(position, (), whole)
        # What must follow depends on an item, of which the walk did not know the text.
        cost = self._bounds.most_at(position, whole) if must_go_on(whole) else self._bounds.at(position, whole)
        return None if cost is None else cost + self._bounds.margins(position, frames)


def _or_none(ceiling: int) -> int | None:
    return None if ceiling == _UNKNOWN else ceiling


def _found(config: Config, place: Place) -> tuple[Position, Frames, Stack | None]:
    """The place where the state is: the position, the frames opened and the stack that they are on."""
    own, stack = config
    for _ in range(place.num_closed):
        assert stack is not None, "states that share a mask have the frames that it closes"
        stack = stack.below
    position = own if place.position is None else place.position
    if place.is_fresh and not place.num_closed and isinstance(own, Key):
        return (*_with_keys_of(own, position, place.frames), stack)
    return position, place.frames, stack


def _with_keys_of(own: Key, position: Position, frames: Frames) -> tuple[Position, Frames]:
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
