"""NodeGroup: the trie nodes at which a walk is in one configuration, and where the bytes of structure lead from them.

Walks begin at the root, and many go on after the end of a free string. What is found below these nodes is kept for all
walks of the vocabulary: most groups of a mask are then no more than a look-up each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specdec.grammars.node_steps import Nodes, Words
from specdec.grammars.vocabulary import Vocabulary

_FEW = 3
"""Bits that Python sets in less time than it takes to call compiled code."""
_NONE: Nodes = np.empty(0, np.int32)


class NodeGroup:
    """Never empty, but where it says so. One that is kept finds everything once."""

    __slots__ = ("_bits", "_child_bytes", "_children", "_inner", "_token_ids", "_vocabulary", "is_kept", "nodes")

    def __init__(self, vocabulary: Vocabulary, nodes: Nodes | Sequence[int], *, is_kept: bool = False) -> None:
        """`nodes` is int32 [num_nodes], ascending."""
        self._vocabulary = vocabulary
        self.nodes: Nodes = nodes if isinstance(nodes, np.ndarray) else np.array(nodes, np.int32)
        self.is_kept = is_kept
        """Whether it is told by identity: what is found below it is kept."""
        self._children: dict[int, NodeGroup | None] = {}
        self._child_bytes: frozenset[int] | None = None
        self._inner: NodeGroup | None = None
        self._token_ids: Nodes = _NONE
        self._bits: list[tuple[int, np.uint32]] | None = None
        """Of a few tokens, the words and what to set in them."""

    def __len__(self) -> int:
        return len(self.nodes)

    def enter(self, words: Words) -> tuple[NodeGroup, bool]:
        """Set the bits of the tokens that end at the nodes; the nodes that have children, and whether a token ended.

        The group of those nodes may be empty.
        """
        v = self._vocabulary
        if not self.is_kept:
            inner, num_ended = v.kernels.enter_nodes(self.nodes, v.trie_skips, v.trie_starts, v.token_ids, words)
            return NodeGroup(v, inner), num_ended > 0
        if self._inner is None:
            inner, self._token_ids = v.kernels.ends_of_nodes(self.nodes, v.trie_skips, v.trie_starts, v.token_ids)
            self._inner = self if len(inner) == len(self.nodes) else NodeGroup(v, inner, is_kept=True)
            if len(self._token_ids) <= _FEW:
                self._bits = [(token_id >> 5, np.uint32(1 << (token_id & 31))) for token_id in self._token_ids.tolist()]
        if self._bits is None:
            v.kernels.set_bits(self._token_ids, words)
            return self._inner, True
        for index, bit in self._bits:
            words[index] |= bit
        return self._inner, bool(self._bits)

    def can_follow(self, bytes_: frozenset[int]) -> bool:
        """False only where no child is one of the bytes."""
        if not self.is_kept:
            return True
        following = self._child_bytes
        if following is None:
            following = self.following_bytes()
        return not following.isdisjoint(bytes_)

    def following_bytes(self) -> frozenset[int]:
        """Those that lead to children."""
        if self._child_bytes is None:
            v = self._vocabulary
            flags = v.kernels.child_bytes(self.nodes, v.trie_bytes, v.trie_skips)
            self._child_bytes = frozenset(np.flatnonzero(flags).tolist())
        return self._child_bytes

    def step(self, byte: int) -> NodeGroup | None:
        """The children by the byte; None where there are none."""
        if byte in self._children:
            return self._children[byte]
        v = self._vocabulary
        nodes = v.kernels.step_nodes(self.nodes, byte, v.trie_bytes, v.trie_skips)
        children = NodeGroup(v, nodes, is_kept=self.is_kept) if len(nodes) else None
        if self.is_kept:
            self._children[byte] = children
        return children
