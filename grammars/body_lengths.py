"""BodyLengths: the tokens of free string bodies by their code points, for bodies that may have no more than a number.

A string with a maximum length asks for another mask at each length near it. All of these are prefixes of one list.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.jit import compiled
from specdec.grammars.node_steps import Nodes, Words
from specdec.grammars.vocabulary import Vocabulary
from specdec.grammars.walk import Table


class BodyLengths:
    """Of walks from the root that begin between two code points."""

    def __init__(self, vocabulary: Vocabulary, table: Table) -> None:
        v = vocabulary
        lengths, self._closed, self._closed_lengths = load_body_lengths()(
            table, v.trie_bytes, v.trie_skips, v.trie_starts, v.max_token_bytes + 1
        )
        inside = np.flatnonzero(lengths >= 0)
        self._lengths: list[int] = np.unique(lengths[inside]).tolist()
        self._words: list[Words] = []
        """words[i] has the tokens of at most lengths[i] code points."""
        words = np.zeros(v.num_words, np.uint32)
        for length in self._lengths:
            token_ids = v.token_ids[np.flatnonzero(lengths == length)]
            np.bitwise_or.at(words, token_ids >> 5, np.uint32(1) << (token_ids & 31).astype(np.uint32))
            self._words.append(words.copy())
        self._nothing = np.zeros(v.num_words, np.uint32)

    def walk(self, min_length: int, max_length: int) -> tuple[Words, Nodes]:
        """The tokens that stay inside, and the nodes after the closing quote (walk.walk_string). Not to be written."""
        index = bisect_right(self._lengths, max_length)
        fits = (self._closed_lengths >= min_length) & (self._closed_lengths <= max_length)
        return self._words[index - 1] if index else self._nothing, self._closed[fits]


def body_lengths(
    table: Table, bytes_: NDArray[np.uint8], skips: Nodes, starts: Nodes, max_depth: int
) -> tuple[Nodes, Nodes, Nodes]:
    """The code points of each token, in the trie's order, that stays inside a string body, and -1 of the others.

    The other arrays hold the nodes just after a closing quote and the code points before it.
    """
    lengths = np.full(starts[len(skips)], -1, np.int32)
    closed = np.empty(len(skips), np.int32)
    closed_lengths = np.empty(len(skips), np.int32)
    num_closed = 0
    state_at = np.zeros(max_depth, np.int16)
    length_at = np.zeros(max_depth, np.int32)
    end_at = np.empty(max_depth, np.int32)
    end_at[0] = skips[0]
    level = 0
    node = 1
    while node < skips[0]:
        while node >= end_at[level]:
            level -= 1
        length = length_at[level]
        target = table[state_at[level], bytes_[node]]
        if target == 1:
            closed[num_closed] = node
            closed_lengths[num_closed] = length
            num_closed += 1
        if target < 0 or target == 1:
            node = skips[node]
            continue
        if state_at[level] == 0:
            length += 1
        for i in range(starts[node], starts[node + 1]):
            lengths[i] = length
        if skips[node] > node + 1:
            level += 1
            state_at[level] = target
            length_at[level] = length
            end_at[level] = skips[node]
        node += 1
    return lengths, closed[:num_closed].copy(), closed_lengths[:num_closed].copy()


@functools.cache
def load_body_lengths() -> Callable[..., tuple[Nodes, Nodes, Nodes]]:
    """Compile body_lengths, or load it from numba's cache."""
    return compiled(body_lengths, "Tuple((i4[::1], i4[::1], i4[::1]))(i2[:, ::1], u1[::1], i4[::1], i4[::1], i8)")
