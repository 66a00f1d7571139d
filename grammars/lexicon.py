"""Lexicon: the byte automata of one vocabulary's scalars, each built once and shared by all grammars."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.errors import LimitExceededError
from specdec.grammars.free_depths import free_depths, load_kernels
from specdec.grammars.languages import EVERYTHING, Language, from_automaton
from specdec.grammars.lexemes import string_table
from specdec.grammars.numbers import NumberSet
from specdec.grammars.numerals import NumeralAutomaton, combine, load_nearest_ends, numeral_automaton
from specdec.grammars.scalar_automata import CombinedNumerals, LargestTexts, ScalarAutomata
from specdec.grammars.strings import StringTerm, bounded
from specdec.grammars.text_automaton import LONGEST_CODE_POINT, TextAutomaton, build_text_automaton, spelling_of

_Part = TypeVar("_Part")
_MAX_FAILED = 3
"""Alternatives that are found not to fit beside others before no more are tried: each try takes up to a second."""
_MAX_BYTES = 64 * 2**20
"""Of the automata of one kind that are kept for whoever needs them next; grammars keep those that they use."""
_Built = TypeVar("_Built")
_Key = TypeVar("_Key")


class Lexicon:
    """What the bytes that a vocabulary can spell make of numbers and strings.

    One is shared by all grammars and forgets. `recorded` gives one that notes what a compilation uses, and `with_used`
    one that has it at hand, so that it is not built again while a text is walked.
    """

    def __init__(self, spellable: frozenset[int]) -> None:
        # Compiled to machine code now, and not while a request waits.
        load_kernels()
        load_nearest_ends()
        self.spellable = spellable
        self.plain_table = string_table(spellable)
        """The automaton of all strings."""
        self.plain_steps: list[list[int]] = self.plain_table.tolist()
        self.texts = _spellable_texts(spellable)
        self.used: ScalarAutomata | None = None
        """The automata that one grammar uses; None for the lexicon that all share."""
        self._is_recording = False
        self._numerals: BoundedCache[tuple[NumberSet, bool], NumeralAutomaton] = BoundedCache(
            1024, max_bytes=_MAX_BYTES, num_bytes_of=lambda automaton: automaton.num_bytes
        )
        self._combined: BoundedCache[tuple[tuple[NumberSet, ...], bool], CombinedNumerals] = BoundedCache(
            256, max_bytes=_MAX_BYTES, num_bytes_of=lambda combined: combined[1].num_bytes
        )
        self._texts: BoundedCache[tuple[StringTerm, ...], TextAutomaton] = BoundedCache(
            1024, max_bytes=_MAX_BYTES, num_bytes_of=lambda automaton: automaton.num_bytes
        )
        self._largest: BoundedCache[tuple[StringTerm, ...], LargestTexts] = BoundedCache(
            1024, max_bytes=_MAX_BYTES, num_bytes_of=lambda largest: largest[1].num_bytes
        )

    def recorded(self) -> Lexicon:
        """The same lexicon; what it is asked for goes into its `used`."""
        own = copy.copy(self)
        own.used = ScalarAutomata()
        own._is_recording = True  # noqa: SLF001
        return own

    def with_used(self, used: ScalarAutomata) -> Lexicon:
        """The same lexicon with these automata at hand; those that others use as well are one object."""
        own = copy.copy(self)
        own.used = ScalarAutomata(
            numerals=_adopted(self._numerals, used.numerals),
            combined=_adopted(self._combined, used.combined),
            texts=_adopted(self._texts, used.texts),
            largest=_adopted(self._largest, used.largest),
        )
        return own

    def spells(self, text: bytes) -> bool:
        """Whether every byte of the text is spellable."""
        return self.spellable.issuperset(text)

    def spellable_term(self, term: StringTerm) -> StringTerm | None:
        """The members that the vocabulary can spell; None where there are none."""
        if self.texts.is_everything or term.language.is_everything:
            return term
        return bounded(term.language & self.texts, term.min_length, term.max_length)

    def numerals(self, numbers: NumberSet, *, canonical: bool = False) -> NumeralAutomaton:
        """The numerals of a set, one for each number if canonical."""
        return self._find(
            self._numerals,
            None if self.used is None else self.used.numerals,
            (numbers, canonical),
            lambda: numeral_automaton(numbers, self.spellable, canonical=canonical),
        )

    def largest_numerals(self, sets: Sequence[NumberSet], *, canonical: bool) -> CombinedNumerals:
        """As many of the sets as fit one automaton, the first at least; each of them alone is known to fit."""
        return self._find(
            self._combined,
            None if self.used is None else self.used.combined,
            (tuple(sets), canonical),
            lambda: _largest(
                tuple(sets), lambda some: combine([self.numerals(numbers, canonical=canonical) for numbers in some])
            ),
        )

    def largest_texts(self, terms: Sequence[StringTerm]) -> LargestTexts:
        """As many of the terms as fit one automaton, the first at least; each of them alone is known to fit."""
        return self._find(
            self._largest,
            None if self.used is None else self.used.largest,
            tuple(terms),
            lambda: _largest(tuple(terms), self._shared_texts),
        )

    def text_automaton(self, terms: tuple[StringTerm, ...]) -> TextAutomaton:
        """The bodies of any of the terms."""
        return self._find(
            self._texts, None if self.used is None else self.used.texts, terms, lambda: self._build_texts(terms)
        )

    def _shared_texts(self, terms: tuple[StringTerm, ...]) -> TextAutomaton:
        """As `text_automaton`, for a try that may be for nothing."""
        return self._find(self._texts, None, terms, lambda: self._build_texts(terms))

    def _build_texts(self, terms: tuple[StringTerm, ...]) -> TextAutomaton:
        built = build_text_automaton(terms, self.spellable)
        if not built.is_counted:
            built.free_depths = free_depths(built.table, self.plain_table, built.is_boundary)
            built.point_bytes = 1 if built.is_shortest_in_ascii() else LONGEST_CODE_POINT
        return built

    def _find(
        self,
        shared: BoundedCache[_Key, _Built],
        used: dict[_Key, _Built] | None,
        key: _Key,
        build: Callable[[], _Built],
    ) -> _Built:
        found = None if used is None else used.get(key)
        if found is None:
            found = shared.get(key)
            if found is None:
                found = build()
                shared.put(key, found)
            if used is not None and self._is_recording:
                used[key] = found
        return found


def _adopted(shared: BoundedCache[_Key, _Built], given: dict[_Key, _Built]) -> dict[_Key, _Built]:
    adopted: dict[_Key, _Built] = {}
    for key, automaton in given.items():
        known = shared.get(key)
        if known is None:
            shared.put(key, automaton)
        adopted[key] = automaton if known is None else known
    return adopted


def _largest(
    parts: tuple[_Part, ...], build: Callable[[tuple[_Part, ...]], _Built]
) -> tuple[tuple[_Part, ...], _Built]:
    try:
        return parts, build(parts)
    except LimitExceededError:
        # Fewer alternatives are a sound restriction, and each can be completed without the others.
        kept = parts[:1]
        built = build(kept)
        num_failed = 0
        for part in parts[1:]:
            try:
                built = build((*kept, part))
            except LimitExceededError:
                num_failed += 1
                if num_failed == _MAX_FAILED:
                    break
                continue
            kept = (*kept, part)
        return kept, built


def _spellable_texts(spellable: frozenset[int]) -> Language:
    """The strings whose spelling uses no byte but these; a whole block of code points goes with its first byte."""
    if spellable >= frozenset(range(0x20, 0x100)) - {0x7F, *range(0xC0, 0xC2), *range(0xF5, 0x100)}:
        return EVERYTHING
    missing: list[tuple[int, int]] = []
    pending: list[tuple[int, int]] = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    while pending:
        low, high = pending.pop()
        first, last = chr(low).encode(), chr(high).encode()
        if low < 0x80:
            if low == high:
                if not spellable.issuperset(spelling_of(low)):
                    missing.append((low, high))
            else:
                pending += [(point, point) for point in range(low, high + 1)]
            continue
        common = 0
        while common < len(first) and first[common] == last[common]:
            common += 1
        if not spellable.issuperset(first[:common]):
            missing.append((low, high))
        elif common < len(first) and not spellable.issuperset(
            set(range(0x80, 0xC0)) | set(range(first[common], last[common] + 1))
        ):
            block = 1 << 6 * (len(first) - 1 - common)
            begin = low
            while begin <= high:
                end = min(high, begin | (block - 1))
                pending.append((begin, end))
                begin = end + 1
    if not missing:
        return EVERYTHING
    columns = {0: 0}
    for low, high in sorted(missing):
        columns[low] = 1
        columns.setdefault(high + 1, 0)
    columns.pop(0x110000, None)
    return from_automaton(columns, np.array([[0, 1], [1, 1]], np.int32), np.array([1, 0], np.uint8))
