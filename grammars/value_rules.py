"""ValueRules and KeyClasses: what several rules together make of a value's, and of a key's, first bytes and last."""

from __future__ import annotations

from collections.abc import Iterable

from specdec.grammars.any_order import KeyRule
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import NO_CHILD, ArrayRun, Goals, KeyClass, ObjectRun
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.numerals import NumeralAutomaton
from specdec.grammars.rules import Rule
from specdec.grammars.stacks import Stack
from specdec.grammars.strings import StringTerm
from specdec.grammars.text_automaton import TextAutomaton
from specdec.grammars.texts import TextSet
from specdec.grammars.walk import DEAD

UNBOUNDED = 2**200
"""More code points than any text has, and any schema asks for."""


class ValueRules:
    """The rules of several goals, side by side, as a value position needs them."""

    def __init__(self, goals: Goals, rules: list[Rule], lexicon: Lexicon, *, canonical: bool = False) -> None:
        self._canonical = canonical
        members = [(goal, rules[goal]) for goal in goals]
        self.literals = TextSet((text, goal) for goal, rule in members for text in rule.literals)
        self.strings = TextSet((text, goal) for goal, rule in members for text in rule.strings)
        self.numbers: NumeralAutomaton | None = None
        self._number_goals: list[frozenset[int]] = []
        """Of each state of the automaton, the goals met if the number ends there."""
        self._find_numbers(members, lexicon)
        self.literal_bytes = frozenset(text[0] for text in self.literals.texts if text) | frozenset(
            b"-0123456789" if self.numbers is not None else b""
        )
        """Those that null, true, false or a number may begin with."""
        goals_of_term: dict[StringTerm, set[int]] = {}
        for goal, rule in members:
            for term in rule.terms:
                goals_of_term.setdefault(term, set()).add(goal)
        self.terms = [(term, frozenset(met)) for term, met in goals_of_term.items()]
        self.text_automaton: TextAutomaton | None = None
        """Of the terms, unless all of them are mere ranges of lengths."""
        self.lengths: list[tuple[int, int, frozenset[int]]] = []
        if any(not term.language.is_everything for term, _ in self.terms):
            kept, self.text_automaton = lexicon.largest_texts([term for term, _ in self.terms])
            self.terms = [(term, frozenset(goals_of_term[term])) for term in kept]
        else:
            self.lengths = [
                (term.min_length, UNBOUNDED if term.max_length is None else term.max_length, met)
                for term, met in self.terms
            ]
        bounds = [bound for low, high, _ in self.lengths for bound in (low, high + 1) if bound < UNBOUNDED]
        self.length_saturation = max(bounds, default=0)
        self.ordered_objects = _object_runs((goal, rule.objects) for goal, rule in members)
        self.objects = _object_runs((goal, rule.any_order or rule.objects) for goal, rule in members)
        self.arrays = tuple(
            ArrayRun(goal, shape, NO_CHILD, shape.none_counted) for goal, rule in members for shape in rule.arrays
        )
        self.has_strings = bool(self.strings or self.terms)
        self.opening_bytes = b"".join((b'"' * self.has_strings, b"[" * bool(self.arrays), b"{" * bool(self.objects)))
        """Those that a string, an array or an object may begin with."""

    def _find_numbers(self, members: list[tuple[int, Rule]], lexicon: Lexicon) -> None:
        sets = list(dict.fromkeys(rule.numbers for _, rule in members if rule.numbers is not None))
        if not sets:
            return
        met = [frozenset(goal for goal, rule in members if rule.numbers == numbers) for numbers in sets]
        if len(sets) == 1:
            self.numbers = lexicon.numerals(sets[0], canonical=self._canonical)
            self._number_goals = [met[0] if accepting else frozenset() for accepting in self.numbers.accepting.tolist()]
            return
        kept, combined = lexicon.largest_numerals(sets, canonical=self._canonical)
        met = [met[sets.index(numbers)] for numbers in kept]
        self.numbers = combined
        self._number_goals = [frozenset[int]().union(*(met[i] for i in accepts)) for accepts in combined.accepts]

    def met_by_literal(self, text: bytes | None, number: int) -> frozenset[int]:
        """The goals met if null, true, false or the number ends here."""
        met = self.literals.goals(text)
        return met if number == DEAD or self.numbers is None else met | self._number_goals[number]

    def met_by_length(self, length: int) -> frozenset[int]:
        """The goals met by any string of so many code points, where only lengths matter."""
        if len(self.lengths) == 1:
            low, high, met = self.lengths[0]
            return met if low <= length <= high else frozenset()
        return frozenset[int]().union(*(met for low, high, met in self.lengths if low <= length <= high))

    def fits_length(self, length: int) -> bool:
        """Whether some string may have so many code points or more."""
        return any(length <= high for _, high, _ in self.lengths)

    def met_by_body(self, state: int, length: int) -> frozenset[int]:
        """The goals met if the string ends in this state of the text automaton."""
        assert self.text_automaton is not None, "asked where terms have an automaton"
        accepted = self.text_automaton.accepted(state, length)
        return frozenset[int]().union(*(self.terms[term][1] for term in accepted))


class KnownValueRules:
    """The ValueRules of one program's goals; a bounded cache."""

    def __init__(self, rules: list[Rule], canonical_goals: range | frozenset[int], lexicon: Lexicon) -> None:
        self._rules = rules
        self._canonical_goals = canonical_goals
        self._lexicon = lexicon
        self._known: BoundedCache[tuple[Goals, bool], ValueRules] = BoundedCache(512)

    def of(self, goals: Goals, stack: Stack | None) -> ValueRules:
        """The rules of the goals, where the stack is around them: remembered items have one spelling."""
        canonical = goals[0] in self._canonical_goals or (stack is not None and stack.is_remembered)
        rules = self._known.get((goals, canonical))
        if rules is None:
            rules = ValueRules(goals, self._rules, self._lexicon, canonical=canonical)
            self._known.put((goals, canonical), rules)
        return rules


class KeyClasses:
    """Classes of free keys of several rules, as one automaton."""

    def __init__(self, rules: tuple[KeyRule, ...], classes: frozenset[KeyClass], lexicon: Lexicon) -> None:
        members = [
            (StringTerm() if free.language is None else StringTerm(free.language), (rule_index, number))
            for rule_index, rule in enumerate(rules)
            for number, free in enumerate(rule.free)
            if (rule_index, number) in classes
        ]
        terms, self.automaton = lexicon.largest_texts(list(dict.fromkeys(term for term, _ in members)))
        self._classes = [frozenset(one for term, one in members if term == own) for own in terms]
        self._terms = terms
        self.is_endless = all(
            not term.language.is_live(state) or term.language.num_words_from(state) is None
            for term in terms
            for state in range(term.language.num_states)
        )
        """Whether every beginning of a key is one of infinitely many keys."""

    def classes(self, state: int) -> frozenset[KeyClass]:
        """The classes of a key that ends in this state."""
        return frozenset[KeyClass]().union(*(self._classes[term] for term in self.automaton.accepts[state]))

    def is_used_up(self, text: str, seen: list[str]) -> bool:
        """Whether only keys that have been seen begin with the text."""
        for term in self._terms:
            state = 0
            for character in text:
                state = term.language.step(state, ord(character))
            left = term.language.num_words_from(state)
            if left is None or left > sum(key.startswith(text) and key in term.language for key in seen):
                return False
        return True


def _object_runs(members: Iterable[tuple[int, Iterable[KeyRule]]]) -> tuple[ObjectRun, ...]:
    return tuple(ObjectRun(goal, rule, 0, NO_CHILD, 0, rule.all_witnesses) for goal, rules in members for rule in rules)
