"""The values that patterns are compiled through: NFAs, and the suffixes that may follow a position."""

from __future__ import annotations

import numpy as np

from specdec.grammars.errors import LimitExceededError
from specdec.grammars.language_kernels import Flags, Ints
from specdec.grammars.pattern_kernels import CHARACTERS, EXIT, GUARD, SPLIT
from specdec.grammars.pattern_syntax import Alternation, Characters, Concatenation, Look, Node, Repetition

LOOK = 4
"""A node that only machines with look-aheads hold: look-ahead args[n] must match here, then nexts[n]."""

MAX_NODES = 50_000
"""Nodes of one NFA, repetitions written out."""


class Suffixes:
    """A located automaton (pattern_kernels.py); it is not changed."""

    __slots__ = ("all", "dead", "final", "rows")

    def __init__(self, rows: Ints, final: Flags, num_columns: int) -> None:
        self.rows = rows
        self.final = final
        loops = np.flatnonzero((rows[:, :num_columns] == np.arange(len(rows))[:, None]).all(axis=1)).tolist()
        whole = np.flatnonzero((rows == np.arange(len(rows))[:, None]).all(axis=1)).tolist()
        self.dead: int = next((state for state in whole if not final[state]), len(rows))
        """The state from which nothing is accepted, or the number of states."""
        self.all: int = next((state for state in loops if final[state]), len(rows))
        """A state from which everything is accepted, or the number of states."""

    def complement(self) -> Suffixes:
        """All other suffixes. Nothing is said of words that are not a context followed by columns."""
        return Suffixes(self.rows, 1 - self.final, self.rows.shape[1])


class Machine:
    """An NFA of a tree, as pattern_kernels.py reads it."""

    def __init__(
        self,
        tree: Node,
        *,
        sets: dict[Characters, int],
        members: Flags,
        behind: dict[Node, int],
        is_behind: Flags,
        looks: dict[Look, int],
    ) -> None:
        """members[s, c] and is_behind[l, b] say which columns set s holds and in which contexts look l matches.

        `looks` numbers the look-aheads at more than one code point. Raises LimitExceededError.
        """
        self.members = members
        self._sets, self._behind, self._is_behind, self._looks = sets, behind, is_behind, looks
        self._guards: dict[Look, int] = {}
        self._nodes: list[tuple[int, int, int, int]] = []
        self.entry = self._build(tree, self._add(EXIT))
        num_columns, num_contexts = members.shape[1], is_behind.shape[1]
        self.guard_behind = np.ones((len(self._guards), num_contexts), np.uint8)
        self.guard_ahead = np.ones((len(self._guards), num_columns + 1), np.uint8)
        for look, guard in self._guards.items():
            if look.is_ahead:
                assert isinstance(look.item, Characters)
                held = np.append(members[sets[look.item]], np.uint8(0))
                self.guard_ahead[guard] = held ^ look.is_negative
            else:
                self.guard_behind[guard] = is_behind[behind[look.item]] ^ look.is_negative

    def arrays(self) -> tuple[Ints, Ints, Ints, Ints]:
        """(kinds, args, nexts, others) by node."""
        kinds, args, nexts, others = np.array(self._nodes, np.int32).T.copy()
        return kinds, args, nexts, others

    def guard_groups(self) -> Ints:
        """The number of each column, the end included, equal where all guards agree on them."""
        numbers: dict[bytes, int] = {}
        columns = np.ascontiguousarray(self.guard_ahead.T)
        return np.array([numbers.setdefault(column.tobytes(), len(numbers)) for column in columns], np.int32)

    def _add(self, kind: int, arg: int = 0, following: int = 0, other: int = 0) -> int:
        if len(self._nodes) == MAX_NODES:
            raise LimitExceededError(
                f"a pattern, its repetitions written out, has more than {MAX_NODES} parts, the limit max_pattern_nodes;"
                " smaller repeat counts have fewer",
                keyword="pattern",
            )
        self._nodes.append((kind, arg, following, other))
        return len(self._nodes) - 1

    def _build(self, node: Node, following: int) -> int:
        """The entry of the node, after which the machine goes on at `following`."""
        if isinstance(node, Characters):
            return self._add(CHARACTERS, self._sets[node], following)
        if isinstance(node, Concatenation):
            for part in reversed(node.parts):
                following = self._build(part, following)
            return following
        if isinstance(node, Alternation):
            entry = self._build(node.branches[-1], following)
            for branch in reversed(node.branches[:-1]):
                entry = self._add(SPLIT, 0, self._build(branch, following), entry)
            return entry
        if isinstance(node, Look):
            if node in self._looks:
                return self._add(LOOK, self._looks[node], following)
            return self._add(GUARD, self._guards.setdefault(node, len(self._guards)), following)
        return self._repeat(node, following)

    def _repeat(self, node: Repetition, following: int) -> int:
        entry = following
        if node.maximum is None:
            entry = self._add(SPLIT)
            self._nodes[entry] = (SPLIT, 0, self._build(node.item, entry), following)
        else:
            for _ in range(node.maximum - node.minimum):
                entry = self._add(SPLIT, 0, self._build(node.item, entry), following)
        for _ in range(node.minimum):
            before = self._build(node.item, entry)
            if before == entry:
                break
            entry = before
        return entry
