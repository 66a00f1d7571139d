"""TextAutomaton: string bodies as JSON spells them, from languages over code points to one table over bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.byte_rows import ByteRows
from specdec.grammars.errors import LimitExceededError
from specdec.grammars.languages import Language
from specdec.grammars.lexemes import CLOSED
from specdec.grammars.strings import StringTerm
from specdec.grammars.walk import DEAD, Table

MAX_TEXT_STATES = 16_000
"""Byte states of one automaton of strings: 8 MiB of table."""
MAX_SPANS = 4_000_000
"""Spans of lengths of all states of one automaton of strings, where a state has several of a term: 32 MiB."""

Spans = tuple[tuple[int, int], ...]
"""Of rests, the fewest and the most code points; every length between them occurs."""

LONGEST_CODE_POINT = 6
"""Bytes of the longest spelling of a code point, and so of the longest rest of one."""

_UNBOUNDED = 2**30
_SHORT_ESCAPES = {0x22: b'"', 0x5C: b"\\", 0x08: b"b", 0x0C: b"f", 0x0A: b"n", 0x0D: b"r", 0x09: b"t"}


class TextAutomaton:
    """The byte automaton of string bodies in any of several terms, as JSON spells them.

    `table` int16 [states, 256]; a closing quote leads to CLOSED from the states in which some term accepts. State
    `start` is before the first byte; `is_boundary` marks the states between code points.

    A span i is one of the term i % len(terms). That term can still accept from state s after `length` code points iff
    one of its spans has length + shortest[i, s] <= highs[i] and length + longest[i, s] >= lows[i]. Between code points
    only the first one of a term, i < len(terms), can hold; inside a code point there may be one for each that it can
    become.
    """

    def __init__(
        self,
        table: Table,
        start: int,
        is_boundary: NDArray[np.uint8],
        accepts: Sequence[frozenset[int]],
        shortest: NDArray[np.int32],
        longest: NDArray[np.int32],
        terms: Sequence[StringTerm],
        free_depths: NDArray[np.int32] | None = None,
        point_bytes: int = LONGEST_CODE_POINT,
    ) -> None:
        self._terms = tuple(terms)
        self.table = table
        self.start = start
        self.is_boundary = is_boundary
        self.accepts = tuple(accepts)
        self.shortest = shortest
        self.longest = longest
        num_layers = len(shortest) // len(terms)
        self.lows = np.array([term.min_length for term in terms] * num_layers, np.int32)
        self.highs = np.array(
            [_UNBOUNDED if term.max_length is None else min(term.max_length, _UNBOUNDED) for term in terms]
            * num_layers,
            np.int32,
        )
        self.num_terms = len(terms)
        self.free_depths = free_depths
        """Of each state between code points, for how many bytes it takes what any body has (free_depths.py); set by
        the lexicon where no lengths are counted."""
        self.point_bytes = point_bytes
        """The most bytes of a code point on a shortest way to a member's end; set by the lexicon where no lengths are
        counted."""
        self.longest_rest = int(shortest[longest >= 0].max(initial=0))
        """The most code points, from any state, of a term's shortest rest."""
        self.is_counted = any(not term.is_unbounded() for term in terms)
        counts = [bound for term in terms for bound in (term.min_length, (term.max_length or 0) + 1)]
        self.saturation = max(counts) if self.is_counted else 0
        cells = table.reshape(-1).data
        self.steps: list[Sequence[int]] = [cells[row * 256 : row * 256 + 256] for row in range(len(table))]
        self._lows: list[int] = self.lows.tolist()
        self._highs: list[int] = self.highs.tolist()
        self._shortest: list[list[int]] = shortest.tolist()
        self._longest: list[list[int]] = longest.tolist()
        self._boundaries: list[int] = is_boundary.tolist()

    def __reduce__(self) -> tuple[object, ...]:
        parts = (self.table, self.start, self.is_boundary, self.accepts, self.shortest, self.longest)
        return TextAutomaton, (*parts, self._terms, self.free_depths, self.point_bytes)

    @property
    def num_bytes(self) -> int:
        """Memory, roughly."""
        return self.table.nbytes + 12 * (self.shortest.nbytes + self.longest.nbytes) + 300 * len(self.table)

    def is_shortest_in_ascii(self) -> bool:
        """Whether a byte of ASCII goes on the shortest way to a member from between any two code points, quotes aside.

        Only where no lengths are counted.
        """
        is_between = self.is_boundary == 1
        for shortest, longest in zip(self.shortest[: self.num_terms], self.longest[: self.num_terms], strict=True):
            states = np.flatnonzero(is_between & (longest >= 0) & (shortest > 0))
            targets = self.table[states, 0x20:0x7F]
            is_on_way = (targets > CLOSED) & is_between[targets] & (longest[targets] >= 0)
            if not (is_on_way & (shortest[targets] == shortest[states, None] - 1)).any(axis=1).all():
                return False
        return True

    def longest_tail(self, length: int) -> int:
        """No fewer bytes than tails.Tails takes to a member's closing quote, from any state at the length or above."""
        longest = self.longest_rest
        if self.is_counted:
            longest = max(longest, int(self.lows.max()) - length)
        return LONGEST_CODE_POINT + self.point_bytes * longest + 1

    def scan(self, state: int, length: int, data: bytes, begin: int) -> tuple[int, int, int, int]:
        """(state before, state, code points begun, end) after the bytes up to the closing quote or the data's end."""
        end, before = begin, state
        while end < len(data):
            before = state
            state = self.steps[state][data[end]]
            if state == DEAD:
                return before, DEAD, length, end
            end += 1
            if state == CLOSED:
                return before, CLOSED, length, end
            if self._boundaries[before]:
                length += 1
        return before, state, min(length, self.saturation) if self.is_counted else 0, end

    def accepted(self, state: int, length: int) -> frozenset[int]:
        """The terms of which a body that ends here is a member."""
        members = self.accepts[state]
        if not self.is_counted:
            return members
        return frozenset(term for term in members if self._lows[term] <= length <= self._highs[term])

    def is_live(self, state: int, length: int) -> bool:
        """Whether some term can still accept."""
        return not self.is_counted or any(self._holds(span, state, length) for span in range(len(self._lows)))

    def is_live_for(self, term: int, state: int, length: int) -> bool:
        """Whether the term can still accept."""
        return any(self._holds(span, state, length) for span in range(term, len(self._lows), self.num_terms))

    def _holds(self, span: int, state: int, length: int) -> bool:
        return (
            length + self._shortest[span][state] <= self._highs[span]
            and length + self._longest[span][state] >= self._lows[span]
        )


def build_text_automaton(terms: tuple[StringTerm, ...], spellable: frozenset[int]) -> TextAutomaton:
    """The automaton of the bodies of any of the terms that use no byte but these; LimitExceededError if too large."""
    return _Builder(terms, spellable).build()


def spelling_of(point: int) -> bytes:
    if point in _SHORT_ESCAPES:
        return b"\\" + _SHORT_ESCAPES[point]
    return b"\\u%04x" % point if point < 0x20 else chr(point).encode()


class _Builder:
    """From the terms' languages to one byte automaton: their product, each state opened into UTF-8 and escapes."""

    def __init__(self, terms: tuple[StringTerm, ...], spellable: frozenset[int]) -> None:
        self._terms = terms
        # Rows 0 and 1 are taken: 1 is CLOSED. A product state is a row of its own.
        self._rows = ByteRows(spellable, spelling_of, num_reserved=2)
        self._states: dict[tuple[int, ...], int] = {}
        self._pending: list[tuple[int, ...]] = []

    def build(self) -> TextAutomaton:
        languages = [term.language for term in self._terms]
        boundaries = sorted({start for language in languages for start in language.boundaries})
        columns = [self._columns(language, boundaries) for language in languages]
        start = self._state(tuple(0 for _ in languages))
        for state in self._pending:
            ranges: dict[int, list[tuple[int, int]]] = {}
            for index, low in enumerate(boundaries):
                high = (boundaries[index + 1] if index + 1 < len(boundaries) else 0x110000) - 1
                target = tuple(
                    int(language.rows[at, columns[i][index]])
                    for i, (language, at) in enumerate(zip(languages, state, strict=True))
                )
                if any(language.is_live(at) for language, at in zip(languages, target, strict=True)):
                    ranges.setdefault(self._state(target), []).append((low, high))
            self._rows.open(self._states[state], ranges)
            if len(self._rows.rows) > MAX_TEXT_STATES:
                raise LimitExceededError(
                    f"the strings of one place need more than {MAX_TEXT_STATES} byte states (max_text_states)"
                )
        return self._finish(start, languages)

    @staticmethod
    def _columns(language: Language, boundaries: list[int]) -> list[int]:
        found, index = [], 0
        for low in boundaries:
            while index + 1 < len(language.boundaries) and language.boundaries[index + 1] <= low:
                index += 1
            found.append(language.columns[index])
        return found

    def _state(self, state: tuple[int, ...]) -> int:
        row = self._states.get(state)
        if row is None:
            row = self._states[state] = self._rows.add()
            self._pending.append(state)
        return row

    def _finish(self, start: int, languages: list[Language]) -> TextAutomaton:
        num_rows = len(self._rows.rows)
        table = np.full((num_rows, 256), DEAD, np.int16)
        is_boundary = np.zeros(num_rows, np.uint8)
        accepts: list[frozenset[int]] = [frozenset()] * num_rows
        spans: list[list[Spans]] = [[()] * num_rows for _ in languages]
        for state, row in self._states.items():
            is_boundary[row] = 1
            accepts[row] = frozenset(
                i for i, (language, at) in enumerate(zip(languages, state, strict=True)) if language.accepting[at]
            )
            for i, (language, at) in enumerate(zip(languages, state, strict=True)):
                if language.is_live(at):
                    rest = language.max_rest(at)
                    spans[i][row] = ((language.min_rest(at), _UNBOUNDED if rest is None else rest),)
        for row, leaves in self._rows.leaves.items():
            for one in spans:
                one[row] = _widest({span for leaf in leaves for span in one[leaf]})
        shortest, longest = self._layers(spans)
        for row, targets in enumerate(self._rows.rows):
            for byte, target in targets.items():
                table[row, byte] = target
            if accepts[row]:
                table[row, ord('"')] = CLOSED
        return TextAutomaton(table, start, is_boundary, accepts, shortest, longest, self._terms)

    def _layers(self, spans: list[list[Spans]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(shortest, longest) of a TextAutomaton, from [term][row] -> spans."""
        num_terms, num_rows = len(spans), len(self._rows.rows)
        num_layers = max([1, *(len(some) for one in spans for some in one)])
        if num_layers > 1 and num_layers * num_terms * num_rows > MAX_SPANS:
            raise LimitExceededError(
                f"the strings of one place need more than {MAX_SPANS} spans of lengths (max_text_spans)"
            )
        shortest = np.full((num_layers * num_terms, num_rows), _UNBOUNDED, np.int32)
        longest = np.full((num_layers * num_terms, num_rows), -1, np.int32)
        for term, one in enumerate(spans):
            for row, some in enumerate(one):
                for layer, span in enumerate(some):
                    shortest[layer * num_terms + term, row], longest[layer * num_terms + term, row] = span
        return shortest, longest


def _widest(spans: Iterable[tuple[int, int]]) -> Spans:
    """Those that lie in no other."""
    kept: list[tuple[int, int]] = []
    for low, high in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not kept or high > kept[-1][1]:
            kept.append((low, high))
    return tuple(kept)
