"""The graph of rules: which rules the values inside a rule's values may have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from specdec.grammars.rules import ArrayRule, ObjectRule, Rule


def children_of_object(rule: ObjectRule) -> Iterator[int]:
    for choices in (*rule.choices, *(free.choices for free in rule.free)):
        yield from (number for _, number in choices)


def children_of_array(rule: ArrayRule) -> Iterator[int]:
    for choices in (*rule.prefix, rule.items):
        yield from (number for _, number in choices)


def children_of(rule: Rule) -> Iterator[int]:
    for one in rule.objects:
        yield from children_of_object(one)
    for array in rule.arrays:
        yield from children_of_array(array)


def rules_below(array: ArrayRule, rules: Sequence[Rule]) -> Iterator[Rule]:
    """Every rule that an item, or something in an item, may have."""
    pending = list(dict.fromkeys(children_of_array(array)))
    seen = set(pending)
    while pending:
        rule = rules[pending.pop()]
        yield rule
        for number in children_of(rule):
            if number not in seen:
                seen.add(number)
                pending.append(number)


def leading_to(rules: Sequence[Rule], goals: Iterable[int]) -> frozenset[int]:
    """The goals, and those of which a value may hold a value of one of them at some depth."""
    parents: defaultdict[int, list[int]] = defaultdict(list)
    for number, rule in enumerate(rules):
        for child in set(children_of(rule)):
            parents[child].append(number)
    pending = list(goals)
    found = set(pending)
    for goal in pending:
        new = [parent for parent in parents[goal] if parent not in found]
        found.update(new)
        pending += new
    return frozenset(found)
