"""The byte automata of sets of numbers: which numerals denote a member, as dense tables int16 [states, 256].

A numeral without a fraction has at most 18 digits and is not "-0". One with a fraction has at most 15, of which a
zero before the point is none, so that no two of different values denote the same double. A set of integers has no
fractions. Exponents, of two digits, are only for the set of all numbers. A single number that has no such numeral
is spelt as a whole if it is a member on its own, its neighbours being none: an integer by its digits, or else as
Python's json spells a float.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.errors import LimitExceededError
from specdec.grammars.jit import compiled
from specdec.grammars.numbers import NumberSet
from specdec.grammars.numeral_nodes import NumeralNodes, check_states
from specdec.grammars.walk import DEAD, Table

MAX_NUMERAL_STATES = 20_000
MAX_COMBINING_STEPS = 6_000_000


class NumeralAutomaton:
    """An acyclic byte automaton that starts in state 0; from each state, an accepting one can be reached."""

    START = 0

    def __init__(self, table: Table, accepting: NDArray[np.uint8]) -> None:
        self.table = table
        """int16 [states, 256], DEAD where a byte leads nowhere."""
        self.accepting = accepting
        """uint8 [states], 1 where a numeral may end."""
        cells = table.reshape(-1).data
        self.steps: Sequence[Sequence[int]] = [cells[row * 256 : row * 256 + 256] for row in range(len(table))]
        """The rows of the table, which Python indexes faster this way."""
        self.is_final: list[bool] = (table == DEAD).all(axis=1).tolist()
        self._nearest: tuple[list[int], int] | None = None

    def nearest_ends(self) -> tuple[list[int], int]:
        """For each state a byte that leads nearer to one where a numeral may end, DEAD there; the most bytes to it."""
        if self._nearest is None:
            following, most = load_nearest_ends()(self.table, self.accepting)
            self._nearest = following.tolist(), most
        return self._nearest

    def __reduce__(self) -> tuple[object, ...]:
        return NumeralAutomaton, (self.table, self.accepting)

    @property
    def num_bytes(self) -> int:
        """Memory, roughly."""
        return self.table.nbytes + 300 * len(self.table)

    @property
    def num_states(self) -> int:
        return len(self.table)

    def is_empty(self) -> bool:
        """Whether it accepts nothing: its one state is dead."""
        return not self.accepting.any()

    def __contains__(self, numeral: bytes) -> bool:
        state = self.START
        for byte in numeral:
            state = self.steps[state][byte]
            if state == DEAD:
                return False
        return bool(self.accepting[state])


class CombinedAutomaton(NumeralAutomaton):
    """The product of automata: `accepts[state]` are the indices of those that accept there."""

    def __init__(self, table: Table, accepts: Sequence[frozenset[int]]) -> None:
        super().__init__(table, np.array([bool(indices) for indices in accepts], np.uint8))
        self.accepts: tuple[frozenset[int], ...] = tuple(accepts)

    def __reduce__(self) -> tuple[object, ...]:
        return CombinedAutomaton, (self.table, self.accepts)


def nearest_ends(table: Table, accepting: NDArray[np.uint8]) -> tuple[NDArray[np.int16], int]:
    """A byte from each state to one nearer to an accepting state, breadth first from those; the most bytes to one."""
    num_states = len(table)
    firsts = np.zeros(num_states + 1, np.int32)
    for state in range(num_states):
        for byte in range(256):
            if table[state, byte] >= 0:
                firsts[table[state, byte] + 1] += 1
    for state in range(num_states):
        firsts[state + 1] += firsts[state]
    filled = firsts[:num_states].copy()
    sources = np.empty(firsts[num_states], np.int32)
    bytes_ = np.empty(firsts[num_states], np.int16)
    for state in range(num_states):
        for byte in range(256):
            target = table[state, byte]
            if target >= 0:
                sources[filled[target]] = state
                bytes_[filled[target]] = byte
                filled[target] += 1
    following = np.full(num_states, -1, np.int16)
    distances = np.full(num_states, -1, np.int32)
    queue = np.empty(num_states, np.int32)
    num_queued = 0
    for state in range(num_states):
        if accepting[state]:
            distances[state] = 0
            queue[num_queued] = state
            num_queued += 1
    done = 0
    while done < num_queued:
        target = queue[done]
        done += 1
        for i in range(firsts[target], firsts[target + 1]):
            state = sources[i]
            if distances[state] < 0:
                distances[state] = distances[target] + 1
                following[state] = bytes_[i]
                queue[num_queued] = state
                num_queued += 1
    return following, distances[queue[num_queued - 1]] if num_queued else 0


@functools.cache
def load_nearest_ends() -> Callable[..., tuple[NDArray[np.int16], int]]:
    """Compile nearest_ends, or load it from numba's cache."""
    return compiled(nearest_ends, "Tuple((i2[::1], i8))(i2[:, ::1], u1[::1])")


def numeral_automaton(
    numbers: NumberSet,
    spellable: frozenset[int],
    *,
    canonical: bool = False,
    max_states: int = MAX_NUMERAL_STATES,
) -> NumeralAutomaton:
    """The minimal automaton of the numerals of the members that use no byte but the spellable ones.

    `canonical` leaves one numeral to each number: no fraction that ends with 0, and no exponent unless the number
    has no other numeral. LimitExceededError where it has over max_states, or takes too long to find.
    """
    return NumeralAutomaton(*NumeralNodes(numbers, spellable, canonical, max_states).tables())


def combine(automata: Sequence[NumeralAutomaton], *, max_states: int = MAX_NUMERAL_STATES) -> CombinedAutomaton:
    """What any of them accepts; LimitExceededError where there are over max_states combinations of their states."""
    used = [np.flatnonzero((one.table != DEAD).any(axis=0)).tolist() for one in automata]
    alphabet = sorted({byte for bytes_ in used for byte in bytes_})
    start = tuple((index, one.START) for index, one in enumerate(automata) if not one.is_empty())
    states = {start: 0}
    pending = [start]
    rows: list[NDArray[np.int16]] = []
    accepts: list[frozenset[int]] = []
    num_steps = 0
    for current in pending:
        row = np.full(256, DEAD, np.int16)
        for byte in alphabet:
            target = tuple(
                [(index, to) for index, state in current if (to := automata[index].steps[state][byte]) != DEAD]
            )
            num_steps += len(current)
            if not target:
                continue
            if target not in states:
                states[target] = len(states)
                pending.append(target)
                check_states(len(states), max_states)
            row[byte] = states[target]
        if num_steps > MAX_COMBINING_STEPS:
            raise LimitExceededError(
                f"combining {len(automata)} sets of numbers takes over max_combining_steps={MAX_COMBINING_STEPS}"
            )
        rows.append(row)
        accepts.append(frozenset(index for index, state in current if automata[index].accepting[state]))
    return CombinedAutomaton(np.stack(rows), accepts)
