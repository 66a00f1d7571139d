"""Spellings: byte strings with the fewest tokens that spell them, from every place on.

The fewest tokens from place i are 1 + the fewest from i + length over the tokens that the bytes at i begin with. A
spelling therefore knows the cost of each of its rests, and putting bytes before it only costs work for those bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.jit import compiled
from specdec.grammars.node_steps import Nodes
from specdec.grammars.vocabulary import Vocabulary

Costs = NDArray[np.int32]

_UNSPELLABLE = 2**30
"""The cost of bytes that no tokens spell."""


class Spelling:
    """`costs` int32 [bytes + 1]: the fewest tokens that spell data[i:]."""

    __slots__ = ("costs", "data")

    def __init__(self, data: bytes, costs: Costs) -> None:
        self.data = data
        self.costs = costs

    def __repr__(self) -> str:
        return f"Spelling({self.data!r}, num_tokens={self.num_tokens})"

    @property
    def num_tokens(self) -> int:
        return int(self.costs[0])

    def rest(self, num_bytes: int) -> Spelling:
        """Without its first bytes."""
        return Spelling(self.data[num_bytes:], self.costs[num_bytes:])


EMPTY = Spelling(b"", np.zeros(1, np.int32))


def spell_costs(
    data: NDArray[np.uint8],
    known: Costs,
    first_children: Nodes,
    bytes_: NDArray[np.uint8],
    skips: Nodes,
    starts: Nodes,
) -> Costs:
    """The costs of data, of which those of its last len(known) - 1 bytes are known."""
    length = len(data)
    costs = np.empty(length + 1, np.int32)
    begin = length + 1 - len(known)
    for i in range(len(known)):
        costs[begin + i] = known[i]
    for i in range(begin - 1, -1, -1):
        best = _UNSPELLABLE
        node = first_children[data[i]]
        end = i + 1
        while node > 0:
            if starts[node + 1] > starts[node] and costs[end] + 1 < best:
                best = costs[end] + 1
            if end == length:
                break
            child = node + 1
            last = skips[node]
            while child < last and bytes_[child] < data[end]:
                child = skips[child]
            if child >= last or bytes_[child] != data[end]:
                break
            node = child
            end += 1
        costs[i] = best
    return costs


_SIGNATURE = "i4[::1](u1[::1], i4[::1], i4[::1], u1[::1], i4[::1], i4[::1])"


@functools.cache
def load_spell_costs() -> Callable[..., Costs]:
    """Compile spell_costs, or load it from numba's cache."""
    return compiled(spell_costs, _SIGNATURE)


class Speller:
    """Spellings over one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._spell_costs = load_spell_costs()
        self._first_children = np.zeros(256, np.int32)
        child = 1
        while child < vocabulary.trie_skips[0]:
            self._first_children[vocabulary.trie_bytes[child]] = child
            child = int(vocabulary.trie_skips[child])
        self.max_opened = max((token.count(b"{") + token.count(b"[") for token in vocabulary.tokens()), default=0)
        """The most objects and arrays that one token can open."""
        self._known: BoundedCache[bytes, Spelling] = BoundedCache(8192)
        printable = [byte for byte in range(0x20, 0x7F) if byte not in b'"\\']
        printable.sort(key=lambda byte: self._padding_cost(bytes((byte,))))
        self.byte_order = bytes(dict.fromkeys((*printable, *range(256))))
        """All bytes, first the characters of which many are spelt with the fewest tokens."""
        self.padding = self.byte_order[:1]

    def _padding_cost(self, character: bytes) -> tuple[int, bool, bytes]:
        # Among equals, a letter reads best.
        return self.spell(character * 64).num_tokens, not character.isalpha(), character

    def spell(self, data: bytes, rest: Spelling = EMPTY) -> Spelling:
        """The bytes, then the rest; a token may be partly of both."""
        if not data:
            return rest
        whole = data + rest.data
        known = self._known.get(whole)
        if known is None:
            v = self._vocabulary
            costs = self._spell_costs(
                np.frombuffer(bytearray(whole), np.uint8), np.ascontiguousarray(rest.costs), self._first_children,
                v.trie_bytes, v.trie_skips, v.trie_starts,
            )  # fmt: skip
            known = Spelling(whole, costs)
            if len(whole) <= _LONGEST_KEPT:
                self._known.put(whole, known)
        return known

    def first_tokens(self, spelling: Spelling, num_tokens: int) -> list[int]:
        """The tokens that the spelling begins with and after which num_tokens more spell the rest."""
        v, data, found = self._vocabulary, spelling.data, list[int]()
        nodes = np.zeros(1, np.int32)
        for end in range(1, len(data) + 1):
            nodes = v.kernels.step_nodes(nodes, data[end - 1], v.trie_bytes, v.trie_skips)
            if not len(nodes):
                break
            if spelling.costs[end] <= num_tokens:
                node = int(nodes[0])
                found += v.token_ids[v.trie_starts[node] : v.trie_starts[node + 1]].tolist()
        return found

    def num_tokens(self, data: bytes) -> int:
        """The fewest tokens that spell the bytes."""
        return self.spell(data).num_tokens


_LONGEST_KEPT = 4096
