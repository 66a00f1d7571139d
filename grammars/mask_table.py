"""MaskTable: every distinct token mask of a vocabulary, as one row of packed bits each.

A batch of masks is then an array of row ids, and the table can be mirrored on a device. Many states share few
masks, so rows are deduplicated by content. Row 0 allows end-of-sequence and nothing else.

The table is bounded. When it is full, the row that was asked for longest ago is overwritten: a row id therefore
stays valid until `max_rows - 1` other rows have been asked for, far more than one step of an engine uses. Holders
of a row id across steps compare `stamps[row]`, which changes when the row's content does.
"""

from __future__ import annotations

import mmap
import sys
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.vocabulary import Vocabulary

EOS_ROW = 0
_MIN_ROWS = 16384
"""More than a step asks for: 64 sequences with 64 drafts each take 4160, near the ends of budgets twice as many."""

_TAKEN_BYTES = 16 * 2**20
"""Of the rows, from the start: 2730 of 49,152 tokens. 64 answers at a time under 60 schemas came to 1500."""


class MaskTable:
    """Bit (id & 31) of word (id >> 5) of a row is set where the token is allowed."""

    def __init__(self, vocabulary: Vocabulary, *, max_bytes: int) -> None:
        self.max_rows = max(_MIN_ROWS, max_bytes // (4 * vocabulary.num_words))
        self.rows: NDArray[np.uint32] = _reserved(self.max_rows, vocabulary.num_words)
        """uint32 [max_rows, ceil(V / 32)]. Little memory stands behind rows that are not in use: growing by copies
        would stop a step for tens of milliseconds."""
        # What any server comes to use is there from the start, so that its memory does not seem to leak.
        self.rows[: _TAKEN_BYTES // self.rows[0].nbytes] = 0
        self.num_rows = 0
        self.num_overwritten = 0
        """How often a row id was given new content; a mirror of the table is stale where it changed."""
        self.stamps: list[int] = []
        self._hash_words = vocabulary.kernels.hash_words
        self._weights = np.random.default_rng(0).integers(0, 2**64, vocabulary.num_words, np.uint64)
        self._row_of_hash: dict[int, int] = {}
        self._hashes: list[int] = []
        self._by_age: OrderedDict[int, None] = OrderedDict()
        self.eos_words = np.zeros(vocabulary.num_words, np.uint32)
        for token_id in vocabulary.eos_token_ids:
            self.eos_words[token_id >> 5] |= np.uint32(1 << (token_id & 31))
        self.intern(self.eos_words)
        del self._by_age[EOS_ROW]

    def intern(self, words: NDArray[np.uint32]) -> int:
        """The row with this content: an equal one, a new one, or the oldest one overwritten."""
        key = self._hash_words(words, self._weights)
        row = self._row_of_hash.get(key)
        # Another content with the same hash: the next key is free or has one of the two.
        while row is not None and self.rows[row].tobytes() != words.tobytes():
            key += 1
            row = self._row_of_hash.get(key)
        if row is not None:
            self.touch(row)
            return row
        if self.num_rows < self.max_rows:
            row = self.num_rows
            self.num_rows += 1
            self.stamps.append(row)
            self._hashes.append(key)
        else:
            row, _ = self._by_age.popitem(last=False)
            del self._row_of_hash[self._hashes[row]]
            self.num_overwritten += 1
            self.stamps[row] = self.max_rows + self.num_overwritten
            self._hashes[row] = key
        self.rows[row] = words
        self._row_of_hash[key] = row
        self._by_age[row] = None
        return row

    def touch(self, row: int) -> None:
        """Note that the row is in use."""
        if row != EOS_ROW:
            self._by_age.move_to_end(row)

    def allows(self, row: int, token_id: int) -> bool:
        """One bit of the row."""
        return bool(self.rows[row, token_id >> 5] >> np.uint32(token_id & 31) & np.uint32(1))


def _reserved(num_rows: int, num_words: int) -> NDArray[np.uint32]:
    """Zeros in pages that are taken one by one. numpy asks for huge ones, the first touch of which takes 4 ms."""
    num_bytes = 4 * num_rows * num_words
    if sys.platform == "win32":
        memory = mmap.mmap(-1, num_bytes)
    else:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint32).reshape(num_rows, num_words)
