"""Regular languages over code points: exact sets of strings, closed under and, or, not.

Surrogates occur in no string. A boundary among them is moved to U+E000, so that they fall in the class of U+D7FF and
never make two equal sets differ.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.errors import LimitExceededError
from specdec.grammars.language_kernels import load_kernels
from specdec.grammars.language_rests import Rests

MAX_STATES = 20_000
"""States of one automaton, also while it is being built."""
MAX_TRANSITIONS = 4_000_000
"""States times columns of one automaton."""

MAX_CODE_POINT = 0x10FFFF
_FIRST_SURROGATE = 0xD800
_AFTER_SURROGATES = 0xE000

Table = NDArray[np.int32]
Flags = NDArray[np.uint8]


class Language:
    """A regular set of strings over Unicode scalar values, as a minimal complete automaton in canonical form.

    Equal sets are equal and hash alike. Class c is the code points boundaries[c] .. boundaries[c + 1] - 1; it reads
    column columns[c] of `rows`, which is `table` without its repetitions. State 0 is the start, the others are numbered
    breadth-first. Raises LimitExceededError wherever an automaton would need more than MAX_STATES states.
    """

    __slots__ = ("__dict__", "_hash", "accepting", "boundaries", "columns", "rows")

    def __init__(self, boundaries: tuple[int, ...], columns: tuple[int, ...], rows: Table, accepting: Flags) -> None:
        """For this module, whose functions keep the form canonical."""
        self.boundaries = boundaries
        self.columns = columns
        self.rows = rows
        self.accepting: tuple[bool, ...] = tuple(flag != 0 for flag in accepting.tolist())
        self._hash = hash((boundaries, columns, rows.tobytes(), self.accepting))

    def __reduce__(self) -> tuple[object, ...]:
        # A hash belongs to one process.
        flags = np.array(self.accepting, np.uint8)
        return Language, (self.boundaries, self.columns, self.rows, flags)

    @staticmethod
    def of(strings: Iterable[str], *, max_states: int = MAX_STATES) -> Language:
        """Exactly these strings; those that hold a surrogate are in no language."""
        words = sorted({text for text in strings if not any(_is_surrogate(ord(c)) for c in text)})
        points = sorted({ord(c) for text in words for c in text})
        nodes = _minimal_trie(words, max_states)
        # Column 0 is every code point that no word holds, column i + 1 the i-th that one does.
        rows = np.full((len(nodes) + 1, len(points) + 1), len(nodes), np.int32)
        final = np.zeros(len(nodes) + 1, np.uint8)
        column_of = {point: i + 1 for i, point in enumerate(points)}
        # The root was closed last, and the start is state 0.
        last = len(nodes) - 1
        for number, (is_word, edges) in enumerate(nodes):
            final[last - number] = is_word
            for point, target in edges:
                rows[last - number, column_of[point]] = last - target
        ranges = {0: 0}
        for point in points:
            ranges[point] = column_of[point]
            if point < MAX_CODE_POINT:
                ranges.setdefault(point + 1, 0)
        return from_automaton(ranges, rows, final, max_states=max_states)

    @staticmethod
    def of_ranges(ranges: Iterable[tuple[int, int]]) -> Language:
        """The strings of one code point that is in one of the ranges, ends included."""
        starts = {0: 0}
        end = 0
        for low, high in sorted(ranges):
            if high >= max(low, end):
                starts[max(low, end)] = 1
                end = high + 1
                if end <= MAX_CODE_POINT:
                    starts[end] = 0
        return from_automaton(starts, np.array([[2, 1], [2, 2], [2, 2]], np.int32), np.array([0, 1, 0], np.uint8))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Language):
            return NotImplemented
        return self is other or (
            self._hash == other._hash
            and self.boundaries == other.boundaries
            and self.columns == other.columns
            and self.accepting == other.accepting
            and np.array_equal(self.rows, other.rows)
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"<Language of {self.num_states} states>"

    def __and__(self, other: Language) -> Language:
        if self is NOTHING or other is EVERYTHING or self is other:
            return self
        if other is NOTHING or self is EVERYTHING:
            return other
        return _intersection(self, other)

    def __or__(self, other: Language) -> Language:
        return ~(~self & ~other)

    def __sub__(self, other: Language) -> Language:
        return self & ~other

    def __invert__(self) -> Language:
        return self._complement

    def __contains__(self, text: str) -> bool:
        state = 0
        for character in text:
            if _is_surrogate(ord(character)):
                return False
            state = self.step(state, ord(character))
        return self.accepting[state]

    def __le__(self, other: Language) -> bool:
        """Whether it is a subset."""
        return (self - other).is_empty

    @functools.cached_property
    def _complement(self) -> Language:
        if self.num_states == 1:
            return NOTHING if self.accepting[0] else EVERYTHING
        flags = np.array([not flag for flag in self.accepting], np.uint8)
        return Language(self.boundaries, self.columns, self.rows, flags)

    @functools.cached_property
    def table(self) -> tuple[tuple[int, ...], ...]:
        """[state][class] -> state."""
        return tuple(tuple(row) for row in self.rows[:, list(self.columns)].tolist())

    @property
    def num_states(self) -> int:
        return len(self.accepting)

    @property
    def is_empty(self) -> bool:
        return self.num_states == 1 and not self.accepting[0]

    @property
    def is_everything(self) -> bool:
        return self.num_states == 1 and self.accepting[0]

    def step(self, state: int, code_point: int) -> int:
        """The state after one more code point."""
        return int(self.rows[state, self.columns[bisect.bisect_right(self.boundaries, code_point) - 1]])

    @functools.cached_property
    def _rests(self) -> Rests:
        widths = np.zeros(self.rows.shape[1], np.int64)
        for low, high, column in self._ranges():
            widths[column] += high - low + 1
        return Rests(self.rows, self.accepting, widths)

    @property
    def num_words(self) -> int | None:
        """How many words it has, None for infinitely many; exact up to MAX_COUNT, where it stays."""
        return self._rests.num_words[0]

    def num_words_from(self, state: int) -> int | None:
        """How many words lead from the state to acceptance, counted as num_words is."""
        return self._rests.num_words[state]

    def is_live(self, state: int) -> bool:
        """Whether an accepting state can be reached."""
        return self._rests.shortest[state] is not None

    def min_rest(self, state: int) -> int:
        """The fewest code points to acceptance from a live state."""
        length = self._rests.shortest[state]
        assert length is not None, f"state {state} is dead"
        return length

    def longest_of_shortest_rests(self) -> int:
        """The most code points that it takes from any live state to be accepted."""
        return max((length for length in self._rests.shortest if length is not None), default=0)

    def max_rest(self, state: int) -> int | None:
        """The most code points to acceptance from a live state, None where there is no bound."""
        assert self.is_live(state), f"state {state} is dead"
        return self._rests.longest[state]

    @property
    def has_all_lengths(self) -> bool:
        """Whether from every live state every length from min_rest to max_rest occurs."""
        return self._rests.has_all_lengths

    def words(self, limit: int) -> tuple[str, ...] | None:
        """All words in code point order, or None where there are more than `limit`."""
        count = self.num_words
        return None if count is None or count > limit else tuple(self._walk_words())

    def shortest(self) -> str | None:
        """The first in code point order of its shortest words, None where there is no word."""
        if self.is_empty:
            return None
        state, text = 0, ""
        for left in range(self.min_rest(0) - 1, -1, -1):
            for low, _, column in self._ranges():
                target = int(self.rows[state, column])
                if self._rests.shortest[target] == left:
                    state, text = target, text + chr(low)
                    break
        return text

    def _ranges(self) -> Iterator[tuple[int, int, int]]:
        """(first, last, column) of every class, without the surrogates."""
        for low, after, column in zip(
            self.boundaries, (*self.boundaries[1:], MAX_CODE_POINT + 1), self.columns, strict=True
        ):
            if low < _FIRST_SURROGATE and after >= _AFTER_SURROGATES:
                yield low, _FIRST_SURROGATE - 1, column
                if after > _AFTER_SURROGATES:
                    yield _AFTER_SURROGATES, after - 1, column
            else:
                yield low, after - 1, column

    def _walk_words(self) -> Iterator[str]:
        if self.accepting[0]:
            yield ""
        prefix: list[str] = []
        open_edges = [self._live_edges(0)]
        while open_edges:
            edge = next(open_edges[-1], None)
            if edge is None:
                open_edges.pop()
                if prefix:
                    prefix.pop()
                continue
            character, target = edge
            prefix.append(character)
            if self.accepting[target]:
                yield "".join(prefix)
            open_edges.append(self._live_edges(target))

    def _live_edges(self, state: int) -> Iterator[tuple[str, int]]:
        for low, high, column in self._ranges():
            target = int(self.rows[state, column])
            if self._rests.shortest[target] is not None:
                for point in range(low, high + 1):
                    yield chr(point), target


def from_automaton(ranges: dict[int, int], rows: Table, final: Flags, *, max_states: int = MAX_STATES) -> Language:
    """The language of a complete automaton that starts in state 0, in canonical form.

    `ranges` gives the column that the code points from each key up to the next one read; it has the key 0, and none
    beyond MAX_CODE_POINT.
    """
    assert max(ranges) <= MAX_CODE_POINT
    if len(rows) > max_states:
        raise states_exceeded(max_states)
    starts: list[int] = []
    columns: list[int] = []
    for start in sorted(ranges):
        moved = _AFTER_SURROGATES if _is_surrogate(start) else start
        if starts and starts[-1] == moved:
            columns[-1] = ranges[start]
        else:
            starts.append(moved)
            columns.append(ranges[start])
    number_of: dict[int, int] = {}
    columns = [number_of.setdefault(column, len(number_of)) for column in columns]
    if list(number_of) != list(range(rows.shape[1])):
        rows = np.ascontiguousarray(rows[:, list(number_of)])
    kernels = load_kernels()
    rows, final, merged = kernels.canonical(rows, final, kernels.equivalent_states(rows, final))
    return _interned(starts, [int(merged[column]) for column in columns], rows, final)


def states_exceeded(max_states: int) -> LimitExceededError:
    return LimitExceededError(
        f"a set of strings needs an automaton of more than {max_states} states, the limit max_language_states; "
        "a shorter or less nested pattern, or fewer and shorter strings, need fewer"
    )


def max_states_for(num_columns: int, max_states: int = MAX_STATES) -> int:
    """How many states an automaton of so many columns may have."""
    return min(max_states, MAX_TRANSITIONS // max(1, num_columns))


def _interned(starts: Sequence[int], columns: Sequence[int], rows: Table, final: Flags) -> Language:
    if len(rows) == 1:
        return EVERYTHING if final[0] else NOTHING
    kept = [i for i, column in enumerate(columns) if i == 0 or columns[i - 1] != column]
    return Language(tuple(starts[i] for i in kept), tuple(columns[i] for i in kept), rows, final)


def _intersection(a: Language, b: Language) -> Language:
    starts = sorted({*a.boundaries, *b.boundaries})
    pair_of: dict[tuple[int, int], int] = {}
    ranges: dict[int, int] = {}
    i = j = -1
    for start in starts:
        if i + 1 < len(a.boundaries) and a.boundaries[i + 1] == start:
            i += 1
        if j + 1 < len(b.boundaries) and b.boundaries[j + 1] == start:
            j += 1
        ranges[start] = pair_of.setdefault((a.columns[i], b.columns[j]), len(pair_of))
    pairs = np.ascontiguousarray(np.array(list(pair_of), np.int32).T)
    limit = max_states_for(len(pair_of))
    rows, final = load_kernels().intersect(
        a.rows, np.array(a.accepting, np.uint8), _dead_state(a), b.rows, np.array(b.accepting, np.uint8),
        _dead_state(b), pairs, limit,
    )  # fmt: skip
    if not len(rows):
        raise states_exceeded(limit)
    return from_automaton(ranges, rows, final)


def _dead_state(language: Language) -> int:
    """The state that accepts nothing, -1 where there is none; a minimal automaton has at most one."""
    loops = np.flatnonzero((language.rows == np.arange(language.num_states)[:, None]).all(axis=1)).tolist()
    return next((state for state in loops if not language.accepting[state]), -1)


def _minimal_trie(words: list[str], max_states: int) -> list[tuple[bool, tuple[tuple[int, int], ...]]]:
    """(whether a word ends here, the edges) of the minimal acyclic automaton of sorted words, its root last."""
    numbers: dict[tuple[bool, tuple[tuple[int, int], ...]], int] = {}
    path: list[list[tuple[int, int]]] = [[]]
    ends = [False]
    previous = ""

    def close(depth: int) -> None:
        while len(path) > depth:
            number = numbers.setdefault((ends.pop(), tuple(path.pop())), len(numbers))
            if number >= max_states:
                raise states_exceeded(max_states)
            if path:
                path[-1].append((ord(previous[len(path) - 1]), number))

    for word in words:
        common = 0
        while common < min(len(word), len(previous)) and word[common] == previous[common]:
            common += 1
        close(common + 1)
        path.extend([] for _ in range(len(word) - common))
        ends.extend([False] * (len(word) - common))
        ends[-1] = True
        previous = word
    close(0)
    return list(numbers)


def _is_surrogate(code_point: int) -> bool:
    return _FIRST_SURROGATE <= code_point < _AFTER_SURROGATES


NOTHING = Language((0,), (0,), np.zeros((1, 1), np.int32), np.zeros(1, np.uint8))
EVERYTHING = Language((0,), (0,), np.zeros((1, 1), np.int32), np.ones(1, np.uint8))
