"""Subset construction with look-aheads under way: what they still have to match is carried along.

A thread is an atom (a node of the machine, or a state of the tail) with its obligations: states of look-ahead automata,
all of which must accept what is left. The threads of a state are alternatives, so that one with fewer obligations makes
one with more of them superfluous.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specdec.grammars.language_kernels import Flags, Ints
from specdec.grammars.languages import max_states_for, states_exceeded
from specdec.grammars.pattern_kernels import CHARACTERS, EXIT, GUARD, SPLIT
from specdec.grammars.pattern_machine import Machine, Suffixes

_Obligations = frozenset[tuple[int, int]]
_Thread = tuple[int, _Obligations]
_State = tuple[frozenset[_Thread], int]


def determinise_obligations(
    machine: Machine, looks: Sequence[Suffixes], contexts: Ints, tail: Suffixes, *, max_steps: int
) -> tuple[Ints, Flags, int]:
    """The located automaton of the machine, whose look-aheads are `looks`, followed by the tail; and the steps taken.

    Where it takes more than max_steps it is not finished, and the steps say so.
    """
    num_contexts, num_columns = contexts.shape
    walk = _Walk(machine, looks, contexts.tolist(), tail)
    limit = max_states_for(num_columns + num_contexts)
    numbers: dict[_State, int] = {}
    states: list[_State] = []

    def number_of(state: _State) -> int:
        number = numbers.setdefault(state, len(numbers))
        if number == len(states):
            if number + 2 > limit:
                raise states_exceeded(limit)
            states.append(state)
        return number + 2

    dead = 1
    start = [dead] * num_columns
    start += [number_of((frozenset([(machine.entry, frozenset())]), context)) for context in range(num_contexts)]
    rows = [start, [dead] * (num_columns + num_contexts)]
    final = [False, False]
    for state in states:
        if walk.num_steps > max_steps:
            break
        row = []
        for column in range(num_columns):
            following = walk.step(state, column)
            row.append(number_of(following) if following[0] else dead)
        rows.append(row + [dead] * num_contexts)
        final.append(walk.is_final(state))
    return np.array(rows, np.int32), np.array(final, np.uint8), walk.num_steps


class _Walk:
    __slots__ = ("_ahead", "_behind", "_contexts", "_looks", "_members", "_nodes", "_num_columns", "_tail", "num_steps")

    def __init__(self, machine: Machine, looks: Sequence[Suffixes], contexts: list[list[int]], tail: Suffixes) -> None:
        self._nodes: list[list[int]] = np.stack(machine.arrays(), axis=1).tolist()
        self._members: list[list[int]] = machine.members.tolist()
        self._behind: list[list[int]] = machine.guard_behind.tolist()
        self._ahead: list[list[int]] = machine.guard_ahead.tolist()
        self._contexts = contexts
        self._looks = [(look.rows.tolist(), look.final.tolist(), look.dead, look.all) for look in looks]
        self._tail = (tail.rows.tolist(), tail.final.tolist(), tail.dead, tail.all)
        self._num_columns = len(contexts[0])
        self.num_steps = 0

    def step(self, state: _State, column: int) -> _State:
        context = state[1]
        after = self._contexts[context][column]
        num_nodes = len(self._nodes)
        threads: set[_Thread] = set()
        for atom, obligations in self._closure(state, column):
            if atom >= num_nodes:
                target = self._tail[0][atom - num_nodes][column]
                if target == self._tail[2]:
                    continue
                target += num_nodes
            elif self._members[self._nodes[atom][1]][column]:
                target = self._nodes[atom][2]
            else:
                continue
            moved = self._moved(obligations, column)
            if moved is not None:
                threads.add((target, moved))
        return self._least(threads), after

    def is_final(self, state: _State) -> bool:
        num_nodes = len(self._nodes)
        return any(
            atom >= num_nodes
            and self._tail[1][atom - num_nodes]
            and all(self._looks[look][1][at] for look, at in obligations)
            for atom, obligations in self._closure(state, self._num_columns)
        )

    def _closure(self, state: _State, column: int) -> set[_Thread]:
        """The threads that read the next code point, or are in the tail, where `column` comes next."""
        threads, context = state
        seen: set[_Thread] = set()
        found: set[_Thread] = set()
        stack = list(threads)
        while stack:
            thread = stack.pop()
            if thread in seen:
                continue
            seen.add(thread)
            atom, obligations = thread
            if atom >= len(self._nodes):
                found.add(thread)
                continue
            kind, arg, following, other = self._nodes[atom]
            if kind == CHARACTERS:
                found.add(thread)
            elif kind == SPLIT:
                stack += [(following, obligations), (other, obligations)]
            elif kind == GUARD:
                if self._behind[arg][context] and self._ahead[arg][column]:
                    stack.append((following, obligations))
            elif kind == EXIT:
                stack.append((len(self._nodes) + self._tail[0][0][self._num_columns + context], obligations))
            else:
                rows, _, dead, everything = self._looks[arg]
                at = rows[0][self._num_columns + context]
                if at != dead:
                    owed = obligations if at == everything else obligations | {(arg, at)}
                    stack.append((following, owed))
        self.num_steps += len(seen)
        return found

    def _moved(self, obligations: _Obligations, column: int) -> _Obligations | None:
        """The obligations after one more code point, None where one of them has failed."""
        moved = []
        for look, at in obligations:
            rows, _, dead, everything = self._looks[look]
            target = rows[at][column]
            if target == dead:
                return None
            if target != everything:
                moved.append((look, target))
        return frozenset(moved)

    def _least(self, threads: set[_Thread]) -> frozenset[_Thread]:
        """The threads without those that owe more than another at the same atom."""
        if len(threads) == 1:
            return frozenset(threads)
        everything = (len(self._nodes) + self._tail[3], frozenset[tuple[int, int]]())
        if everything in threads:
            return frozenset([everything])
        by_atom: dict[int, list[_Obligations]] = {}
        for atom, obligations in sorted(threads, key=lambda thread: len(thread[1])):
            kept = by_atom.setdefault(atom, [])
            self.num_steps += len(kept)
            if not any(fewer <= obligations for fewer in kept):
                kept.append(obligations)
        return frozenset((atom, one) for atom, kept in by_atom.items() for one in kept)
