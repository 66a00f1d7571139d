"""StringBodies: walks of string bodies from the trie's root, which depend on the vocabulary and the body alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.body_lengths import BodyLengths
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.lexemes import BODY, CLOSED
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.node_groups import NodeGroup
from specdec.grammars.node_steps import Nodes, Words
from specdec.grammars.text_automaton import TextAutomaton
from specdec.grammars.value_rules import UNBOUNDED
from specdec.grammars.vocabulary import Vocabulary

BodyEnd = tuple[int, int, int]
"""The node after a closing quote, the automaton's state before the quote, the code points of the body."""

_MAX_BYTES = 32 * 2**20
_BYTES_OF_END = 150
"""Of a tuple of numbers, roughly."""


class StringBodies:
    """Walks of free string bodies, shared by all grammars of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, lexicon: Lexicon) -> None:
        self.table = lexicon.plain_table
        self.root = NodeGroup(vocabulary, np.zeros(1, np.int32), is_kept=True)
        """Where every walk begins; told by identity."""
        self._vocabulary = vocabulary
        self._of_node: BoundedCache[int, NodeGroup] = BoundedCache(2048)
        self._from_root: BoundedCache[tuple[int, int, int], tuple[Words, NodeGroup]] = BoundedCache(
            1024, max_bytes=_MAX_BYTES, num_bytes_of=lambda kept: kept[0].nbytes + kept[1].nodes.nbytes
        )
        self._terms_from_root: BoundedCache[tuple[TextAutomaton, int, int], tuple[Words, list[BodyEnd]]] = BoundedCache(
            512, max_bytes=_MAX_BYTES, num_bytes_of=lambda kept: kept[0].nbytes + _BYTES_OF_END * len(kept[1])
        )
        self._lengths = BodyLengths(vocabulary, self.table)
        self._ends: tuple[NDArray[np.uint8], NDArray[np.int64], Nodes] | None = None

    def prepare(self) -> None:
        """Walk from the root what every grammar needs: some milliseconds that no request waits for."""
        words = np.zeros(self._vocabulary.num_words, np.uint32)
        for state in range(len(self.table)):
            if state != CLOSED:
                self.walk(self.root, state, 0, UNBOUNDED, words)
        self._ends = self._find_ends(self.walk(self.root, BODY, 0, UNBOUNDED, words).nodes)

    def at_node(self, node: int) -> NodeGroup:
        """The group of the node alone, kept."""
        group = self._of_node.get(node)
        if group is None:
            group = NodeGroup(self._vocabulary, [node], is_kept=True)
            self._of_node.put(node, group)
        return group

    def walk(self, group: NodeGroup, state: int, min_length: int, max_length: int, words: Words) -> NodeGroup:
        """Mark the tokens that stay inside; return the nodes after the closing quote (walk.walk_string)."""
        # No token has more code points than bytes, so that larger counts do not matter.
        enough = self._vocabulary.max_token_bytes + 1
        low, high = min(min_length, enough), min(max_length, enough)
        if group is not self.root:
            return NodeGroup(self._vocabulary, self._walk(group.nodes, state, low, high, words))
        kept = self._from_root.get((state, low, high))
        if kept is None:
            if state == BODY:
                inside, closed = self._lengths.walk(low, high)
            else:
                inside = np.zeros_like(words)
                closed = self._walk(group.nodes, state, low, high, inside)
            kept = inside, NodeGroup(self._vocabulary, closed, is_kept=True)
            self._from_root.put((state, low, high), kept)
        words |= kept[0]
        return kept[1]

    def _walk(self, nodes: Nodes, state: int, low: int, high: int, words: Words) -> Nodes:
        v = self._vocabulary
        return v.kernels.walk_string(
            nodes, state, low, high, self.table, v.trie_bytes, v.trie_skips, v.trie_starts, v.token_ids, words,
            v.max_token_bytes + 1,
        )  # fmt: skip

    def walk_terms(
        self, automaton: TextAutomaton, group: NodeGroup, state: int, length: int, words: Words
    ) -> list[BodyEnd]:
        """Mark the tokens that stay inside a body of the automaton's terms; every end of a body below the nodes."""
        if group is not self.root:
            return self._walk_terms(automaton, group.nodes, state, length, words)
        kept = self._terms_from_root.get((automaton, state, length))
        if kept is None:
            inside = np.zeros_like(words)
            ends = self._walk_free(automaton, state, inside)
            if ends is None:
                ends = self._walk_terms(automaton, group.nodes, state, length, inside)
            kept = inside, ends
            self._terms_from_root.put((automaton, state, length), kept)
        words |= kept[0]
        return kept[1]

    def _walk_terms(
        self, automaton: TextAutomaton, nodes: Nodes, state: int, length: int, words: Words
    ) -> list[BodyEnd]:
        v = self._vocabulary
        closed, states, lengths = v.kernels.walk_terms(
            nodes, state, length, automaton.is_counted, automaton.table, automaton.is_boundary, automaton.shortest,
            automaton.longest, automaton.lows, automaton.highs,
            v.trie_bytes, v.trie_skips, v.trie_starts, v.token_ids, words, v.max_token_bytes + 1,
        )  # fmt: skip
        return list(zip(closed.tolist(), states.tolist(), lengths.tolist(), strict=True))

    def _walk_free(self, automaton: TextAutomaton, state: int, words: Words) -> list[BodyEnd] | None:
        """`_walk_terms` from the root, where it differs from a plain body's in its ends alone (free_depths.py).

        It takes microseconds, and a walk of all tokens a millisecond or more.
        """
        v = self._vocabulary
        if automaton.free_depths is None or automaton.free_depths[state] < v.max_token_bytes:
            return None
        plain = self.walk(self.root, BODY, 0, UNBOUNDED, words)
        if self._ends is None:
            self._ends = self._find_ends(plain.nodes)
        closed, states = v.kernels.walk_ends(state, automaton.table, *self._ends)
        return [(node, before, 0) for node, before in zip(closed.tolist(), states.tolist(), strict=True)]

    def _find_ends(self, nodes: Nodes) -> tuple[NDArray[np.uint8], NDArray[np.int64], Nodes]:
        """The bytes of bodies that are closed inside a token, where each begins, and the nodes after the quote."""
        v = self._vocabulary
        steps = self.table.tolist()
        paths: list[bytes] = []
        for node in nodes.tolist():
            token = v.token_bytes(int(v.token_ids[v.trie_starts[node]]))
            assert token is not None, "only tokens with bytes are in the trie"
            state, length = BODY, 0
            while (state := steps[state][token[length]]) != CLOSED:
                length += 1
            paths.append(token[:length])
        offsets = np.zeros(len(paths) + 1, np.int64)
        np.cumsum([len(path) for path in paths], out=offsets[1:])
        return np.frombuffer(bytearray().join(paths), np.uint8), offsets, nodes
