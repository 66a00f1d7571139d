"""RawText: text that is no JSON (a regular language, literals, free text) and where JSON values stand in it.

One byte automaton over well-formed UTF-8. A *value* state is left at once: there a JSON value begins, and when it has
ended, the text goes on in another state, or is complete.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.node_steps import Nodes
from specdec.grammars.walk import DEAD


class ValueStart(NamedTuple):
    """A JSON value within raw text."""

    goal: int
    """The rule that it satisfies."""
    after: int | None
    """The state after the value, None where the text is complete. A number ends with the first byte from there."""
    begun: bytes = b""
    """What of the value leads to the state already."""


class RawText:
    """The automaton: its transitions as sorted ranges of bytes, `accepting` uint8 [states] where the text may end.

    Those of a state s are range_starts[s] .. range_starts[s + 1]: from lows[i] to highs[i] to the state targets[i].
    `values` are the value states, from which no byte leads anywhere; `special` gives the targets of tokens without
    bytes, by state and token id. From every state that the start leads to, by bytes alone, the text can be completed.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[int, int]],
        accepting: NDArray[np.uint8],
        start: int,
        values: Mapping[int, ValueStart],
        special: Mapping[int, Mapping[int, int]],
    ) -> None:
        self.range_starts, self.lows, self.highs, self.targets = _ranges(rows)
        self.accepting = accepting
        self.start = start
        self.values = values
        self.special = special
        self.is_value = np.zeros(len(accepting), np.uint8)
        self.is_value[list(values)] = 1
        self._view_arrays()

    def _view_arrays(self) -> None:
        # Their elements are Python's own numbers, which arrays' are not.
        self._range_starts, self._lows = self.range_starts.data, self.lows.data
        self._highs, self._targets = self.highs.data, self.targets.data

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if not isinstance(value, memoryview)}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._view_arrays()

    def is_accepting(self, state: int) -> bool:
        return bool(self.accepting[state])

    def step(self, state: int, byte: int) -> int:
        """The state after the byte, or DEAD."""
        begin = self._range_starts[state]
        index = bisect_right(self._lows, byte, begin, self._range_starts[state + 1]) - 1
        return self._targets[index] if index >= begin and byte <= self._highs[index] else DEAD

    def scan(self, state: int, data: bytes, begin: int) -> tuple[int, int]:
        """(state, end) after the bytes up to a value state, or to the data's end; DEAD where they lead nowhere."""
        end = begin
        while end < len(data):
            state = self.step(state, data[end])
            if state == DEAD:
                return DEAD, end
            end += 1
            if state in self.values:
                break
        return state, end

    def tail(self, state: int) -> tuple[bytes, int]:
        """The bytes from a state to the first one where the text may end or a value begins, on the way to its end."""
        following = self._nearest
        tail = bytearray()
        while not (self.accepting[state] or self.is_value[state]):
            byte, state = following[state]
            tail.append(byte)
        return bytes(tail), state

    def tails(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each state the bytes of its tail and the state where that ends; -1 where there is none."""
        num_bytes, ends = np.full((2, len(self.accepting)), -1, np.int64)
        at_end = (self.accepting | self.is_value).astype(bool)
        num_bytes[at_end], ends[at_end] = 0, np.flatnonzero(at_end)
        # Those nearer to an end come first.
        for state, (_, target) in self._nearest.items():
            num_bytes[state], ends[state] = num_bytes[target] + 1, ends[target]
        return num_bytes, ends

    @functools.cached_property
    def _nearest(self) -> dict[int, tuple[int, int]]:
        """By state the byte and the state that lead nearer to where the text may end, a value counted as a byte."""
        sources: dict[int, list[tuple[int, int]]] = {}
        for state in range(len(self.accepting)):
            for index in range(self._range_starts[state], self._range_starts[state + 1]):
                sources.setdefault(self._targets[index], []).append((state, self._lows[index]))
        values: dict[int, list[int]] = {}
        for state, value in self.values.items():
            if value.after is not None:
                values.setdefault(value.after, []).append(state)
        frontier = [state for state in range(len(self.accepting)) if self.accepting[state]]
        frontier += [state for state, value in self.values.items() if value.after is None]
        following: dict[int, tuple[int, int]] = {}
        reached = set(frontier)
        while frontier:
            found: list[int] = []
            for target in frontier:
                for state, byte in sources.get(target, ()):
                    if state not in reached:
                        reached.add(state)
                        following[state] = byte, target
                        found.append(state)
                for state in values.get(target, ()):
                    if state not in reached:
                        reached.add(state)
                        found.append(state)
            frontier = found
        return following

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        return 6 * len(self.lows) + 6 * len(self.accepting)


def _ranges(rows: Iterable[Mapping[int, int]]) -> tuple[Nodes, NDArray[np.uint8], NDArray[np.uint8], Nodes]:
    """(range_starts, lows, highs, targets) of RawText."""
    starts, targets = [0], list[int]()
    lows, highs = bytearray(), bytearray()
    for row in rows:
        for byte in sorted(row):
            if len(lows) > starts[-1] and highs[-1] == byte - 1 and targets[-1] == row[byte]:
                highs[-1] = byte
            else:
                lows.append(byte)
                highs.append(byte)
                targets.append(row[byte])
        starts.append(len(lows))
    return (
        np.array(starts, np.int32),
        np.frombuffer(lows, np.uint8),
        np.frombuffer(highs, np.uint8),
        np.array(targets, np.int32),
    )
