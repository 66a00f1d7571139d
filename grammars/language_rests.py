"""What is left to acceptance from each state of an automaton: how many words, and of which lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_COUNT = 2**64
"""Where counting words stops: exact counts of long words are numbers of many kilobytes."""


class Rests:
    """Per state: the shortest and longest rest in code points, and the number of rests.

    `shortest` is None for dead states; `longest` is None for dead ones and where there is no bound; `num_words` is
    None for infinitely many.
    """

    __slots__ = ("has_all_lengths", "longest", "num_words", "shortest")

    def __init__(self, rows: NDArray[np.int32], accepting: Sequence[bool], widths: NDArray[np.int64]) -> None:
        """widths[c] is the number of code points that read column c."""
        num_states = len(rows)
        successors: list[dict[int, int]] = []
        for row in rows.tolist():
            counts: dict[int, int] = {}
            for target, width in zip(row, widths.tolist(), strict=True):
                counts[target] = counts.get(target, 0) + width
            successors.append(counts)
        predecessors: list[list[int]] = [[] for _ in range(num_states)]
        for state, counts in enumerate(successors):
            for target in counts:
                predecessors[target].append(state)
        self.shortest = _shortest(predecessors, accepting)
        self.longest: list[int | None] = [None] * num_states
        self.num_words: list[int | None] = [0 if length is None else None for length in self.shortest]
        num_open = [sum(self.shortest[target] is not None for target in counts) for counts in successors]
        ready = [s for s in range(num_states) if self.shortest[s] is not None and num_open[s] == 0]
        # A state is ready when all its live successors are done; those on or before a cycle never are.
        while ready:
            state = ready.pop()
            longest, count = 0, int(accepting[state])
            for target, width in successors[state].items():
                rest, words = self.longest[target], self.num_words[target]
                if rest is not None and words is not None:
                    longest = max(longest, rest + 1)
                    count = min(count + words * width, MAX_COUNT)
            self.longest[state], self.num_words[state] = longest, count
            for source in predecessors[state]:
                num_open[source] -= 1
                if num_open[source] == 0:
                    ready.append(source)
        self.has_all_lengths = all(
            self._has_no_gap(accepting[state], list(counts))
            for state, counts in enumerate(successors)
            if self.shortest[state] is not None
        )

    def _has_no_gap(self, is_accepting: bool, targets: list[int]) -> bool:
        """Whether a state's lengths are consecutive, if those of its successors are.

        Where this holds of every live state, all are: by induction on a length, some successor has it less one.
        """
        spans: list[tuple[int, float]] = [(0, 0)] if is_accepting else []
        for target in targets:
            low, high = self.shortest[target], self.longest[target]
            if low is not None:
                spans.append((low + 1, float("inf") if high is None else high + 1))
        spans.sort()
        reach = spans[0][1]
        for span_low, span_high in spans[1:]:
            if span_low > reach + 1:
                return False
            reach = max(reach, span_high)
        return True


def _shortest(predecessors: list[list[int]], accepting: Sequence[bool]) -> list[int | None]:
    lengths: list[int | None] = [0 if flag else None for flag in accepting]
    frontier = [state for state, flag in enumerate(accepting) if flag]
    length = 0
    while frontier:
        length += 1
        found: list[int] = []
        for state in frontier:
            for source in predecessors[state]:
                if lengths[source] is None:
                    lengths[source] = length
                    found.append(source)
        frontier = found
    return lengths
