"""Reach: where the tokens of one mask lead.

States share a mask where it depends on no more than the position and some frames of the stack. What is said here is
therefore relative to the stack: how many frames a token closes, which it opens, and the position that it leaves.
"""

from __future__ import annotations

from typing import NamedTuple

from specdec.grammars.frames import Frame
from specdec.grammars.positions import AfterKey, Position
from specdec.grammars.stacks import Config, Stack

Arrival = tuple[Position, Stack | None, bool]
"""A configuration at which a walk arrived, and whether its tokens may end anywhere inside the lexeme from there."""


class Place(NamedTuple):
    """Where some token may lead."""

    position: Position | None
    """None for the state's own position, which may be another for each state that shares the mask."""
    frames: tuple[Frame, ...]
    """Those opened, innermost first."""
    num_closed: int
    is_inside: bool
    """Whether tokens end anywhere inside the lexeme that goes on from the position, rather than at it."""


class Reach:
    """The places of one mask; told by identity."""

    __slots__ = ("_arrivals", "_config", "_like", "_outline", "_places")

    def __init__(self, config: Config, arrivals: list[Arrival], like: Reach | None) -> None:
        """What a walk from the configuration arrived at, beside the places of a mask that it began with."""
        self._config: Config | None = config
        self._arrivals = arrivals
        self._like = like
        self._places: tuple[Place, ...] = ()
        self._outline: tuple[Place, ...] | None = None

    @property
    def outline(self) -> tuple[Place, ...]:
        """The places without those that cost no more than some place inside a lexeme.

        These are the beginnings of the lexemes, and the ends of keys where an object's members are not counted.
        """
        if self._outline is None:
            places = self.places
            inside = {place[:3] for place in places if place.is_inside}
            self._outline = tuple(
                place
                for place in places
                if place.is_inside or not (place[:3] in inside or _ends_plain_key(place.position))
            )
        return self._outline

    @property
    def places(self) -> tuple[Place, ...]:
        """Each once; worked out where a budget first asks for them."""
        if self._config is not None:
            own = [_place(self._config, *arrival) for arrival in self._arrivals]
            inherited = () if self._like is None else self._like.places
            self._places = tuple(dict.fromkeys((*inherited, *own)))
            self._config, self._arrivals, self._like = None, [], None
        return self._places


def _place(config: Config, position: Position, stack: Stack | None, is_inside: bool) -> Place:
    own, around = config
    frames: list[Frame] = []
    num_closed = 0
    # Stacks are interned: what both have in common is one object.
    while stack is not around:
        depth, depth_around = _depth(stack), _depth(around)
        if depth >= depth_around:
            assert stack is not None, "only frames have a depth"
            frames.append(stack.frame)
            stack = stack.below
        if depth_around >= depth:
            assert around is not None, "only frames have a depth"
            around = around.below
            num_closed += 1
    return Place(None if position is own else position, tuple(frames), num_closed, is_inside)


def _ends_plain_key(position: Position | None) -> bool:
    return isinstance(position, AfterKey) and all(run.rule.is_plain for run in position.frame.runs)


def _depth(stack: Stack | None) -> int:
    return 0 if stack is None else stack.depth
