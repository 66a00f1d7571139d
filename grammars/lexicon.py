"""Lexicon: the byte automata of one vocabulary's scalars, each built once and shared by all grammars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.errors import LimitExceededError
from specdec.grammars.free_depths import free_depths, load_kernels
from specdec.grammars.languages import EVERYTHING, Language, from_automaton
from specdec.grammars.lexemes import string_table
from specdec.grammars.numbers import NumberSet
from specdec.grammars.numerals import CombinedAutomaton, NumeralAutomaton, combine, numeral_automaton
from specdec.grammars.strings import StringTerm, bounded
from specdec.grammars.text_automaton import TextAutomaton, build_text_automaton, spelling_of

_Part = TypeVar("_Part")
_MAX_FAILED = 3
"""Alternatives that are found not to fit beside others before no more are tried: each try takes up to a second."""
_Built = TypeVar("_Built")


class Lexicon:
    """What the bytes that a vocabulary can spell make of numbers and strings."""

    def __init__(self, spellable: frozenset[int]) -> None:
        # Compiled to machine code now, and not while a request waits.
        load_kernels()
        self.spellable = spellable
        self.plain_table = string_table(spellable)
        """The automaton of all strings."""
        self.plain_steps: list[list[int]] = self.plain_table.tolist()
        self.texts = _spellable_texts(spellable)
        self._numerals: BoundedCache[tuple[NumberSet, bool], NumeralAutomaton] = BoundedCache(1024)
        self._combined: BoundedCache[tuple[tuple[NumberSet, ...], bool], CombinedAutomaton] = BoundedCache(256)
        self._automata: BoundedCache[tuple[StringTerm, ...], TextAutomaton] = BoundedCache(64)

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
        found = self._numerals.get((numbers, canonical))
        if found is None:
            found = numeral_automaton(numbers, self.spellable, canonical=canonical)
            self._numerals.put((numbers, canonical), found)
        return found

    def largest_numerals(
        self, sets: Sequence[NumberSet], *, canonical: bool
    ) -> tuple[tuple[NumberSet, ...], CombinedAutomaton]:
        """As many of the sets as fit one automaton, the first at least; each of them alone is known to fit."""
        return _largest(tuple(sets), lambda some: self._combined_numerals(some, canonical))

    def largest_texts(self, terms: Sequence[StringTerm]) -> tuple[tuple[StringTerm, ...], TextAutomaton]:
        """As many of the terms as fit one automaton, the first at least; each of them alone is known to fit."""
        return _largest(tuple(terms), self.text_automaton)

    def _combined_numerals(self, sets: tuple[NumberSet, ...], canonical: bool) -> CombinedAutomaton:
        found = self._combined.get((sets, canonical))
        if found is None:
            found = combine([self.numerals(numbers, canonical=canonical) for numbers in sets])
            self._combined.put((sets, canonical), found)
        return found

    def text_automaton(self, terms: tuple[StringTerm, ...]) -> TextAutomaton:
        """The bodies of any of the terms."""
        found = self._automata.get(terms)
        if found is None:
            found = build_text_automaton(terms, self.spellable)
            if not found.is_counted:
                found.free_depths = free_depths(found.table, self.plain_table, found.is_boundary)
            self._automata.put(terms, found)
        return found


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
