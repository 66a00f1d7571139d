"""Repetition in arrays of unique items: whether what is being written can still differ from what occurred."""

from __future__ import annotations

from collections.abc import Callable

from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import ArrayFrame
from specdec.grammars.positions import Literal
from specdec.grammars.stacks import Config

Feed = Callable[[Config, bytes], Config | None]
PossibleBytes = Callable[[Config], bytes]
"""Every byte that `Feed` takes, and others perhaps; the likely ones first."""

_ENDS = frozenset(b",]")


class Repetitions:
    """Of one grammar's automaton. What was found out is kept; it changes no answer."""

    def __init__(self, feed: Feed, possible_bytes: PossibleBytes) -> None:
        self._feed = feed
        self._possible_bytes = possible_bytes
        self._known: BoundedCache[Config, bool] = BoundedCache(4096)

    def can_differ(self, config: Config) -> bool:
        """Whether an item that may still become one that occurred can become another as well, or repeat that one."""
        below = config[1]
        while below is not None and below.is_remembered:
            if isinstance(below.frame, ArrayFrame) and below.frame.is_repeating():
                return self._finds_another(config, below.depth)
            below = below.below
        return True

    def can_differ_from_another(self, config: Config, text: bytes) -> bool:
        """Whether an item can become one that did not occur, nor is one more, of which this is the beginning.

        What is written of the item begins the text. False where that is not seen on the way along the text.
        """
        depth, begun = _present_item(config)
        current: Config | None = config
        while current is not None and len(begun) < len(text):
            repeating = _repeating_bytes(current, depth) | {text[len(begun)]}
            if self._others(current, repeating, 1):
                return True
            begun = text[: len(begun) + 1]
            current = self._feed(current, begun[-1:])
            if current is not None and (current[1] is None or current[1].depth < depth):
                # The item is complete, where one more goes on.
                return False
        # Past its known beginning, the one more goes on with some byte.
        return current is not None and len(self._others(current, _repeating_bytes(current, depth), 2)) == 2

    def can_differ_from_any(self, config: Config) -> bool:
        """The same, whatever one more had occurred. False where that is not seen by the first choice of bytes."""
        depth, _ = _present_item(config)
        while True:
            repeating = _repeating_bytes(config, depth)
            # What ends a number makes one and the same item.
            if len(self._others(config, repeating | _ENDS if isinstance(config[0], Literal) else repeating, 2)) == 2:
                return True
            taken = self._others(config, set(), 2)
            after = self._feed(config, taken) if len(taken) == 1 else None
            if after is None or after[1] is None or after[1].depth < depth:
                return False
            config = after

    def _finds_another(self, config: Config, depth: int) -> bool:
        """Follow the items that occurred until a byte may come that is none of theirs."""
        before: dict[Config, Config | None] = {}
        pending: list[tuple[Config, Config | None]] = [(config, None)]
        while pending:
            current, before[current] = pending.pop()
            is_found = self._known.get(current)
            if is_found is None:
                repeating = _repeating_bytes(current, depth)
                is_found = bool(self._others(current, repeating, 1))
                for byte in () if is_found else repeating:
                    after = self._feed(current, bytes((byte,)))
                    if after is None:
                        continue
                    if after[1] is None or after[1].depth < depth:
                        # Some alternative goes on past the repetition.
                        is_found = True
                        break
                    pending.append((after, current))
            if is_found:
                # So may it from everywhere on the way, and what was followed to its end beside it cannot.
                self._keep(before, found=current)
                return True
        self._keep(before, found=None)
        return False

    def _others(self, config: Config, repeating: set[int], most: int) -> bytes:
        """Bytes that may come beside these, at most so many."""
        found = bytearray()
        for byte in self._possible_bytes(config):
            if byte not in repeating and self._feed(config, bytes((byte,))) is not None:
                found.append(byte)
                if len(found) == most:
                    break
        return bytes(found)

    def _keep(self, before: dict[Config, Config | None], found: Config | None) -> None:
        for config in before:
            self._known.put(config, False)
        at = found
        while at is not None:
            self._known.put(at, True)
            at = before.get(at)


def _present_item(config: Config) -> tuple[int, bytes]:
    """The depth of the array that remembers its items, and what is written of the present one."""
    below = config[1]
    while below is not None:
        if isinstance(below.frame, ArrayFrame) and below.frame.seen is not None:
            return below.depth, below.frame.text
        below = below.below
    raise AssertionError("asked inside an item that is remembered")


def _repeating_bytes(config: Config, depth: int) -> set[int]:
    """Those with which the present item goes on as one that occurred."""
    below = config[1]
    while below is not None and below.depth > depth:
        below = below.below
    assert below is not None, "the item is not complete"
    frame = below.frame
    assert isinstance(frame, ArrayFrame), "only arrays remember"
    text = frame.text
    return {one[len(text)] for one in frame.seen or () if len(one) > len(text) and one.startswith(text)}
