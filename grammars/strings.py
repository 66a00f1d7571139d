"""Exact sets of strings: languages with bounds on their length, and single strings; closed under and, or, not."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from specdec.grammars.languages import EVERYTHING, Language, from_automaton

MAX_UNROLLED_LENGTH = 256
"""Up to here a length bound on a language is multiplied into its automaton; beyond, it is counted beside it."""


class StringTerm(msgspec.Struct, frozen=True, cache_hash=True):
    """The strings of a language that have at least min_length and at most max_length code points; None is no bound.

    A bound stands beside a language other than EVERYTHING only where every length between the shortest and the longest
    rest occurs from each of its states, so that counting decides what can be completed.
    """

    language: Language = EVERYTHING
    min_length: int = 0
    max_length: int | None = None

    def contains(self, text: str) -> bool:
        return (
            self.min_length <= len(text)
            and (self.max_length is None or len(text) <= self.max_length)
            and (self.language.is_everything or text in self.language)
        )

    def intersect(self, other: StringTerm) -> StringTerm | None:
        low = max(self.min_length, other.min_length)
        high = least(self.max_length, other.max_length)
        return bounded(self.language & other.language, low, high)

    def is_unbounded(self) -> bool:
        return self.min_length == 0 and self.max_length is None


def bounded(language: Language, min_length: int, max_length: int | None) -> StringTerm | None:
    """The term of these strings, None where there are none. LimitExceededError for a product that is too large."""
    if language.is_empty or (max_length is not None and max_length < min_length):
        return None
    if language.is_everything:
        return StringTerm(language, min_length, max_length)
    shortest, longest = language.min_rest(0), language.max_rest(0)
    if min_length <= shortest:
        min_length = 0
    if longest is not None and max_length is not None and max_length >= longest:
        max_length = None
    if (longest is not None and longest < min_length) or (max_length is not None and max_length < shortest):
        return None
    if min_length == 0 and max_length is None:
        return StringTerm(language)
    if language.has_all_lengths and max(min_length, max_length or 0) > MAX_UNROLLED_LENGTH:
        return StringTerm(language, min_length, max_length)
    unrolled = language & _lengths(min_length, max_length)
    return None if unrolled.is_empty else StringTerm(unrolled)


@functools.lru_cache(maxsize=256)
def _lengths(min_length: int, max_length: int | None) -> Language:
    """All strings of these lengths, as an automaton that counts."""
    last = min_length if max_length is None else max_length + 1
    rows = np.minimum(np.arange(1, last + 2, dtype=np.int32), last)[:, None]
    final = np.zeros(last + 1, np.uint8)
    final[min_length : None if max_length is None else max_length + 1] = 1
    return from_automaton({0: 0}, rows, final)


class StringSet(msgspec.Struct, frozen=True, cache_hash=True):
    """The union of its terms and of single strings."""

    terms: tuple[StringTerm, ...] = ()
    literals: tuple[str, ...] = ()

    def intersect(self, other: StringSet) -> StringSet:
        if self == ALL_STRINGS:
            return other
        if other == ALL_STRINGS:
            return self
        both = [mine.intersect(its) for mine in self.terms for its in other.terms]
        mine, its = set(self.literals), set(other.literals)
        literals = [text for text in self.literals if text in its or any(term.contains(text) for term in other.terms)]
        literals += [
            text for text in other.literals if text not in mine and any(term.contains(text) for term in self.terms)
        ]
        return StringSet(_merged([term for term in both if term is not None]), tuple(literals))

    def complement(self) -> StringSet:
        result = ALL_STRINGS
        for term in self.terms:
            parts = [bounded(~term.language, 0, None)]
            if term.min_length:
                parts.append(bounded(EVERYTHING, 0, term.min_length - 1))
            if term.max_length is not None:
                parts.append(bounded(EVERYTHING, term.max_length + 1, None))
            result = result.intersect(StringSet(_merged([part for part in parts if part is not None])))
        if self.literals:
            result = result.intersect(StringSet((StringTerm(~Language.of(self.literals)),)))
        return result

    def language(self) -> Language:
        """All of them as one language."""
        union = Language.of(self.literals)
        for term in self.terms:
            counted = (
                term.language if term.is_unbounded() else term.language & _lengths(term.min_length, term.max_length)
            )
            union |= counted
        return union

    def contains(self, text: str) -> bool:
        return text in self.literals or any(term.contains(text) for term in self.terms)

    @staticmethod
    def union(sets: Sequence[StringSet]) -> StringSet:
        terms = [term for one in sets for term in one.terms]
        return StringSet(_merged(terms), tuple(dict.fromkeys(text for one in sets for text in one.literals)))

    def is_empty(self) -> bool:
        return not (self.terms or self.literals)


ALL_STRINGS = StringSet((StringTerm(),))


def least(a: int | None, b: int | None) -> int | None:
    """The tighter of two upper bounds."""
    return b if a is None else a if b is None else min(a, b)


def _merged(terms: Iterable[StringTerm]) -> tuple[StringTerm, ...]:
    """The same strings, with plain ranges of lengths as disjoint terms in order."""
    others = [term for term in terms if not term.language.is_everything]
    ranges = sorted((term for term in terms if term.language.is_everything), key=lambda term: term.min_length)
    merged: list[StringTerm] = []
    for current in ranges:
        last = merged[-1] if merged else None
        if last is None or (last.max_length is not None and current.min_length > last.max_length + 1):
            merged.append(current)
        elif last.max_length is not None and (current.max_length is None or current.max_length > last.max_length):
            merged[-1] = StringTerm(EVERYTHING, last.min_length, current.max_length)
    if ALL_STRINGS.terms[0] in merged:
        return ALL_STRINGS.terms
    return (*merged, *dict.fromkeys(others))
