"""The compiled part of patterns: subset construction.

The machine is an NFA whose nodes are CHARACTERS (one code point of set args[n], then nexts[n]), SPLIT (nexts[n] or
others[n]), GUARD (nexts[n], where condition args[n] holds here) and EXIT (go on in the tail). Positions are located:
the context says what came before, and contexts[b, c] is the context after column c. A guard looks at the context and
at the column of the next code point, column C standing for the end.

The tail and the result are located automata: tables of C + B columns that start in state 0, whose column C + b leads
to the state of a position in context b.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from specdec.grammars.jit import compiled
from specdec.grammars.language_kernels import Flags, Ints

CHARACTERS, SPLIT, GUARD, EXIT = range(4)
DONE, TOO_MANY_STATES, TOO_MUCH_WORK = range(3)

_DEAD = 1


def determinise(  # noqa: C901 (numba compiles one function at a time)
    kinds: Ints,
    args: Ints,
    nexts: Ints,
    others: Ints,
    entry: int,
    sets: Flags,
    behind: Flags,
    ahead: Flags,
    groups: Ints,
    contexts: Ints,
    tail: Ints,
    tail_final: Flags,
    tail_dead: int,
    tail_all: int,
    max_states: int,
    max_work: int,
) -> tuple[Ints, Flags, int, int]:
    """The located automaton of the NFA followed by the tail; DONE, or the limit it ran into; the work it took.

    sets [sets, C], behind [guards, B] and ahead [guards, C + 1] say which columns and contexts are in; columns with
    one number in `groups` [C + 1] are alike to all guards. tail_dead and tail_all are the states that accept nothing
    and everything, or the number of states where there is none.
    """
    num_nodes = len(kinds)
    num_columns = sets.shape[1]
    num_contexts = contexts.shape[0]
    num_groups = 0
    for c in range(num_columns + 1):
        num_groups = max(num_groups, groups[c] + 1)
    # An atom is a node, or num_nodes + a state of the tail. State s holds atoms[offsets[s]:offsets[s + 1]] and is in
    # context_of[s]; state 0 is the start, 1 holds none.
    num_atoms_max = num_nodes + tail.shape[0]
    atoms = np.empty(1024, np.int32)
    offsets = np.zeros(66, np.int64)
    context_of = np.zeros(65, np.int32)
    table = np.full((64, num_columns + num_contexts), _DEAD, np.int32)
    final = np.zeros(64, np.uint8)
    slots = np.full(256, -1, np.int32)
    num_states = 2
    stamps = np.zeros(num_atoms_max, np.int64)
    stamp = 0
    stack = np.empty(2 * num_nodes + 2, np.int32)
    found = np.empty(num_atoms_max, np.int32)
    closure = np.empty(num_atoms_max, np.int32)
    work = 0
    state = 0
    while state < num_states:
        if state == _DEAD:
            state += 1
            continue
        for group in range(num_contexts if state == 0 else num_groups):
            context = group if state == 0 else context_of[state]
            num_closure = 0
            if state != 0:
                # What the state holds once the guards of this group of columns are passed.
                sample = 0
                while groups[sample] != group:
                    sample += 1
                stamp += 1
                for i in range(offsets[state], offsets[state + 1]):
                    top = 0
                    stack[0] = atoms[i]
                    while top >= 0:
                        node = stack[top]
                        top -= 1
                        work += 1
                        if node < num_nodes and kinds[node] == EXIT:
                            node = num_nodes + tail[0, num_columns + context]
                        if stamps[node] == stamp:
                            continue
                        stamps[node] = stamp
                        if node >= num_nodes or kinds[node] == CHARACTERS:
                            closure[num_closure] = node
                            num_closure += 1
                        elif kinds[node] == SPLIT:
                            stack[top + 1] = others[node]
                            stack[top + 2] = nexts[node]
                            top += 2
                        elif behind[args[node], context] and ahead[args[node], sample]:
                            stack[top + 1] = nexts[node]
                            top += 1
            for column in range(num_columns + 1):
                if state == 0 and column > 0:
                    break
                if state != 0 and groups[column] != group:
                    continue
                if state != 0 and column == num_columns:
                    for k in range(num_closure):
                        if closure[k] >= num_nodes and tail_final[closure[k] - num_nodes]:
                            final[state] = 1
                    continue
                # The atoms after this column, the splits passed.
                after = context if state == 0 else contexts[context, column]
                stamp += 1
                num_found = 0
                holds_all = False
                holds_node = False
                for k in range(1 if state == 0 else num_closure):
                    top = 0
                    if state == 0:
                        stack[0] = entry
                    elif closure[k] >= num_nodes:
                        stack[0] = num_nodes + tail[closure[k] - num_nodes, column]
                    elif sets[args[closure[k]], column]:
                        stack[0] = nexts[closure[k]]
                    else:
                        top = -1
                    work += 1
                    while top >= 0:
                        node = stack[top]
                        top -= 1
                        work += 1
                        if node < num_nodes and kinds[node] == EXIT:
                            node = num_nodes + tail[0, num_columns + after]
                        if stamps[node] == stamp:
                            continue
                        stamps[node] = stamp
                        if node < num_nodes and kinds[node] == SPLIT:
                            stack[top + 1] = others[node]
                            stack[top + 2] = nexts[node]
                            top += 2
                        elif node != num_nodes + tail_dead:
                            found[num_found] = node
                            num_found += 1
                            holds_node = holds_node or node < num_nodes
                            holds_all = holds_all or node == num_nodes + tail_all
                if work > max_work:
                    return table[:0].copy(), final[:0].copy(), TOO_MUCH_WORK, work
                if holds_all:
                    found[0] = num_nodes + tail_all
                    num_found = 1
                if holds_all or not holds_node:
                    # The tail knows its own context.
                    after = 0
                target = _DEAD
                if num_found > 0:
                    found[:num_found].sort()
                    size = len(slots)
                    code = np.uint64(after + 1)
                    for k in range(num_found):
                        code = (code ^ np.uint64(found[k])) * np.uint64(0x9E3779B97F4A7C15)
                        code ^= code >> np.uint64(29)
                    slot = np.int64(code & np.uint64(size - 1))
                    while True:
                        target = slots[slot]
                        if target < 0:
                            break
                        begin = offsets[target]
                        if context_of[target] == after and offsets[target + 1] - begin == num_found:
                            same = True
                            for k in range(num_found):
                                if atoms[begin + k] != found[k]:
                                    same = False
                                    break
                            if same:
                                break
                        slot = (slot + 1) & (size - 1)
                    if target < 0:
                        if num_states == max_states:
                            return table[:0].copy(), final[:0].copy(), TOO_MANY_STATES, work
                        if num_states == len(table):
                            more = np.full((num_states, table.shape[1]), _DEAD, np.int32)
                            table = np.concatenate((table, more))
                            final = np.append(final, np.zeros(num_states, np.uint8))
                            context_of = np.append(context_of, np.zeros(num_states, np.int32))
                            offsets = np.append(offsets, np.zeros(num_states, np.int64))
                        begin = offsets[num_states]
                        while begin + num_found > len(atoms):
                            atoms = np.append(atoms, np.empty(len(atoms), np.int32))
                        atoms[begin : begin + num_found] = found[:num_found]
                        offsets[num_states + 1] = begin + num_found
                        context_of[num_states] = after
                        target = num_states
                        slots[slot] = target
                        num_states += 1
                        if 3 * num_states > size:
                            size *= 4
                            slots = np.full(size, -1, np.int32)
                            for s in range(2, num_states):
                                code = np.uint64(context_of[s] + 1)
                                for k in range(offsets[s], offsets[s + 1]):
                                    code = (code ^ np.uint64(atoms[k])) * np.uint64(0x9E3779B97F4A7C15)
                                    code ^= code >> np.uint64(29)
                                slot = np.int64(code & np.uint64(size - 1))
                                while slots[slot] >= 0:
                                    slot = (slot + 1) & (size - 1)
                                slots[slot] = s
                table[state, num_columns + context if state == 0 else column] = target
        state += 1
    return table[:num_states].copy(), final[:num_states].copy(), DONE, work


_SIGNATURE = (
    "Tuple((i4[:, ::1], u1[::1], i8, i8))(i4[::1], i4[::1], i4[::1], i4[::1], i8, u1[:, ::1], u1[:, ::1], u1[:, ::1],"
    " i4[::1], i4[:, ::1], i4[:, ::1], u1[::1], i8, i8, i8, i8)"
)


@functools.cache
def load_determinise() -> Callable[..., tuple[Ints, Flags, int, int]]:
    """`determinise`, compiled or loaded from numba's cache."""
    return compiled(determinise, _SIGNATURE)
