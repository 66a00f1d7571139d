"""Steps over nodes of the vocabulary's trie (walk.py), and the bits of tokens in the words of a mask.

Every function here is plain Python, which is its specification; walk.load_kernels compiles them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Nodes = NDArray[np.int32]
Words = NDArray[np.uint32]


def enter_nodes(nodes: Nodes, skips: Nodes, starts: Nodes, token_ids: Nodes, words: Words) -> tuple[Nodes, int]:
    """Set the bits of the tokens that end at the nodes; those of the nodes that have children, and how many ended."""
    found = np.empty(len(nodes), np.int32)
    num_found = 0
    num_ended = 0
    for k in range(len(nodes)):
        node = nodes[k]
        num_ended += starts[node + 1] - starts[node]
        for i in range(starts[node], starts[node + 1]):
            words[token_ids[i] >> 5] |= np.uint32(1) << np.uint32(token_ids[i] & 31)
        if skips[node] > node + 1:
            found[num_found] = node
            num_found += 1
    return found[:num_found].copy(), num_ended


def ends_of_nodes(nodes: Nodes, skips: Nodes, starts: Nodes, token_ids: Nodes) -> tuple[Nodes, Nodes]:
    """Those of the nodes that have children, and the tokens that end at the nodes."""
    found = np.empty(len(nodes), np.int32)
    num_found = 0
    num_ended = 0
    for k in range(len(nodes)):
        num_ended += starts[nodes[k] + 1] - starts[nodes[k]]
        if skips[nodes[k]] > nodes[k] + 1:
            found[num_found] = nodes[k]
            num_found += 1
    ended = np.empty(num_ended, np.int32)
    num_ended = 0
    for k in range(len(nodes)):
        for i in range(starts[nodes[k]], starts[nodes[k] + 1]):
            ended[num_ended] = token_ids[i]
            num_ended += 1
    return found[:num_found].copy(), ended


def set_bits(token_ids: Nodes, words: Words) -> None:
    """Set the bits of the tokens."""
    for i in range(len(token_ids)):
        words[token_ids[i] >> 5] |= np.uint32(1) << np.uint32(token_ids[i] & 31)


def first_bits(words: Words, max_found: int) -> Nodes:
    """The first tokens whose bits are set, at most so many."""
    found = np.empty(max_found, np.int32)
    num_found = 0
    for i in range(len(words)):
        if words[i]:
            for bit in range(32):
                if num_found < max_found and words[i] >> np.uint32(bit) & np.uint32(1):
                    found[num_found] = 32 * i + bit
                    num_found += 1
            if num_found == max_found:
                break
    return found[:num_found].copy()


def child_bytes(nodes: Nodes, bytes_: NDArray[np.uint8], skips: Nodes) -> NDArray[np.uint8]:
    """uint8 [256], 1 for the bytes that lead to children of the nodes."""
    found = np.zeros(256, np.uint8)
    for k in range(len(nodes)):
        child = nodes[k] + 1
        while child < skips[nodes[k]]:
            found[bytes_[child]] = 1
            child = skips[child]
    return found


def step_nodes(nodes: Nodes, byte: int, bytes_: NDArray[np.uint8], skips: Nodes) -> Nodes:
    """The children by `byte`, of those nodes that have one."""
    found = np.empty(len(nodes), np.int32)
    num_found = 0
    for k in range(len(nodes)):
        child = nodes[k] + 1
        end = skips[nodes[k]]
        while child < end and bytes_[child] < byte:
            child = skips[child]
        if child < end and bytes_[child] == byte:
            found[num_found] = child
            num_found += 1
    return found[:num_found].copy()


def without_nodes(nodes: Nodes, removed: Nodes) -> Nodes:
    """The nodes that are not among the removed ones; both are in ascending order."""
    found = np.empty(len(nodes), np.int32)
    num_found = 0
    next_removed = 0
    for k in range(len(nodes)):
        while next_removed < len(removed) and removed[next_removed] < nodes[k]:
            next_removed += 1
        if next_removed == len(removed) or removed[next_removed] != nodes[k]:
            found[num_found] = nodes[k]
            num_found += 1
    return found[:num_found].copy()


def clear_nodes(nodes: Nodes, skips: Nodes, starts: Nodes, token_ids: Nodes, words: Words) -> None:
    """Take back the bits of the tokens that end at the nodes or below them."""
    for k in range(len(nodes)):
        for i in range(starts[nodes[k]], starts[skips[nodes[k]]]):
            words[token_ids[i] >> 5] &= ~(np.uint32(1) << np.uint32(token_ids[i] & 31))
