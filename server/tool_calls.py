"""CallReader: the text of an answer under a grammar of calls, taken apart while it grows.

It relies on the grammar: what is no free text is calls in the format, so that braces and quotes alone say where a name
and where arguments stand. Nothing here searches a model's text by a pattern.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Iterator
from typing import Literal

import msgspec

from specdec.grammars import ToolCallFormat


class TextPiece(msgspec.Struct, frozen=True):
    """Free text that goes on."""

    text: str


class CallBegin(msgspec.Struct, frozen=True):
    """A call whose function is known; `index` counts the calls of the answer."""

    index: int
    id: str
    name: str


class ArgumentsPiece(msgspec.Struct, frozen=True):
    """JSON text by which the arguments of a call go on."""

    index: int
    text: str


Piece = TextPiece | CallBegin | ArgumentsPiece


class _Place(enum.Enum):
    TEXT = enum.auto()
    OUTSIDE = enum.auto()
    """Before a call, between two, or behind the last one."""
    HEAD = enum.auto()
    """From a call's brace to that of its arguments."""
    ARGUMENTS = enum.auto()
    TAIL = enum.auto()
    """From the end of the arguments to that of the call."""


class CallReader:
    """One choice; no part of the format has a brace.

    `text` says whether there may be text: `before` calls, or `instead` of them. `id_length` is that of a call's id
    where the model's template insists on one.
    """

    def __init__(
        self, form: ToolCallFormat, *, text: Literal["none", "before", "instead"], id_length: int | None = None
    ) -> None:
        # Without a begin, calls start with their brace, and there is no text before them.
        self._marker = form.text_end or "{"
        self._begin, self._name_end = form.begin, form.name_end
        self._is_only_at_start = text == "instead" or not form.text_end
        self._id_length = id_length
        self._place = _Place.OUTSIDE if text == "none" else _Place.TEXT
        self._held = ""
        self._has_shown = False
        self._head: list[str] = []
        self._num_strings = 0
        self._is_in_string = False
        self._is_escaped = False
        self._depth = 0
        self.num_calls = 0
        """Calls that have begun."""
        self.num_text_characters = 0
        """Of the text that was read and is not held back."""

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and none is open."""
        return self.num_calls > 0 and self._place is _Place.OUTSIDE and not self._head

    @property
    def is_after_text(self) -> bool:
        """Whether all that comes is calls."""
        return self._place is not _Place.TEXT

    def read(self, text: str) -> Iterator[Piece]:
        """What the next piece of the answer says."""
        if self._place is _Place.TEXT:
            text, shown = self._after_free_text(text)
            self.num_text_characters += len(shown)
            if shown:
                yield TextPiece(shown)
        if self._place is not _Place.TEXT:
            yield from self._read_calls(text)

    def _read_calls(self, text: str) -> Iterator[Piece]:
        """What comes after free text, or instead of it."""
        start = 0
        for position, character in enumerate(text):
            if self._place is _Place.ARGUMENTS:
                if self._ends_arguments(character):
                    yield ArgumentsPiece(self.num_calls - 1, text[start : position + 1])
                    self._place = _Place.TAIL if self._name_end is None else _Place.OUTSIDE
            elif self._place is _Place.HEAD:
                name = self._read_head(character)
                if name is not None:
                    yield CallBegin(self.num_calls - 1, self._new_id(), name)
                start = position
            elif self._name_end is not None:
                name = self._read_bare_name(character, self._name_end)
                if name is not None:
                    yield CallBegin(self.num_calls - 1, self._new_id(), name)
                    start = position
            elif character == "{":
                self._begin_call()
            elif character == "}":
                self._place = _Place.OUTSIDE
        if self._place is _Place.ARGUMENTS and text[start:]:
            yield ArgumentsPiece(self.num_calls - 1, text[start:])

    def end(self) -> Iterator[Piece]:
        """What is still held back, once the answer has ended."""
        if self._held:
            held, self._held = self._held, ""
            self.num_text_characters += len(held)
            yield TextPiece(held)

    def _after_free_text(self, text: str) -> tuple[str, str]:
        """The rest of a text in which free text ends, and the free text that can be shown."""
        text = self._held + text
        self._held = ""
        may_find = not (self._is_only_at_start and self._has_shown)
        place = text.find(self._marker) if may_find else -1
        if place == 0 or (place > 0 and not self._is_only_at_start):
            self._place = _Place.OUTSIDE
            # A brace is both the marker and the beginning of the call.
            return text[place:].removeprefix("" if self._marker == "{" else self._marker), text[:place]
        if self._is_only_at_start:
            num_held = len(text) if may_find and self._marker.startswith(text) else 0
        else:
            num_held = max(
                (length for length in range(1, len(self._marker)) if text.endswith(self._marker[:length])), default=0
            )
        shown, self._held = text[: len(text) - num_held], text[len(text) - num_held :]
        self._has_shown = self._has_shown or bool(shown)
        return "", shown

    def _begin_call(self) -> None:
        self._place = _Place.HEAD
        self._head = []
        self._num_strings = 0
        self._is_in_string = self._is_escaped = False
        self.num_calls += 1

    def _read_head(self, character: str) -> str | None:
        """The name, once its string has ended: the second one, after its key."""
        was_in_string = self._is_in_string
        self._follow_string(character)
        if was_in_string or self._is_in_string:
            self._head.append(character)
        if was_in_string and not self._is_in_string:
            self._num_strings += 1
            spelt, self._head = "".join(self._head), []
            return msgspec.json.decode(spelt, type=str) if self._num_strings == 2 else None
        if character == "{" and not self._is_in_string:
            self._place = _Place.ARGUMENTS
            self._depth = 1
        return None

    def _read_bare_name(self, character: str, name_end: str) -> str | None:
        """The name, once its arguments begin; a call's begin, or the rest of it, and an end may stand before it."""
        if character != "{":
            self._head.append(character)
            return None
        head = "".join(self._head).rstrip().removesuffix(name_end)
        self._begin_call()
        self._place = _Place.ARGUMENTS
        self._depth = 1
        return head.rpartition(self._begin)[2]

    def _ends_arguments(self, character: str) -> bool:
        if not self._is_in_string:
            self._depth += (character == "{") - (character == "}")
        self._follow_string(character)
        return self._depth == 0

    def _follow_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == '"':
            self._is_in_string = not self._is_in_string
        elif character == "\\":
            self._is_escaped = self._is_in_string

    def _new_id(self) -> str:
        return f"call_{secrets.token_hex(12)}" if self._id_length is None else secrets.token_hex(8)[: self._id_length]
