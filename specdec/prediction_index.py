"""PredictionIndex: the tokens of a prediction, and where the runs of tokens in it end.

Built once a request, with sorts over whole arrays, which leave other threads their turn: 0.1 s for 100,000 tokens. Each
look-up is a few binary searches.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MIN_N: Final = 2
MAX_N: Final = 8
"""The lengths, in tokens, of the runs by which a place in a prediction is found."""
_TOKEN_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class _Runs:
    """All runs of n tokens whose last n - 1 occur more than once, or all of them for the shortest n.

    R runs, E ends. A run's key is the number of its last n - 1 tokens among the runs one shorter, then its first token.
    """

    keys: NDArray[np.int64]
    """[R], ascending."""
    first_end: NDArray[np.int64]
    """[R + 1]: where each run's ends begin."""
    ends: NDArray[np.int32]
    """[E]: positions behind a run, ascending for each."""

    def number(self, key: int) -> int | None:
        """Of the run with this key."""
        place = int(np.searchsorted(self.keys, key))
        return place if place < len(self.keys) and self.keys[place] == key else None

    def ends_of(self, number: int) -> NDArray[np.int32]:
        return self.ends[self.first_end[number] : self.first_end[number + 1]]


class PredictionIndex:
    """Immutable; all choices of a request share one."""

    __slots__ = ("_order", "_runs", "_sorted", "token_ids")

    def __init__(self, token_ids: AbstractSequence[int]) -> None:
        self.token_ids = tuple(token_ids)
        self._runs: list[_Runs] = []
        """By n, from MIN_N on; those longer than tell places apart are left out."""
        tokens = np.array(self.token_ids, np.int64)
        self._order = np.argsort(tokens, kind="stable")
        self._sorted = tokens[self._order]
        # What ends with the prediction has nothing to follow it.
        ends = np.arange(1, len(tokens), dtype=np.int32)
        numbers = tokens[:-1]
        for n in range(MIN_N, MAX_N + 1):
            is_long = ends >= n
            ends, numbers = ends[is_long], numbers[is_long]
            if not len(ends):
                break
            keys = numbers << _TOKEN_BITS | tokens[ends - n]
            # Stable, so that the ends of a run stay in order.
            order = np.argsort(keys, kind="stable")
            keys, ends = keys[order], ends[order]
            is_first = np.append(True, keys[1:] != keys[:-1])
            first_end = np.append(np.flatnonzero(is_first), len(keys))
            self._runs.append(_Runs(keys[is_first], first_end, ends))
            counts = np.diff(first_end)
            # A run that ends in one place alone needs no longer ones.
            is_repeated = np.repeat(counts > 1, counts)
            numbers = np.repeat(np.arange(len(counts)), counts)[is_repeated]
            ends = ends[is_repeated]

    def find(self, tail: AbstractSequence[int], position: int) -> tuple[int, int] | None:
        """Behind the longest run that ends `tail`: the nearest such place from `position` on, or else the last one.

        The place, and how many of the tail's last MAX_N tokens agree there; None where not even two do.
        """
        if len(tail) < MIN_N:
            return None
        number, found, num_agreed = tail[-1], None, 0
        for n, runs in enumerate(self._runs[: len(tail) - MIN_N + 1], MIN_N):
            longer = runs.number(number << _TOKEN_BITS | tail[-n])
            if longer is None:
                break
            number, found, num_agreed = longer, runs, n
        if found is None:
            return None
        ends = found.ends_of(number)
        i = int(np.searchsorted(ends, position))
        end = int(ends[i] if i < len(ends) else ends[-1])
        while num_agreed < min(len(tail), MAX_N, end) and self.token_ids[end - num_agreed - 1] == tail[-num_agreed - 1]:
            num_agreed += 1
        return end, num_agreed

    def find_token(self, token_id: int, position: int) -> int | None:
        """Behind the nearest such token from `position` on; None where there is none, or nothing follows it."""
        first, last = np.searchsorted(self._sorted, (token_id, token_id + 1))
        places = self._order[first:last]
        i = int(np.searchsorted(places, position))
        return int(places[i]) + 1 if i < len(places) and places[i] + 1 < len(self.token_ids) else None
