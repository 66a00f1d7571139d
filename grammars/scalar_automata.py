"""ScalarAutomata: the automata of numbers and strings that one grammar uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from specdec.grammars.numbers import NumberSet
from specdec.grammars.numerals import CombinedAutomaton, NumeralAutomaton
from specdec.grammars.strings import StringTerm
from specdec.grammars.text_automaton import TextAutomaton

CombinedNumerals: TypeAlias = tuple[tuple[NumberSet, ...], CombinedAutomaton]
LargestTexts: TypeAlias = tuple[tuple[StringTerm, ...], TextAutomaton]


@dataclass(frozen=True, slots=True)
class ScalarAutomata:
    """By what they are automata of; how each is found, lexicon.py says."""

    numerals: dict[tuple[NumberSet, bool], NumeralAutomaton] = field(default_factory=dict)
    combined: dict[tuple[tuple[NumberSet, ...], bool], CombinedNumerals] = field(default_factory=dict)
    texts: dict[tuple[StringTerm, ...], TextAutomaton] = field(default_factory=dict)
    largest: dict[tuple[StringTerm, ...], LargestTexts] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Memory, roughly,."""
        numerals = [*self.numerals.values(), *(one for _, one in self.combined.values())]
        texts = {id(one): one for one in (*self.texts.values(), *(one for _, one in self.largest.values()))}
        return sum(one.num_bytes for one in numerals) + sum(one.num_bytes for one in texts.values())
