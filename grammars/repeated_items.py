"""Where a completion might repeat an item of an array whose items must differ."""

from __future__ import annotations

import json
from collections.abc import Iterator

from specdec.grammars.frames import ArrayFrame
from specdec.grammars.stacks import Config, Stack

NO_ITEM = b"\xff"
"""An item unlike any other: no text has this byte."""

_DECODER = json.JSONDecoder()


def may_repeat(stack: Stack | None) -> bool:
    """Whether what would complete the text, if items were not remembered, might repeat one with the present item."""
    while stack is not None and stack.is_remembered:
        if isinstance(stack.frame, ArrayFrame) and stack.frame.is_repeating():
            return True
        stack = stack.below
    return False


def must_go_on(stack: Stack | None) -> bool:
    """Whether items must follow the present one that are unlike it and all before it."""
    while stack is not None and stack.is_remembered:
        frame, stack = stack.frame, stack.below
        if isinstance(frame, ArrayFrame) and frame.seen is not None and not frame.all_may_close():
            return True
    return False


def repeats_present_item(config: Config, data: bytes) -> bool | None:
    """Whether the bytes end the present item as one that occurred; None where more than that matters."""
    stack = config[1]
    frame: ArrayFrame | None = None
    while stack is not None and stack.is_remembered:
        if isinstance(stack.frame, ArrayFrame) and stack.frame.seen is not None:
            if frame is not None:
                return None
            frame = stack.frame
        stack = stack.below
    if frame is None or not all(run.rule.is_unique for run in frame.runs):
        return None
    return any(ends_item(frame.text + data, one) for one in frame.seen or () if one.startswith(frame.text))


def ends_item(completed: bytes, item: bytes) -> bool:
    """Whether the item is the first of these, which go on to the end of its array."""
    return completed.startswith(item) and completed[len(item) : len(item) + 1] in (b",", b"]")


def items_of(rest: bytes) -> Iterator[bytes]:
    """The items of the rest of an array, which begins with a comma or the closing bracket; the text may go on.

    Whitespace comes before those that nothing remembers any more.
    """
    text = rest.decode()
    comma = 0
    while text[comma] == ",":
        begin = len(text) - len(text[comma + 1 :].lstrip())
        _, comma = _DECODER.raw_decode(text, begin)
        yield text[begin:comma].encode()
