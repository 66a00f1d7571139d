"""Layout: the whitespace between the tokens of JSON.

Compact text has none, and no object here. `Pretty` is what Python's `json.dumps(value, indent=2)` writes: a new line
and two spaces a level before every key, item and closing bracket, but none in an empty object or array, and one space
after a colon. A new line after an opening bracket or a value therefore says what comes. `Flexible` takes whitespace of
any kind, up to a number of characters, wherever RFC 8259 has it inside the root value.

Within arrays of unique items, whose texts are compared, both are compact.
"""

from __future__ import annotations

from typing import TypeAlias

from specdec.grammars.frames import ArrayFrame, ObjectFrame
from specdec.grammars.options import SchemaOptions
from specdec.grammars.positions import Closing, Gap, Indent, ObjectNext, Position, Value

WHITESPACE = b" \n\t\r"
_INDENTATION = b"  "


class Flexible:
    """Up to `max_whitespace` characters of whitespace in each place."""

    def __init__(self, max_whitespace: int) -> None:
        self._max_whitespace = max_whitespace

    def gap(self, position: Position, num_spaces: int) -> Gap | None:
        """The position after one more character of whitespace."""
        return Gap(position, num_spaces + 1) if num_spaces < self._max_whitespace else None


class Pretty:
    """Every break and indentation is given."""

    def line(self, frame: ObjectFrame | ArrayFrame, depth: int) -> Indent | Closing:
        """After the new line that announces the closing bracket of a frame with `depth` around it."""
        closing = Closing(frame)
        return Indent(closing, _INDENTATION * depth) if depth else closing

    def member(self, after: Value | ObjectNext, depth: int, *, is_on_line: bool) -> Indent:
        """Before a key or an item at a depth of at least one."""
        return Indent(after, (b"" if is_on_line else b"\n") + _INDENTATION * depth)

    def value(self, after: Value) -> Indent:
        """After a colon."""
        return Indent(after, b" ")


Layout: TypeAlias = Pretty | Flexible | None
"""None is compact."""


def layout_of(options: SchemaOptions) -> Layout:
    match options.whitespace:
        case "compact":
            return None
        case "pretty":
            return Pretty()
        case "flexible":
            return Flexible(options.max_whitespace)


def restriction_of(options: SchemaOptions) -> str:
    """What the layout says of every text, for the report."""
    match options.whitespace:
        case "compact":
            return "no whitespace between tokens of JSON"
        case "pretty":
            return "whitespace as Python's json.dumps writes it with an indent of 2, and none in arrays of unique items"
        case "flexible":
            return (
                f"at most {options.max_whitespace} characters of whitespace between tokens of JSON, none before and "
                "after the whole text, and none in arrays of unique items"
            )
