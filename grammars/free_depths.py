"""Free depths: for how many bytes a body automaton cannot be told from the plain one, which takes every body.

A pattern that is not anchored takes any text, and so does a counter while it is far from its limit. From such a state a
mask differs from that of a plain string only in the tokens that close the string, so that no walk of all tokens is
needed (string_bodies.StringBodies.walk_free).

Both automata are followed at once, in pairs of states. A pair differs if one takes a byte that the other does not, the
closing quote aside; a pair's depth is the number of bytes to the nearest pair that differs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.jit import compiled
from specdec.grammars.node_steps import Nodes
from specdec.grammars.walk import Table

MAX_FREE_DEPTH = 1024
"""Greater depths are not told apart: the longest tokens of vocabularies are shorter."""


def pair_states(
    table: Table, plain: Table, is_boundary: NDArray[np.uint8], columns: NDArray[np.int64]
) -> tuple[Nodes, NDArray[np.uint8], Nodes, Nodes]:
    """(pairs, differs, sources, targets) of the pairs reached from those of a state between code points and plain's 0.

    A pair is state * plain states + plain state; those of the start come first, in order. An edge leads from the pair
    number sources[i] to targets[i]. The bytes `columns` stand for all: each byte is like one of them in both tables.
    """
    num_plain = plain.shape[0]
    numbers = np.full(table.shape[0] * num_plain, -1, np.int32)
    pairs = np.empty(len(numbers), np.int32)
    differs = np.zeros(len(numbers), np.uint8)
    num_pairs = 0
    for state in range(table.shape[0]):
        if is_boundary[state]:
            numbers[state * num_plain] = num_pairs
            pairs[num_pairs] = state * num_plain
            num_pairs += 1
    # Nearly all states are reached in one pair; the arrays hold the most there can be, and memory only what is written.
    sources = np.empty(len(numbers) * len(columns), np.int32)
    targets = np.empty(len(numbers) * len(columns), np.int32)
    num_edges = 0
    reached = 0
    while reached < num_pairs:
        state, inner = pairs[reached] // num_plain, pairs[reached] % num_plain
        for byte in columns:
            target, after = table[state, byte], plain[inner, byte]
            if after == 1:
                continue
            if target < 0 or after < 0:
                if target >= 0 or after >= 0:
                    differs[reached] = 1
                continue
            pair = target * num_plain + after
            if numbers[pair] < 0:
                numbers[pair] = num_pairs
                pairs[num_pairs] = pair
                num_pairs += 1
            sources[num_edges] = reached
            targets[num_edges] = numbers[pair]
            num_edges += 1
        reached += 1
    return pairs[:num_pairs].copy(), differs[:num_pairs].copy(), sources[:num_edges].copy(), targets[:num_edges].copy()


def distances(differs: NDArray[np.uint8], sources: Nodes, targets: Nodes, limit: int) -> Nodes:
    """The edges from each node to the nearest that differs, or the limit."""
    firsts = np.zeros(len(differs) + 1, np.int64)
    for target in targets:
        firsts[target + 1] += 1
    for i in range(len(differs)):
        firsts[i + 1] += firsts[i]
    filled = firsts.copy()
    before = np.empty(len(sources), np.int32)
    for edge in range(len(sources)):
        before[filled[targets[edge]]] = sources[edge]
        filled[targets[edge]] += 1
    found = np.full(len(differs), limit, np.int32)
    queue = np.empty(len(differs), np.int32)
    num_queued = 0
    for i in range(len(differs)):
        if differs[i]:
            found[i] = 0
            queue[num_queued] = i
            num_queued += 1
    begun = 0
    while begun < num_queued:
        i = queue[begun]
        begun += 1
        for at in range(firsts[i], firsts[i + 1]):
            if found[before[at]] > found[i] + 1:
                found[before[at]] = found[i] + 1
                queue[num_queued] = before[at]
                num_queued += 1
    return found


def free_depths(table: Table, plain: Table, is_boundary: NDArray[np.uint8]) -> Nodes:
    """By state; 0 for states inside a code point, at most MAX_FREE_DEPTH."""
    kernels = load_kernels()
    columns = (table[:, byte].tobytes() + plain[:, byte].tobytes() for byte in range(256))
    kinds: dict[bytes, int] = {}
    for byte, column in enumerate(columns):
        kinds.setdefault(column, byte)
    starts = np.flatnonzero(is_boundary)
    _, differs, sources, targets = kernels.pair_states(
        table, plain, is_boundary, np.array(list(kinds.values()), np.int64)
    )
    found = np.zeros(len(table), np.int32)
    found[starts] = kernels.distances(differs, sources, targets, MAX_FREE_DEPTH)[: len(starts)]
    return found


class Kernels(NamedTuple):
    """The functions above that have them, compiled."""

    pair_states: Callable[..., tuple[Nodes, NDArray[np.uint8], Nodes, Nodes]]
    distances: Callable[..., Nodes]


@functools.cache
def load_kernels() -> Kernels:
    """Compile them, or load them from numba's cache."""
    return Kernels(
        pair_states=compiled(
            pair_states,
            "Tuple((i4[::1], u1[::1], i4[::1], i4[::1]))(i2[:, ::1], i2[:, ::1], u1[::1], i8[::1])",
        ),
        distances=compiled(distances, "i4[::1](u1[::1], i4[::1], i4[::1], i8)"),
    )
