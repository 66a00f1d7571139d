"""ParameterCallReader: calls whose arguments are written one by one, made into the JSON text of an object.

As tool_calls.py it relies on the grammar: what is no free text is calls in the format.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from typing import Literal

from specdec.grammars import ParameterFormat, ParameterKind, ToolCallFormat
from specdec.server.tool_calls import ArgumentsPiece, CallBegin, CallReader, Piece

_NULL = "null"


class _Place(enum.Enum):
    OUTSIDE = enum.auto()
    """Before a call, or between two."""
    PARAMETERS = enum.auto()
    """Before a parameter, or the end of the call."""
    TEXT = enum.auto()
    TEXT_OR_NULL = enum.auto()
    """At the beginning of what is a string unless it is `null`."""
    JSON = enum.auto()


class ParameterCallReader(CallReader):
    """One choice. `kinds` are those of the parameters of each function; what has none is text."""

    def __init__(
        self,
        form: ToolCallFormat,
        parameters: ParameterFormat,
        kinds: Mapping[str, Mapping[str, ParameterKind]],
        *,
        text: Literal["none", "before", "instead"],
        id_length: int | None = None,
    ) -> None:
        super().__init__(form, text=text, id_length=id_length)
        assert form.name_end is not None, "parameters follow a bare name"
        assert form.text_end != form.begin, "of a call's begin there is more than its marker"
        self._call_begin = form.begin.removeprefix(form.text_end)
        self._name_end_text = form.name_end
        self._end = form.end
        self._form = parameters
        self._kinds = kinds
        self._own: Mapping[str, ParameterKind] = {}
        self._at = _Place.OUTSIDE
        self._rest = ""
        """What has been read, and is not told yet from what may follow it."""
        self._has_parameters = False

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and none is open."""
        return self.num_calls > 0 and self._at is _Place.OUTSIDE and not self._rest

    def _read_calls(self, text: str) -> Iterator[Piece]:
        self._rest += text
        while (pieces := self._step()) is not None:
            yield from pieces

    def _step(self) -> list[Piece] | None:
        """Read on by one part of the format, or as much of a value as there is; None where more has to come first."""
        match self._at:
            case _Place.OUTSIDE:
                return self._read_name()
            case _Place.PARAMETERS:
                return self._read_structure()
            case _Place.TEXT_OR_NULL:
                return self._read_null()
            case _:
                return self._read_value()

    def _read_name(self) -> list[Piece] | None:
        _, found, head = self._rest.partition(self._call_begin)
        name, has_end, rest = head.partition(self._name_end_text)
        if not found or not has_end:
            return None
        self._rest, self._at, self._has_parameters = rest, _Place.PARAMETERS, False
        self._own = self._kinds.get(name, {})
        self.num_calls += 1
        return [CallBegin(self.num_calls - 1, self._new_id(), name)]

    def _read_structure(self) -> list[Piece] | None:
        if self._rest.startswith(self._end):
            self._rest, self._at = self._rest[len(self._end) :], _Place.OUTSIDE
            return self._pieces("}" if self._has_parameters else "{}")
        name, has_end, rest = self._rest.removeprefix(self._form.begin).partition(self._form.name_end)
        if not self._rest.startswith(self._form.begin) or not has_end:
            return None
        kind = self._own.get(name, ParameterKind.TEXT)
        self._rest, self._at = rest, _Place[kind.name]
        key = (", " if self._has_parameters else "{") + _quoted(name) + ": "
        self._has_parameters = True
        return self._pieces(key + '"' if kind is ParameterKind.TEXT else key)

    def _read_null(self) -> list[Piece] | None:
        null = _NULL + self._form.end
        if self._rest.startswith(null):
            self._at = _Place.JSON
        elif null.startswith(self._rest):
            return None
        else:
            self._at = _Place.TEXT
        return [] if self._at is _Place.JSON else self._pieces('"')

    def _read_value(self) -> list[Piece] | None:
        end = self._form.end + self._form.after
        place = self._rest.find(self._form.end)
        if place >= 0 and len(self._rest) < place + len(end):
            # The value is whole, and is shown when what follows it is.
            return None
        is_text = self._at is _Place.TEXT
        if place >= 0:
            value, self._rest, self._at = self._rest[:place], self._rest[place + len(end) :], _Place.PARAMETERS
            return self._pieces(_escaped(value) + '"' if is_text else value)
        num_held = max(
            (length for length in range(1, len(self._form.end)) if self._rest.endswith(self._form.end[:length])),
            default=0,
        )
        value, self._rest = self._rest[: len(self._rest) - num_held], self._rest[len(self._rest) - num_held :]
        return self._pieces(_escaped(value) if is_text else value) if value else None

    def _pieces(self, text: str) -> list[Piece]:
        return [ArgumentsPiece(self.num_calls - 1, text)] if text else []


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    return _quoted(text)[1:-1]
