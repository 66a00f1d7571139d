"""Positions: what the text inside the innermost open frame is in the middle of.

A state is a position and the stack of frames around it. Every position is a value: equal ones are interchangeable.
"""

from __future__ import annotations

import msgspec

from specdec.grammars.frames import ArrayFrame, Goals, ObjectFrame


class Value(msgspec.Struct, frozen=True, cache_hash=True):
    """Before the first byte of a value."""

    goals: Goals


class Literal(msgspec.Struct, frozen=True, cache_hash=True):
    """Inside null, true, false or a number."""

    goals: Goals
    text: bytes | None
    """The bytes so far while they begin a single value of the grammar (an enum's number, true ...), else None."""
    number: int
    """State of the number automaton, or DEAD."""


class String(msgspec.Struct, frozen=True, cache_hash=True):
    """Inside a string value."""

    goals: Goals
    state: int
    """State of the plain string automaton, or of the terms' own where there is one."""
    length: int
    """Code points so far, counted only as far as the count matters."""
    text: bytes | None
    """The bytes so far while they begin a single string of the grammar, else None."""


class Key(msgspec.Struct, frozen=True, cache_hash=True):
    """Inside a key."""

    frame: ObjectFrame
    state: int
    """State of the plain string automaton, or of the key classes' own where there is one; DEAD if in no class."""
    text: bytes


class AfterKey(msgspec.Struct, frozen=True, cache_hash=True):
    """Before a colon; the frame waits for the value."""

    frame: ObjectFrame


class ObjectStart(msgspec.Struct, frozen=True, cache_hash=True):
    """After an opening brace."""

    frame: ObjectFrame


class ObjectNext(msgspec.Struct, frozen=True, cache_hash=True):
    """After a comma in an object."""

    frame: ObjectFrame


class ObjectEnd(msgspec.Struct, frozen=True, cache_hash=True):
    """After a value in an object."""

    frame: ObjectFrame


class ArrayStart(msgspec.Struct, frozen=True, cache_hash=True):
    """After an opening bracket."""

    frame: ArrayFrame


class ArrayEnd(msgspec.Struct, frozen=True, cache_hash=True):
    """After an item."""

    frame: ArrayFrame


class Closing(msgspec.Struct, frozen=True, cache_hash=True):
    """Before the closing bracket that a new line has announced."""

    frame: ObjectFrame | ArrayFrame


class Indent(msgspec.Struct, frozen=True, cache_hash=True):
    """Inside layout that is given byte by byte."""

    after: Value | ObjectNext | Closing
    pending: bytes
    """What is left of it; at least one byte."""


class Gap(msgspec.Struct, frozen=True, cache_hash=True):
    """After whitespace that need not have been."""

    after: Position
    """Between tokens of JSON."""
    num_spaces: int


class Raw(msgspec.Struct, frozen=True, cache_hash=True):
    """Inside text that is no JSON; no frame is open."""

    state: int


class Completed(msgspec.Struct, frozen=True, cache_hash=True):
    """After a value that met these goals, the frame around it not yet told: resolved before a state is made."""

    goals: frozenset[int]


class Done(msgspec.Struct, frozen=True, cache_hash=True):
    """After the whole text."""


class Terminated(msgspec.Struct, frozen=True, cache_hash=True):
    """After end-of-sequence."""


Position = (
    Value | Literal | String | Key | AfterKey | ObjectStart | ObjectNext | ObjectEnd | ArrayStart | ArrayEnd
    | Closing | Indent | Gap | Raw | Completed | Done | Terminated
)  # fmt: skip
