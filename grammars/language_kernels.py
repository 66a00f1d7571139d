"""The compiled part of regular languages: products, minimal forms and subset construction of automata.

A table is complete, int32 [states, columns], state 0 the start; final[s] is 1 where s accepts. A construction that
would need more than max_states states returns a table of no rows.

Every function here is plain Python, which is its specification; `load_kernels` compiles them with numba, with explicit
signatures and without the GIL, once per process (cached on disk where a folder can be written).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.jit import compiled

Ints = NDArray[np.int32]
Flags = NDArray[np.uint8]


def intersect(
    a: Ints, final_a: Flags, dead_a: int, b: Ints, final_b: Flags, dead_b: int, pairs: Ints, max_states: int
) -> tuple[Ints, Flags]:
    """The product automaton: column c reads a's column pairs[0, c] and b's pairs[1, c].

    dead_a and dead_b are the states from which nothing is accepted, or -1: all pairs with one of them are one state.
    """
    num_columns = pairs.shape[1]
    num_b = b.shape[0]
    dead = np.int64(a.shape[0]) * num_b
    keys = np.empty(64, np.int64)
    table = np.empty((64, num_columns), np.int32)
    size = 256
    slots = np.full(size, -1, np.int32)
    keys[0] = 0
    if dead_a == 0 or dead_b == 0:
        keys[0] = dead
    slots[(keys[0] * 0x9E3779B1 >> 7) & (size - 1)] = 0
    num_states = 1
    state = 0
    while state < num_states:
        key = keys[state]
        first = key // num_b
        second = key - first * num_b
        for c in range(num_columns):
            if key == dead:
                table[state, c] = state
                continue
            x = a[first, pairs[0, c]]
            y = b[second, pairs[1, c]]
            target = np.int64(x) * num_b + y
            if x == dead_a or y == dead_b:
                target = dead
            slot = (target * 0x9E3779B1 >> 7) & (size - 1)
            while slots[slot] >= 0 and keys[slots[slot]] != target:
                slot = (slot + 1) & (size - 1)
            if slots[slot] < 0:
                if num_states == max_states:
                    return table[:0].copy(), np.empty(0, np.uint8)
                if num_states == len(keys):
                    keys = np.append(keys, np.empty(num_states, np.int64))
                    grown = np.empty((2 * num_states, num_columns), np.int32)
                    grown[:num_states] = table
                    table = grown
                keys[num_states] = target
                slots[slot] = num_states
                num_states += 1
                if 3 * num_states > size:
                    size *= 4
                    slots = np.full(size, -1, np.int32)
                    for s in range(num_states):
                        other = (keys[s] * 0x9E3779B1 >> 7) & (size - 1)
                        while slots[other] >= 0:
                            other = (other + 1) & (size - 1)
                        slots[other] = s
                table[state, c] = num_states - 1
            else:
                table[state, c] = slots[slot]
        state += 1
    final = np.zeros(num_states, np.uint8)
    for s in range(num_states):
        if keys[s] != dead:
            first = keys[s] // num_b
            final[s] = final_a[first] & final_b[keys[s] - first * num_b]
    return table[:num_states].copy(), final


def equivalent_states(table: Ints, final: Flags) -> Ints:  # noqa: C901 (numba compiles one function at a time)
    """The class of each state, two states being in one class where they accept the same words (Hopcroft 1971)."""
    num_states, num_columns = table.shape
    starts = np.zeros(num_columns * num_states + 1, np.int32)
    for s in range(num_states):
        for c in range(num_columns):
            starts[c * num_states + table[s, c] + 1] += 1
    for i in range(num_columns * num_states):
        starts[i + 1] += starts[i]
    fill = starts[:-1].copy()
    sources = np.empty(num_columns * num_states, np.int32)
    for s in range(num_states):
        for c in range(num_columns):
            i = c * num_states + table[s, c]
            sources[fill[i]] = s
            fill[i] += 1
    # Block k is members[begin[k]:end[k]], of which the first num_marked[k] are marked.
    members = np.empty(num_states, np.int32)
    place = np.empty(num_states, np.int32)
    block_of = np.zeros(num_states, np.int32)
    begin = np.zeros(num_states + 1, np.int32)
    end = np.zeros(num_states + 1, np.int32)
    num_marked = np.zeros(num_states + 1, np.int32)
    num_members = 0
    for wanted in range(1, -1, -1):
        for s in range(num_states):
            if final[s] == wanted:
                members[num_members] = s
                place[s] = num_members
                num_members += 1
        if wanted == 1:
            num_final = num_members
    if num_final * (num_states - num_final) == 0:
        return block_of
    end[0] = num_final
    begin[1] = num_final
    end[1] = num_states
    for i in range(num_final, num_states):
        block_of[members[i]] = 1
    num_blocks = 2
    waiting = np.empty(num_states + 1, np.int32)
    waiting[0] = 0 if 2 * num_final <= num_states else 1
    num_waiting = 1
    touched = np.empty(num_states + 1, np.int32)
    while num_waiting > 0:
        num_waiting -= 1
        splitter = members[begin[waiting[num_waiting]] : end[waiting[num_waiting]]].copy()
        for c in range(num_columns):
            num_touched = 0
            for target in splitter:
                for i in range(starts[c * num_states + target], starts[c * num_states + target + 1]):
                    s = sources[i]
                    block = block_of[s]
                    boundary = begin[block] + num_marked[block]
                    if num_marked[block] == 0:
                        touched[num_touched] = block
                        num_touched += 1
                    other = members[boundary]
                    members[place[s]] = other
                    place[other] = place[s]
                    members[boundary] = s
                    place[s] = boundary
                    num_marked[block] += 1
            for j in range(num_touched):
                block = touched[j]
                marked = num_marked[block]
                num_marked[block] = 0
                size = end[block] - begin[block]
                if marked == size:
                    continue
                # The smaller part becomes the new block.
                if 2 * marked <= size:
                    begin[num_blocks] = begin[block]
                    end[num_blocks] = begin[block] + marked
                    begin[block] += marked
                else:
                    begin[num_blocks] = begin[block] + marked
                    end[num_blocks] = end[block]
                    end[block] = begin[block] + marked
                for i in range(begin[num_blocks], end[num_blocks]):
                    block_of[members[i]] = num_blocks
                waiting[num_waiting] = num_blocks
                num_waiting += 1
                num_blocks += 1
    return block_of


def canonical(table: Ints, final: Flags, block_of: Ints) -> tuple[Ints, Flags, Ints]:
    """The automaton of the reachable classes, its equal columns merged, its states in breadth-first order.

    The third value maps the columns to the merged ones, which keep their order.
    """
    num_states, num_columns = table.shape
    num_blocks = 0
    for s in range(num_states):
        num_blocks = max(num_blocks, block_of[s] + 1)
    numbers = np.full(num_blocks, -1, np.int32)
    member = np.empty(num_blocks, np.int32)
    member[0] = 0
    numbers[block_of[0]] = 0
    num_found = 1
    number = 0
    while number < num_found:
        for c in range(num_columns):
            target = table[member[number], c]
            if numbers[block_of[target]] < 0:
                numbers[block_of[target]] = num_found
                member[num_found] = target
                num_found += 1
        number += 1
    hashes = np.zeros(num_columns, np.uint64)
    for number in range(num_found):
        for c in range(num_columns):
            target = block_of[table[member[number], c]]
            hashes[c] = hashes[c] * np.uint64(0x5851F42D4C957F2D) + np.uint64(target + 1)
    merged = np.empty(num_columns, np.int32)
    kept = np.empty(num_columns, np.int32)
    num_kept = 0
    for c in range(num_columns):
        merged[c] = -1
        for k in range(num_kept):
            if hashes[kept[k]] == hashes[c]:
                same = True
                for number in range(num_found):
                    if block_of[table[member[number], c]] != block_of[table[member[number], kept[k]]]:
                        same = False
                        break
                if same:
                    merged[c] = k
                    break
        if merged[c] < 0:
            merged[c] = num_kept
            kept[num_kept] = c
            num_kept += 1
    result = np.empty((num_found, num_kept), np.int32)
    is_final = np.empty(num_found, np.uint8)
    for number in range(num_found):
        is_final[number] = final[member[number]]
        for k in range(num_kept):
            result[number, k] = numbers[block_of[table[member[number], kept[k]]]]
    return result, is_final, merged


class Kernels(NamedTuple):
    """The functions above, compiled; they take the same arguments, by position."""

    intersect: Callable[..., tuple[Ints, Flags]]
    equivalent_states: Callable[..., Ints]
    canonical: Callable[..., tuple[Ints, Flags, Ints]]


_SIGNATURES: dict[Callable[..., Any], str] = {
    intersect: "Tuple((i4[:, ::1], u1[::1]))(i4[:, ::1], u1[::1], i8, i4[:, ::1], u1[::1], i8, i4[:, ::1], i8)",
    equivalent_states: "i4[::1](i4[:, ::1], u1[::1])",
    canonical: "Tuple((i4[:, ::1], u1[::1], i4[::1]))(i4[:, ::1], u1[::1], i4[::1])",
}


@functools.cache
def load_kernels() -> Kernels:
    """Compile the functions, or load them from numba's cache."""
    return Kernels(*(compiled(function, signature) for function, signature in _SIGNATURES.items()))
