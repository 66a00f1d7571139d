"""Repetition in arrays of unique items: whether what is being written can still differ from what occurred."""

from __future__ import annotations

from collections.abc import Callable

from specdec.grammars.frames import ArrayFrame
from specdec.grammars.stacks import Config

Feed = Callable[[Config, bytes], Config | None]
PossibleBytes = Callable[[Config], bytes]
"""Every byte that `Feed` takes, and others perhaps; the likely ones first."""


def can_differ(config: Config, feed: Feed, possible_bytes: PossibleBytes) -> bool:
    """Whether an item that may still become one that occurred can become another as well."""
    below = config[1]
    while below is not None and below.is_remembered:
        if isinstance(below.frame, ArrayFrame) and below.frame.is_repeating():
            return _finds_another(config, below.depth, feed, possible_bytes)
        below = below.below
    return True


def _finds_another(config: Config, depth: int, feed: Feed, possible_bytes: PossibleBytes) -> bool:
    pending = [config]
    while pending:
        current = pending.pop()
        below = current[1]
        while below is not None and below.depth > depth:
            below = below.below
        assert below is not None, "the item is not complete"
        frame = below.frame
        assert isinstance(frame, ArrayFrame), "only arrays remember"
        text, seen = frame.text, frame.seen or ()
        repeating = {one[len(text)] for one in seen if len(one) > len(text) and one.startswith(text)}
        for byte in possible_bytes(current):
            if byte not in repeating and feed(current, bytes((byte,))) is not None:
                return True
        for byte in repeating:
            after = feed(current, bytes((byte,)))
            if after is not None and after[1] is not None and after[1].depth >= depth:
                pending.append(after)
    return False
