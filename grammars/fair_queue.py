"""FairQueue: those who wait, in the order in which they are served, of whom no caller waits for another's many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Start-time fair queueing (Goyal et al. 1996), a turn for each item; not thread-safe.

    Callers take turns, and each caller's own items are served in order. Items are told apart by identity.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry[T]] = []
        """In order of turns, those of the same turn as they came."""
        self._turn = 0
        """The highest of those served."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return (entry.item for entry in self._entries)

    def add(self, caller: str, item: T) -> None:
        """Queue an item; one that is queued already is served for this caller as well, where that is sooner."""
        own = [entry.turn for entry in self._entries if entry.caller == caller]
        turn = max([self._turn, *(each + 1 for each in own)])
        known = next((entry for entry in self._entries if entry.item is item), None)
        if known is not None:
            if known.turn <= turn:
                return
            self._entries.remove(known)
        place = len(self._entries)
        while place and self._entries[place - 1].turn > turn:
            place -= 1
        self._entries.insert(place, _Entry(caller, item, turn))

    def remove(self, item: T, *, is_served: bool = False) -> None:
        """Take an item out, which has had its turn if it is served; nothing where it is not queued."""
        for place, entry in enumerate(self._entries):
            if entry.item is item:
                del self._entries[place]
                if is_served:
                    self._turn = max(self._turn, entry.turn)
                return


class _Entry(Generic[T]):
    __slots__ = ("caller", "item", "turn")

    def __init__(self, caller: str, item: T, turn: int) -> None:
        self.caller = caller
        self.item = item
        self.turn = turn
