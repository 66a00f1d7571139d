"""Combinations: the goals that a value position has as long as all alternatives around it are left.

Those are known without any text. What a position with several goals needs is worked out for them when a grammar is
compiled, so that the thread that walks it does not wait for that at their first use. As alternatives fall away other
combinations come up, subsets of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specdec.grammars.frames import Goals
from specdec.grammars.rules import ObjectRule, Rule


def known_combinations(rules: Sequence[Rule]) -> Iterator[Goals]:
    """Those of two goals or more, from the root on, each once."""
    if all(_has_one_alternative(rule) for rule in rules):
        return
    found: set[Goals] = {(0,)}
    pending: list[Goals] = [(0,)]
    for goals in pending:
        if len(goals) > 1:
            yield goals
        for following in _below([rules[goal] for goal in goals]):
            if following not in found:
                found.add(following)
                pending.append(following)


def _has_one_alternative(rule: Rule) -> bool:
    if len(rule.objects) > 1 or len(rule.arrays) > 1:
        return False
    choices = [one for shape in rule.objects for one in (*shape.choices, *(free.choices for free in shape.free))]
    choices += [one for shape in rule.arrays for one in (*shape.prefix, shape.items)]
    return all(len(one) < 2 for one in choices)


def _below(rules: Sequence[Rule]) -> Iterator[Goals]:
    objects = [shape for rule in rules for shape in rule.objects]
    arrays = [shape for rule in rules for shape in rule.arrays]
    free = {number for shape in objects for one in shape.free for _, number in one.choices}
    if free:
        yield tuple(sorted(free))
    for key in dict.fromkeys(key for shape in objects for key in shape.keys):
        goals = {number for shape in objects for number in _at_key(shape, key)}
        if goals:
            yield tuple(sorted(goals))
    for index in range(max((len(shape.prefix) + 1 for shape in arrays), default=0)):
        goals = {number for shape in arrays for _, number in shape.choices(index)}
        if goals:
            yield tuple(sorted(goals))


def _at_key(shape: ObjectRule, key: bytes) -> Iterator[int]:
    position = shape.positions.get(key)
    if position is not None:
        yield from (number for _, number in shape.choices[position])
        return
    # A key that is declared elsewhere is free here.
    yield from (number for one in shape.free for _, number in one.choices)
