"""Reach: where the tokens of one mask lead.

States share a mask where it depends on no more than the position and some frames of the stack. What is said here is
therefore relative to the stack: how many frames a token closes, which it opens, and the position that it leaves.
"""

from __future__ import annotations

from typing import NamedTuple

from specdec.grammars.frame_keys import FRESH
from specdec.grammars.frames import ArrayFrame, Frame, ObjectFrame, RawFrame
from specdec.grammars.positions import AfterKey, Key, Position, Value
from specdec.grammars.rules import ObjectRule
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
    is_apart: bool
    """Whether no frame that was opened is raw text, or an array that remembers its items."""
    is_fresh: bool
    """Whether some object that was opened, or went on, has had the key that FRESH stands for."""


class Reach:
    """The places of one mask; told by identity."""

    __slots__ = ("_arrivals", "_config", "_outline", "_own", "_places", "like")

    def __init__(self, config: Config, arrivals: list[Arrival], like: Reach | None) -> None:
        """What a walk from the configuration arrived at."""
        self.like = like
        """Places of a mask that the walk began with, beside its own."""
        self._own = config[0]
        self._config: Config | None = config
        self._arrivals = arrivals
        self._places: tuple[Place, ...] = ()
        self._outline: tuple[Place, ...] | None = None

    @property
    def outline(self) -> tuple[Place, ...]:
        """The places without those that cost no more than some place inside a lexeme, each part spelt by itself.

        These are the beginnings of the lexemes, and of objects whose members come in order and are not counted the ends
        of their keys and the beginnings of their values.
        """
        if self._outline is None:
            places = self.places
            inside = {place[:3] for place in places if place.is_inside}
            keys = {place[1:3] for place in places if place.is_inside and isinstance(place.position or self._own, Key)}
            self._outline = tuple(
                place
                for place in places
                if place.is_inside or not (place[:3] in inside or _is_told_by_key(place, keys))
            )
        return self._outline

    @property
    def places(self) -> tuple[Place, ...]:
        """Each once; worked out where a budget first asks for them."""
        if self._config is not None:
            self._places = tuple(dict.fromkeys(_place(self._config, *arrival) for arrival in self._arrivals))
            self._config, self._arrivals = None, []
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
    is_apart, is_fresh = True, False
    for frame in (getattr(position, "frame", None), *frames):
        if isinstance(frame, ObjectFrame):
            is_fresh = is_fresh or FRESH in frame.seen
        elif isinstance(frame, RawFrame) or (isinstance(frame, ArrayFrame) and frame.seen is not None):
            is_apart = False
    return Place(None if position is own else position, tuple(frames), num_closed, is_inside, is_apart, is_fresh)


def _is_told_by_key(place: Place, keys: set[tuple[tuple[Frame, ...], int]]) -> bool:
    """Whether the place is the end of a key, or the beginning of the value after it, of which the inside is a place."""
    if isinstance(place.position, AfterKey):
        frame, frames = place.position.frame, place.frames
    elif isinstance(place.position, Value) and place.frames and isinstance(place.frames[0], ObjectFrame):
        frame, frames = place.frames[0], place.frames[1:]
    else:
        return False
    return (frames, place.num_closed) in keys and all(
        isinstance(run.rule, ObjectRule) and run.rule.is_plain for run in frame.runs
    )


def _depth(stack: Stack | None) -> int:
    return 0 if stack is None else stack.depth
