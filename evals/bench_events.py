"""EventParser: server-sent events out of bytes that arrive in any pieces, as the HTML standard reads them."""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_LINE_BYTES: Final = 16 * 2**20
"""A line that grows beyond this is no event of any API, and would fill the memory."""


class Event(NamedTuple):
    """One event; `kind` is empty where the stream names none."""

    kind: str
    data: bytes
    """Its data lines, joined by line feeds."""


class EventParser:
    """Holds what has arrived of an event that is not complete. An event that the stream breaks off in never comes."""

    def __init__(self) -> None:
        self._rest = b""
        self._ends_in_return = False
        self._is_first_line = True
        self._kind = ""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[Event]:
        """The events that these bytes complete. Raises ValueError for a line of more than MAX_LINE_BYTES."""
        if not piece:
            return []
        if self._ends_in_return and piece.startswith(b"\n"):
            # The second half of a line end, of which the first half has ended the line already.
            piece = piece[1:]
            self._ends_in_return = False
            if not piece:
                return []
        self._ends_in_return = piece.endswith(b"\r")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise ValueError(f"a line of the stream has more than {MAX_LINE_BYTES} bytes")
        events: list[Event] = []
        for line in lines:
            self._take(line, events)
        return events

    def _take(self, line: bytes, events: list[Event]) -> None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            if self._data:
                events.append(Event(self._kind, b"\n".join(self._data)))
                self._data.clear()
            self._kind = ""
            return
        # A comment is a line whose name is empty.
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._kind = value.decode(errors="replace")
