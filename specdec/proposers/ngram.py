"""NgramDrafter: what followed the last few tokens when they last occurred (prompt lookup, Saxena 2023)."""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from specdec.proposers.base import NO_GUESS, Draft, Guess
from specdec.sequence import Sequence

_MAX_CONFIDENCE: Final = 8
"""Longer matches are not told apart: hardly any is wrong."""


class _NgramIndex:
    """Where each n-gram of one sequence last ended, for n in [min_n, max_n]; grows with the sequence."""

    __slots__ = ("_ends", "_max_n", "_min_n", "_num_indexed")

    def __init__(self, min_n: int, max_n: int) -> None:
        self._min_n = min_n
        self._max_n = max_n
        self._num_indexed = 0
        self._ends: dict[tuple[int, ...], int] = {}

    def extend(self, token_ids: list[int]) -> None:
        """Index what was written since; not the n-grams that end at the last token: nothing has followed them yet."""
        for end in range(self._num_indexed + 1, len(token_ids)):
            for n in range(self._min_n, min(self._max_n, end) + 1):
                self._ends[tuple(token_ids[end - n : end])] = end
        self._num_indexed = max(self._num_indexed, len(token_ids) - 1)

    def lookup(self, tail: list[int]) -> tuple[int, int] | None:
        """The length of the longest n-gram that ends `tail` and was indexed, and where it ended."""
        for n in range(min(self._max_n, len(tail)), self._min_n - 1, -1):
            end = self._ends.get(tuple(tail[-n:]))
            if end is not None:
                return n, end
        return None


class NgramDrafter:
    """Finds the last tokens of text and draft in the text; the draft is never found itself, as it is not verified.

    The confidence is the length of the match, in tokens, up to 8.
    """

    name = "ngram"

    def __init__(self, *, prompt_lookup_min: int, prompt_lookup_max: int) -> None:
        self._min_n = prompt_lookup_min
        self._max_n = prompt_lookup_max
        self._indexes: WeakKeyDictionary[Sequence, _NgramIndex] = WeakKeyDictionary()

    def guess(self, draft: Draft) -> Guess:
        """What followed; where that reaches the draft's end it goes on in what it has copied.

        So a repeated phrase is continued at any length.
        """
        num_tokens = draft.num_free
        if num_tokens <= 0:
            return NO_GUESS
        index = self._indexes.get(draft.sequence)
        if index is None:
            index = self._indexes[draft.sequence] = _NgramIndex(self._min_n, self._max_n)
        written = draft.sequence.token_ids
        index.extend(written)
        found = index.lookup(draft.last(self._max_n))
        if found is None:
            return NO_GUESS
        n, end = found
        copied = written[end : end + num_tokens]
        copied += draft.token_ids[: num_tokens - len(copied)]
        period = len(written) + len(draft.token_ids) - end
        while len(copied) < num_tokens:
            copied.append(copied[len(copied) - period])
        return Guess(copied, min(n, _MAX_CONFIDENCE))

    def finished(self, sequence: Sequence) -> None:
        self._indexes.pop(sequence, None)
