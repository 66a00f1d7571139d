"""From a pattern's tree to its language, by cutting it at its look-aheads, from right to left.

What a part and all that follows it match is a located automaton (pattern_kernels.py): a set of suffixes, each with the
context in front of it. Where a look-ahead stands, the suffixes are intersected with those that it matches, or does
not; parts without one become an NFA and then, with what follows as its tail, an automaton. Looks behind, and looks
ahead at a single code point, cut nothing: they are guards. A look-ahead under an unbounded repetition cannot be cut
there: pattern_obligations.py carries it along.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from specdec.grammars.errors import LimitExceededError, UnsupportedSchemaError
from specdec.grammars.language_kernels import Flags, Ints, load_kernels
from specdec.grammars.languages import Language, from_automaton, max_states_for, states_exceeded
from specdec.grammars.pattern_kernels import TOO_MANY_STATES, load_determinise
from specdec.grammars.pattern_machine import Machine, Suffixes
from specdec.grammars.pattern_obligations import determinise_obligations
from specdec.grammars.pattern_sets import Ranges
from specdec.grammars.pattern_syntax import (
    ANY_STRING,
    Alternation,
    Characters,
    Concatenation,
    Look,
    Node,
    Repetition,
)

MAX_WORK = 80_000_000
"""Nodes visited while one pattern's automata are built, and what is charged in their stead."""
_WORK_PER_AUTOMATON = 20_000
_WORK_PER_TRANSITION = 10
_WORK_PER_THREAD = 200
MAX_UNROLLED = 16
"""Repetitions of a look-ahead that are written out; more of them are carried along."""
MAX_SETS = 2_000
"""Distinct sets of code points in one pattern."""
MAX_CONTEXTS = 1_000
"""What looks behind can tell apart about the text before a position."""


def search_language(tree: Node) -> Language:
    """The strings that match the tree somewhere; raises LimitExceededError and UnsupportedSchemaError."""
    return _Compiler(Concatenation((ANY_STRING, tree))).language(is_open=True)


def whole_language(tree: Node) -> Language:
    """The strings that match the tree from beginning to end; raises what `search_language` does."""
    return _Compiler(tree).language(is_open=False)


def _ending_language(tree: Node) -> Language:
    """The strings at whose end a match of the tree ends."""
    for node in _walk(tree):
        if isinstance(node, Look) and node.is_ahead:
            raise UnsupportedSchemaError("a look-ahead, $ or \\b inside a look-behind", keyword="pattern")
    return _Compiler(Concatenation((ANY_STRING, tree))).language(is_open=False)


class _Compiler:
    """One tree: the columns that tell its sets apart, and the contexts that tell its looks behind apart."""

    def __init__(self, tree: Node) -> None:
        self._tree = tree
        looks = {node.item for node in _walk(tree) if isinstance(node, Look) and not node.is_ahead}
        self._behind = {item: i for i, item in enumerate(looks)}
        languages = [_ending_language(item) for item in looks]
        sets = list(dict.fromkeys(node for node in _walk(tree) if isinstance(node, Characters)))
        if len(sets) > MAX_SETS:
            raise _exceeded("distinct sets of code points", "max_pattern_sets", MAX_SETS)
        self._column_at, members = _columns([one.ranges for one in sets], languages)
        self._contexts, is_behind = _contexts(languages, self._column_at, members.shape[1])
        self._sets = {one: i for i, one in enumerate(sets)}
        self._members, self._is_behind = members, is_behind
        self._work_left = MAX_WORK
        num_columns, num_contexts = members.shape[1], len(self._contexts)
        self._identity = np.ascontiguousarray(np.tile(np.arange(num_columns + num_contexts, dtype=np.int32), (2, 1)))
        self._num_columns = num_columns
        self._everything = self._suffixes(
            [[2] * num_columns + [1] * num_contexts, [1] * num_columns + [2] * num_contexts,
             [2] * (num_columns + num_contexts)], [0, 1, 0],
        )  # fmt: skip
        self._end = self._suffixes(
            [[2] * num_columns + [1] * num_contexts, *[[2] * (num_columns + num_contexts)] * 2], [0, 1, 0]
        )

    def language(self, *, is_open: bool) -> Language:
        """The strings that the tree matches, up to anywhere if is_open, else up to the end."""
        whole = self._before(self._tree, self._everything if is_open else self._end)
        start = int(whole.rows[0, self._num_columns])
        order = np.arange(len(whole.rows), dtype=np.int32)
        order[[0, start]] = order[[start, 0]]
        rows = np.ascontiguousarray(order[whole.rows[order, : self._num_columns]])
        return from_automaton(dict(self._column_at), rows, np.ascontiguousarray(whole.final[order]))

    def _suffixes(self, rows: Sequence[Sequence[int]], final: Sequence[int]) -> Suffixes:
        return Suffixes(np.array(rows, np.int32), np.array(final, np.uint8), self._num_columns)

    def _before(self, node: Node, rest: Suffixes) -> Suffixes:
        """The suffixes that the node matches a start of, such that the rest follows."""
        if not _has_cut(node):
            return self._determinised(node, rest)
        if isinstance(node, Look):
            found = self._before(node.item, self._everything)
            return self._both(rest, found.complement() if node.is_negative else found)
        if isinstance(node, Concatenation):
            runs = [(cuts, list(run)) for cuts, run in itertools.groupby(node.parts, _has_cut)]
            for cuts, run in reversed(runs):
                parts = reversed(run) if cuts else [Concatenation(tuple(run))]
                for part in parts:
                    rest = self._before(part, rest)
            return rest
        if isinstance(node, Alternation):
            result = self._before(node.branches[0], rest)
            for branch in node.branches[1:]:
                result = self._either(result, self._before(branch, rest))
            return result
        assert isinstance(node, Repetition)
        if node.maximum is None or node.maximum > MAX_UNROLLED:
            return self._carried(node, rest)
        result = rest
        for _ in range(node.maximum - node.minimum):
            result = self._either(rest, self._before(node.item, result))
        for _ in range(node.minimum):
            result = self._before(node.item, result)
        return result

    def _machine(self, node: Node, looks: dict[Look, int]) -> Machine:
        return Machine(
            node,
            sets=self._sets,
            members=self._members,
            behind=self._behind,
            is_behind=self._is_behind,
            looks=looks,
        )

    def _determinised(self, node: Node, rest: Suffixes) -> Suffixes:
        machine = self._machine(node, {})
        limit = max_states_for(rest.rows.shape[1])
        rows, final, outcome, work = load_determinise()(
            *machine.arrays(), machine.entry, machine.members, machine.guard_behind, machine.guard_ahead,
            machine.guard_groups(), self._contexts, rest.rows, rest.final, rest.dead, rest.all, limit, self._work_left,
        )  # fmt: skip
        if outcome == TOO_MANY_STATES:
            raise states_exceeded(limit)
        self._charge(work)
        return self._minimal(rows, final)

    def _carried(self, node: Repetition, rest: Suffixes) -> Suffixes:
        looks = list(dict.fromkeys(look for look in _walk(node, into_looks=False) if _is_cut(look)))
        bodies = []
        for look in looks:
            assert isinstance(look, Look)
            body = self._before(look.item, self._everything)
            bodies.append(body.complement() if look.is_negative else body)
        machine = self._machine(node, {look: i for i, look in enumerate(looks) if isinstance(look, Look)})
        rows, final, steps = determinise_obligations(
            machine, bodies, self._contexts, rest, max_steps=self._work_left // _WORK_PER_THREAD
        )
        self._charge(steps * _WORK_PER_THREAD)
        return self._minimal(rows, final)

    def _both(self, a: Suffixes, b: Suffixes) -> Suffixes:
        limit = max_states_for(a.rows.shape[1])
        rows, final = load_kernels().intersect(
            a.rows, a.final, a.dead if a.dead < len(a.rows) else -1, b.rows, b.final,
            b.dead if b.dead < len(b.rows) else -1, self._identity, limit,
        )  # fmt: skip
        if not len(rows):
            raise states_exceeded(limit)
        return self._minimal(rows, final)

    def _either(self, a: Suffixes, b: Suffixes) -> Suffixes:
        return self._both(a.complement(), b.complement()).complement()

    def _charge(self, work: int) -> None:
        self._work_left -= work
        if self._work_left < 0:
            raise _exceeded("steps to build its automaton", "max_pattern_work", MAX_WORK)

    def _minimal(self, rows: Ints, final: Flags) -> Suffixes:
        self._charge(_WORK_PER_AUTOMATON + _WORK_PER_TRANSITION * rows.size)
        kernels = load_kernels()
        rows, final, merged = kernels.canonical(rows, final, kernels.equivalent_states(rows, final))
        return Suffixes(np.ascontiguousarray(rows[:, merged]), final, self._num_columns)


def _walk(tree: Node, *, into_looks: bool = True) -> list[Node]:
    """The node and all below it, but nothing inside a look behind, which is compiled on its own."""
    nodes: list[Node] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        nodes.append(node)
        if isinstance(node, Concatenation):
            stack.extend(node.parts)
        elif isinstance(node, Alternation):
            stack.extend(node.branches)
        elif isinstance(node, Repetition) or (isinstance(node, Look) and node.is_ahead and into_looks):
            stack.append(node.item)
    return nodes


def _is_cut(node: Node) -> bool:
    """Whether it is a look-ahead at more than one code point."""
    return isinstance(node, Look) and node.is_ahead and not isinstance(node.item, Characters)


def _has_cut(node: Node) -> bool:
    return any(_is_cut(one) for one in _walk(node, into_looks=False))


def _columns(sets: list[Ranges], languages: list[Language]) -> tuple[dict[int, int], Flags]:
    """(the column of the code points from each key up to the next one, [set, column] whether it is inside)."""
    starts = {0}
    for ranges in sets:
        for low, high in ranges:
            starts.update((low, high + 1))
    for language in languages:
        starts.update(language.boundaries)
    starts.discard(0x110000)
    # A range may end at U+D7FF; what follows is surrogates, then U+E000.
    ordered = np.array(sorted({0xE000 if start == 0xD800 else start for start in starts}), np.int64)
    marks = np.zeros((len(sets) + len(languages), len(ordered)), np.int32)
    for i, ranges in enumerate(sets):
        for low, high in ranges:
            first, after = np.searchsorted(ordered, (low, high + 1))
            marks[i, first:after] = 1
    for i, language in enumerate(languages):
        index = np.searchsorted(np.array(language.boundaries), ordered, side="right") - 1
        marks[len(sets) + i] = np.array(language.columns)[index]
    number_of: dict[bytes, int] = {}
    kept: list[int] = []
    column_at: dict[int, int] = {}
    for k, signature in enumerate(np.ascontiguousarray(marks.T)):
        number = number_of.setdefault(signature.tobytes(), len(number_of))
        if number == len(kept):
            kept.append(k)
        column_at[int(ordered[k])] = number
    return column_at, np.ascontiguousarray(marks[: len(sets), kept].astype(np.uint8))


def _contexts(languages: list[Language], column_at: dict[int, int], num_columns: int) -> tuple[Ints, Flags]:
    """([context, column] -> context, [language, context] whether the text before is in it); context 0 is the start."""
    sample = {column: start for start, column in reversed(column_at.items())}
    numbers: dict[tuple[int, ...], int] = {(0,) * len(languages): 0}
    rows: list[list[int]] = []
    queue = list(numbers)
    for states in queue:
        row = []
        for column in range(num_columns):
            target = tuple(
                language.step(state, sample[column]) for language, state in zip(languages, states, strict=True)
            )
            if target not in numbers:
                if len(numbers) == MAX_CONTEXTS:
                    raise _exceeded("contexts of looks behind", "max_pattern_contexts", MAX_CONTEXTS)
                numbers[target] = len(numbers)
                queue.append(target)
            row.append(numbers[target])
        rows.append(row)
    flags = [[language.accepting[states[i]] for states in numbers] for i, language in enumerate(languages)]
    return np.array(rows, np.int32), np.array(flags, np.uint8).reshape(len(languages), len(numbers))


def _exceeded(what: str, name: str, limit: int) -> LimitExceededError:
    return LimitExceededError(f"a pattern needs more than {limit} {what}, the limit {name}", keyword="pattern")
