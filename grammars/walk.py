"""The compiled part of a mask: walks of the vocabulary's byte trie through one lexeme.

A trie is flat and in pre-order: `bytes_[n]` is the byte that leads to node n, `skips[n]` the first node after
n's subtree, so that n + 1 is its first child (if n + 1 < skips[n]) and skips[child] the next sibling. Node 0 is
the root. The texts are sorted, hence those that end in n's subtree are starts[n] .. starts[skips[n]], and those
that end at n itself are starts[n] .. starts[n + 1].

Every function here is plain Python, which is its specification; `load_kernels` compiles them, and those of
node_steps.py, with numba, with explicit signatures and without the GIL, once per process (cached on disk where a folder
can be written).
Words of a mask: bit (id & 31) of word (id >> 5). `max_depth` is more than the longest token has bytes: arrays that grow
inside a loop make numba count references at each node, which made these walks seven times slower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.jit import compiled
from specdec.grammars.node_steps import (
    Nodes,
    Words,
    child_bytes,
    clear_nodes,
    ends_of_nodes,
    enter_nodes,
    first_bits,
    set_bits,
    step_nodes,
    without_nodes,
)

Table = NDArray[np.int16]

DEAD = -1
"""No transition, in the tables of byte automata."""


def build_trie(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[NDArray[np.uint8], Nodes, Nodes]:
    """(bytes_, skips, starts) of the sorted texts data[offsets[i]:offsets[i + 1]]."""
    num_texts = len(offsets) - 1
    capacity = len(data) + 1
    bytes_ = np.zeros(capacity, np.uint8)
    skips = np.zeros(capacity, np.int32)
    starts = np.zeros(capacity + 1, np.int32)
    longest = 0
    for i in range(num_texts):
        longest = max(longest, offsets[i + 1] - offsets[i])
    path = np.zeros(longest + 1, np.int32)
    depth = 0
    num_nodes = 1
    for i in range(num_texts):
        begin = offsets[i]
        length = offsets[i + 1] - begin
        common = 0
        while common < depth and common < length and bytes_[path[common + 1]] == data[begin + common]:
            common += 1
        while depth > common:
            skips[path[depth]] = num_nodes
            depth -= 1
        while depth < length:
            bytes_[num_nodes] = data[begin + depth]
            depth += 1
            path[depth] = num_nodes
            # Texts that end above this node are sorted before it, so all i of them so far precede it.
            starts[num_nodes] = i
            num_nodes += 1
    while depth >= 0:
        skips[path[depth]] = num_nodes
        depth -= 1
    starts[num_nodes] = num_texts
    return bytes_[:num_nodes].copy(), skips[:num_nodes].copy(), starts[: num_nodes + 1].copy()


def walk_string(
    nodes: Nodes,
    entry: int,
    min_length: int,
    max_length: int,
    table: Table,
    bytes_: NDArray[np.uint8],
    skips: Nodes,
    starts: Nodes,
    token_ids: Nodes,
    words: Words,
    max_depth: int,
) -> Nodes:
    """Mark the tokens that stay inside a string body; return the nodes just after its closing quote.

    State 0 of the table is between code points, state 1 after the closing quote. `entry` is the state at the
    nodes; at least min_length and at most max_length code points begin below them.
    """
    capacity = 0
    for k in range(len(nodes)):
        capacity += skips[nodes[k]] - nodes[k]
    closed = np.empty(capacity, np.int32)
    num_closed = 0
    state_at = np.empty(max_depth, np.int16)
    length_at = np.empty(max_depth, np.int32)
    end_at = np.empty(max_depth, np.int32)
    for k in range(len(nodes)):
        level = 0
        state_at[0] = entry
        length_at[0] = 0
        end_at[0] = skips[nodes[k]]
        node = nodes[k] + 1
        while node < end_at[0]:
            while node >= end_at[level]:
                level -= 1
            state = state_at[level]
            length = length_at[level]
            target = table[state, bytes_[node]]
            if target == 1:
                if length >= min_length:
                    closed[num_closed] = node
                    num_closed += 1
                node = skips[node]
                continue
            if state == 0:
                length += 1
            if target < 0 or length > max_length:
                node = skips[node]
                continue
            for i in range(starts[node], starts[node + 1]):
                words[token_ids[i] >> 5] |= np.uint32(1) << np.uint32(token_ids[i] & 31)
            if skips[node] > node + 1:
                level += 1
                state_at[level] = target
                length_at[level] = length
                end_at[level] = skips[node]
            node += 1
    return closed[:num_closed].copy()


def walk_terms(
    nodes: Nodes,
    entry: int,
    length: int,
    is_counted: bool,
    table: Table,
    is_boundary: NDArray[np.uint8],
    shortest: NDArray[np.int32],
    longest: NDArray[np.int32],
    lows: Nodes,
    highs: Nodes,
    bytes_: NDArray[np.uint8],
    skips: Nodes,
    starts: Nodes,
    token_ids: Nodes,
    words: Words,
    max_depth: int,
) -> tuple[Nodes, Nodes, Nodes]:
    """Mark the tokens that stay inside a body of lexicon.TextAutomaton; return the nodes just after its closing quote.

    The other arrays hold, for each of them, the state before the quote and the code points up to there.
    """
    capacity = 0
    for k in range(len(nodes)):
        capacity += skips[nodes[k]] - nodes[k]
    closed = np.empty(capacity, np.int32)
    states = np.empty(capacity, np.int32)
    lengths = np.empty(capacity, np.int32)
    num_closed = 0
    state_at = np.empty(max_depth, np.int16)
    length_at = np.empty(max_depth, np.int32)
    end_at = np.empty(max_depth, np.int32)
    for k in range(len(nodes)):
        level = 0
        state_at[0] = entry
        length_at[0] = length
        end_at[0] = skips[nodes[k]]
        node = nodes[k] + 1
        while node < end_at[0]:
            while node >= end_at[level]:
                level -= 1
            state = state_at[level]
            reached = length_at[level]
            target = table[state, bytes_[node]]
            if target == 1:
                closed[num_closed] = node
                states[num_closed] = state
                lengths[num_closed] = reached
                num_closed += 1
                node = skips[node]
                continue
            if target < 0:
                node = skips[node]
                continue
            if is_counted:
                if is_boundary[state] == 1:
                    reached += 1
                is_live = False
                for term in range(len(lows)):
                    if (
                        reached + shortest[term, target] <= highs[term]
                        and reached + longest[term, target] >= lows[term]
                    ):
                        is_live = True
                        break
                if not is_live:
                    node = skips[node]
                    continue
            for i in range(starts[node], starts[node + 1]):
                words[token_ids[i] >> 5] |= np.uint32(1) << np.uint32(token_ids[i] & 31)
            if skips[node] > node + 1:
                level += 1
                state_at[level] = target
                length_at[level] = reached
                end_at[level] = skips[node]
            node += 1
    return closed[:num_closed].copy(), states[:num_closed].copy(), lengths[:num_closed].copy()


def walk_ends(
    entry: int,
    table: Table,
    paths: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    nodes: Nodes,
) -> tuple[Nodes, Nodes]:
    """Those nodes whose path, of the bytes paths[offsets[i]:offsets[i + 1]], leads where a body may be closed.

    The second array holds the table's state there.
    """
    closed = np.empty(len(nodes), np.int32)
    states = np.empty(len(nodes), np.int32)
    num_closed = 0
    for k in range(len(nodes)):
        state = entry
        for i in range(offsets[k], offsets[k + 1]):
            state = table[state, paths[i]]
            if state < 0:
                break
        if state >= 0 and table[state, 34] == 1:
            closed[num_closed] = nodes[k]
            states[num_closed] = state
            num_closed += 1
    return closed[:num_closed].copy(), states[:num_closed].copy()


def walk_number(
    nodes: Nodes,
    entry: int,
    table: Table,
    accepts: NDArray[np.uint8],
    bytes_: NDArray[np.uint8],
    skips: Nodes,
    starts: Nodes,
    token_ids: Nodes,
    words: Words,
) -> tuple[Nodes, Nodes]:
    """Mark the tokens that stay inside a number; return the inner nodes where it may have ended.

    The second array holds the table's state at each of them.
    """
    capacity = 0
    for k in range(len(nodes)):
        capacity += skips[nodes[k]] - nodes[k]
    ended = np.empty(capacity, np.int32)
    states = np.empty(capacity, np.int32)
    num_ended = 0
    # A number has fewer bytes than this: its digits are bounded.
    state_at = np.empty(64, np.int16)
    end_at = np.empty(64, np.int32)
    for k in range(len(nodes)):
        level = 0
        state_at[0] = entry
        end_at[0] = skips[nodes[k]]
        node = nodes[k] + 1
        while node < end_at[0]:
            while node >= end_at[level]:
                level -= 1
            target = table[state_at[level], bytes_[node]]
            if target < 0:
                node = skips[node]
                continue
            for i in range(starts[node], starts[node + 1]):
                words[token_ids[i] >> 5] |= np.uint32(1) << np.uint32(token_ids[i] & 31)
            if skips[node] > node + 1:
                if accepts[target]:
                    ended[num_ended] = node
                    states[num_ended] = target
                    num_ended += 1
                level += 1
                state_at[level] = target
                end_at[level] = skips[node]
            node += 1
    return ended[:num_ended].copy(), states[:num_ended].copy()


def walk_texts(
    nodes: Nodes,
    prefix: NDArray[np.uint8],
    text_bytes: NDArray[np.uint8],
    text_skips: Nodes,
    text_starts: Nodes,
    bytes_: NDArray[np.uint8],
    skips: Nodes,
    starts: Nodes,
    token_ids: Nodes,
    mark_inside: bool,
    words: Words,
    max_depth: int,
) -> tuple[Nodes, Nodes]:
    """Follow a trie of texts beyond `prefix`; return the nodes where a text ends, and which text.

    With `mark_inside` the tokens that end strictly before a text's end are marked; those at an end never are.
    """
    capacity = 0
    for k in range(len(nodes)):
        capacity += skips[nodes[k]] - nodes[k]
    # Below one node each text ends once at most.
    capacity = min(capacity, len(nodes) * (len(text_starts) - 1))
    ended = np.empty(capacity, np.int32)
    texts = np.empty(capacity, np.int32)
    num_ended = 0
    top = 0
    for position in range(len(prefix)):
        child = top + 1
        end = text_skips[top]
        while child < end and text_bytes[child] != prefix[position]:
            child = text_skips[child]
        if child >= end:
            return ended[:0].copy(), texts[:0].copy()
        top = child
    text_at = np.empty(max_depth, np.int32)
    end_at = np.empty(max_depth, np.int32)
    for k in range(len(nodes)):
        level = 0
        text_at[0] = top
        end_at[0] = skips[nodes[k]]
        node = nodes[k] + 1
        while node < end_at[0]:
            while node >= end_at[level]:
                level -= 1
            parent = text_at[level]
            target = parent + 1
            text_end = text_skips[parent]
            while target < text_end and text_bytes[target] < bytes_[node]:
                target = text_skips[target]
            if target >= text_end or text_bytes[target] != bytes_[node]:
                node = skips[node]
                continue
            if text_starts[target + 1] > text_starts[target]:
                ended[num_ended] = node
                texts[num_ended] = text_starts[target]
                num_ended += 1
            elif mark_inside:
                for i in range(starts[node], starts[node + 1]):
                    words[token_ids[i] >> 5] |= np.uint32(1) << np.uint32(token_ids[i] & 31)
            if skips[node] > node + 1:
                level += 1
                text_at[level] = target
                end_at[level] = skips[node]
            node += 1
    return ended[:num_ended].copy(), texts[:num_ended].copy()


def hash_words(words: Words, weights: NDArray[np.uint64]) -> np.uint64:
    """A hash of the words: their sum, each times its weight, modulo 2**64."""
    total = np.uint64(0)
    for i in range(len(words)):
        total += np.uint64(words[i]) * weights[i]
    return total


def walk_raw(
    nodes: Nodes,
    entry: int,
    range_starts: Nodes,
    lows: NDArray[np.uint8],
    highs: NDArray[np.uint8],
    targets: Nodes,
    is_value: NDArray[np.uint8],
    bytes_: NDArray[np.uint8],
    skips: Nodes,
    starts: Nodes,
    token_ids: Nodes,
    words: Words,
    max_depth: int,
) -> tuple[Nodes, Nodes]:
    """Mark the tokens that stay inside raw text; return the nodes where a value begins, whose tokens are not marked.

    The transitions are raw_text.RawText's. The second array holds the state at each of the nodes.
    """
    capacity = 0
    for k in range(len(nodes)):
        capacity += skips[nodes[k]] - nodes[k]
    begun = np.empty(capacity, np.int32)
    states = np.empty(capacity, np.int32)
    num_begun = 0
    state_at = np.empty(max_depth, np.int32)
    end_at = np.empty(max_depth, np.int32)
    for k in range(len(nodes)):
        level = 0
        state_at[0] = entry
        end_at[0] = skips[nodes[k]]
        node = nodes[k] + 1
        while node < end_at[0]:
            while node >= end_at[level]:
                level -= 1
            byte = bytes_[node]
            first = range_starts[state_at[level]]
            # The last range that begins at the byte or before it.
            low = first
            high = range_starts[state_at[level] + 1]
            while low < high:
                middle = (low + high) // 2
                if lows[middle] <= byte:
                    low = middle + 1
                else:
                    high = middle
            if low == first or highs[low - 1] < byte:
                node = skips[node]
                continue
            target = targets[low - 1]
            if is_value[target]:
                begun[num_begun] = node
                states[num_begun] = target
                num_begun += 1
                node = skips[node]
                continue
            for i in range(starts[node], starts[node + 1]):
                words[token_ids[i] >> 5] |= np.uint32(1) << np.uint32(token_ids[i] & 31)
            if skips[node] > node + 1:
                level += 1
                state_at[level] = target
                end_at[level] = skips[node]
            node += 1
    return begun[:num_begun].copy(), states[:num_begun].copy()


class Kernels(NamedTuple):
    """The functions above and those of node_steps.py, compiled; they take the same arguments, by position."""

    build_trie: Callable[..., tuple[NDArray[np.uint8], Nodes, Nodes]]
    enter_nodes: Callable[..., tuple[Nodes, int]]
    ends_of_nodes: Callable[..., tuple[Nodes, Nodes]]
    set_bits: Callable[..., None]
    first_bits: Callable[..., Nodes]
    child_bytes: Callable[..., NDArray[np.uint8]]
    step_nodes: Callable[..., Nodes]
    without_nodes: Callable[..., Nodes]
    clear_nodes: Callable[..., None]
    walk_string: Callable[..., Nodes]
    walk_terms: Callable[..., tuple[Nodes, Nodes, Nodes]]
    walk_ends: Callable[..., tuple[Nodes, Nodes]]
    walk_number: Callable[..., tuple[Nodes, Nodes]]
    walk_texts: Callable[..., tuple[Nodes, Nodes]]
    hash_words: Callable[..., int]
    walk_raw: Callable[..., tuple[Nodes, Nodes]]


_SIGNATURES: dict[Callable[..., Any], str] = {
    build_trie: "Tuple((u1[::1], i4[::1], i4[::1]))(u1[::1], i8[::1])",
    enter_nodes: "Tuple((i4[::1], i8))(i4[::1], i4[::1], i4[::1], i4[::1], u4[::1])",
    ends_of_nodes: "Tuple((i4[::1], i4[::1]))(i4[::1], i4[::1], i4[::1], i4[::1])",
    set_bits: "void(i4[::1], u4[::1])",
    first_bits: "i4[::1](u4[::1], i8)",
    child_bytes: "u1[::1](i4[::1], u1[::1], i4[::1])",
    step_nodes: "i4[::1](i4[::1], i8, u1[::1], i4[::1])",
    without_nodes: "i4[::1](i4[::1], i4[::1])",
    clear_nodes: "void(i4[::1], i4[::1], i4[::1], i4[::1], u4[::1])",
    walk_string: "i4[::1](i4[::1], i8, i8, i8, i2[:, ::1], u1[::1], i4[::1], i4[::1], i4[::1], u4[::1], i8)",
    walk_terms: (
        "Tuple((i4[::1], i4[::1], i4[::1]))(i4[::1], i8, i8, b1, i2[:, ::1], u1[::1], i4[:, ::1], i4[:, ::1], i4[::1],"
        " i4[::1], u1[::1], i4[::1], i4[::1], i4[::1], u4[::1], i8)"
    ),
    walk_ends: "Tuple((i4[::1], i4[::1]))(i8, i2[:, ::1], u1[::1], i8[::1], i4[::1])",
    walk_number: (
        "Tuple((i4[::1], i4[::1]))(i4[::1], i8, i2[:, ::1], u1[::1], u1[::1], i4[::1], i4[::1], i4[::1], u4[::1])"
    ),
    walk_texts: (
        "Tuple((i4[::1], i4[::1]))(i4[::1], u1[::1], u1[::1], i4[::1], i4[::1], u1[::1], i4[::1], i4[::1], i4[::1],"
        " b1, u4[::1], i8)"
    ),
    hash_words: "u8(u4[::1], u8[::1])",
    walk_raw: (
        "Tuple((i4[::1], i4[::1]))(i4[::1], i8, i4[::1], u1[::1], u1[::1], i4[::1], u1[::1], u1[::1], i4[::1],"
        " i4[::1], i4[::1], u4[::1], i8)"
    ),
}


@functools.cache
def load_kernels() -> Kernels:
    """Compile the walks, or load them from numba's cache. Called when a Vocabulary is built."""
    return Kernels(*(compiled(function, signature) for function, signature in _SIGNATURES.items()))
