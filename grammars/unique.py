"""Which arrays of unique items the automaton can hold: those that never run out of values to go on with.

A frame of unique items remembers their texts (frames.py). One text must then be one value, and an array that has to go
on must find another value; what cannot be shown to is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from specdec.grammars.errors import UnsupportedSchemaError
from specdec.grammars.rule_graph import children_of, children_of_array, leading_to, rules_below
from specdec.grammars.rules import ArrayRule, Choices, ObjectRule, Rule

_MAX_COMPARED = 200

_MANY = 10_000
"""As good as endless: no text has so many items that must differ."""


def check_unique(array: ArrayRule, rules: Sequence[Rule], pointer: str) -> None:
    """Raise UnsupportedSchemaError for an array of unique items that might not be completed, or repeat a value."""

    def refuse(reason: str) -> UnsupportedSchemaError:
        return UnsupportedSchemaError(f"uniqueItems {reason}", keyword="uniqueItems", pointer=pointer)

    for rule in rules_below(array, rules):
        if any(inner.is_unique for inner in rule.arrays):
            raise refuse("inside an array of unique items cannot be enforced yet")
        if any(one.free and not one.is_plain for one in rule.objects):
            raise refuse("over objects whose undeclared keys are counted cannot be enforced yet")
    if _has_two_orders([one for rule in rules_below(array, rules) for one in rule.objects]):
        raise refuse("over objects whose keys come in different orders cannot be enforced yet")
    if array.min_items < 2 and all(count.minimum < 2 for count in array.counts):
        return
    counter = _Counter(rules)
    positions = [array.choices(index) for index in range(min(array.min_items, len(array.prefix) + 1))]
    # An array that has as many values for each of its first items as it must have items never runs out of them.
    fewest = min((counter.choices(choices) for choices in positions), default=0)
    for number, count in enumerate(array.counts):
        if count.minimum > 1:
            claimed = tuple(choice for choice in array.items if choice[0] >> number & 1)
            fewest = min(fewest, counter.choices(claimed))
    if array.counts:
        fewest = min([fewest, *(counter.choices(choices) for choices in (*array.prefix, array.items) if choices)])
        if fewest < _MANY:
            raise refuse("over few values, with contains, cannot be enforced yet")
    elif fewest < array.min_items:
        raise refuse(f"and minItems {array.min_items} ask for more values than the {fewest} of some item")


def unheld_goals(rules: Sequence[Rule]) -> frozenset[int]:
    """The goals with an array that may repeat its items and does not live under the rules for remembered ones.

    Those are one undeclared key for each object, and no remembered array inside another. One spelling for each number
    leaves every number one.
    """
    unfit = leading_to(
        rules,
        (
            number
            for number, rule in enumerate(rules)
            if any(array.is_unique for array in rule.arrays)
            or any(one.free and not one.is_plain for one in rule.objects)
        ),
    )
    return frozenset(
        number
        for number, rule in enumerate(rules)
        if any(not array.is_unique and not unfit.isdisjoint(children_of_array(array)) for array in rule.arrays)
    )


def _has_two_orders(objects: Sequence[ObjectRule]) -> bool:
    """Whether two keys, one of them perhaps not declared, may come in either order: one value would have two texts."""
    if len(objects) > _MAX_COMPARED:
        return True
    return any(_disagree(a, b) for index, a in enumerate(objects) for b in objects[:index])


def _disagree(a: ObjectRule, b: ObjectRule) -> bool:
    # Past its declared keys come those that are free to it.
    place_in_b = {key: position for position, key in enumerate([*b.keys, *(a.keys if b.free else ())])}
    place_in_b |= {key: position for position, key in enumerate(b.keys)}
    order = [*a.keys, *(key for key in b.keys if a.free and key not in a.positions)]
    places = [place_in_b[key] for key in order if key in place_in_b]
    return places != sorted(places)


class _Counter:
    """A lower bound of how many values a rule has, at most _MANY."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._known: dict[int, int] = {}

    def choices(self, choices: Choices) -> int:
        return max((self.of(number) for _, number in choices), default=0)

    def of(self, number: int) -> int:
        """Worked out from the inside; a rule that holds itself has no end of values."""
        pending = [number]
        open_rules: set[int] = set()
        while pending:
            current = pending[-1]
            if current in self._known:
                pending.pop()
                continue
            children = [child for child in children_of(self._rules[current]) if child not in self._known]
            if current in open_rules or not children:
                pending.pop()
                self._known[current] = self._count(self._rules[current])
                continue
            open_rules.add(current)
            for child in children:
                if child in open_rules:
                    self._known[child] = _MANY
                else:
                    pending.append(child)
        return self._known[number]

    def _count(self, rule: Rule) -> int:
        total = len(set(rule.literals))
        if rule.numbers is not None:
            values = rule.numbers.finite_values(_MANY)
            total = max(total, _MANY if values is None else len(values))
        words = [len(set(rule.strings))]
        for term in rule.terms:
            if term.language.is_everything:
                words.append(_MANY if term.max_length != 0 else 1)
            else:
                num_words = term.language.num_words if term.is_unbounded() else 1
                words.append(_MANY if num_words is None else num_words)
        total += max(words)
        for one in rule.objects:
            num = 1
            for choices, is_required in zip(one.choices, one.required, strict=True):
                num = min(_MANY, num * (self.choices(choices) + (not is_required)))
            total = max(total, _MANY if one.free else num)
        for array in rule.arrays:
            is_endless = bool(array.items) and array.max_items is None
            num = 1
            for index in range(min(array.min_items, 64)):
                num = min(_MANY, num * self.choices(array.choices(index)))
            total = max(total, _MANY if is_endless else num)
        return min(total, _MANY)
