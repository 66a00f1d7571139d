"""ItemClosings: completions of arrays whose items must differ, where the obvious one might repeat an item."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol
from weakref import WeakKeyDictionary

import msgspec

from specdec.grammars.automaton import Automaton
from specdec.grammars.frames import ArrayFrame, Frame
from specdec.grammars.positions import ArrayEnd, Done, Literal, Value
from specdec.grammars.repeated_items import NO_ITEM, items_of, may_repeat, repeats_present_item
from specdec.grammars.speller import Speller, Spelling
from specdec.grammars.stacks import Config, Stack

_MAX_SEARCHED = 4000

Part = tuple[bytes, int]
"""Bytes that complete the value at a position, and a goal that it then meets."""


class Completions(Protocol):
    """What closings.py offers, which knows nothing of repetition."""

    def best(self, parts: Iterable[Part], stack: Stack | None) -> Spelling | None:
        """The part with what follows it that takes the fewest tokens."""

    def obvious(self, config: Config) -> Spelling | None:
        """What would complete the configuration if its present item had not occurred."""

    def rest_of_frame(self, frame: Frame, goal: int, below: Stack | None) -> Iterator[Part]:
        """How the frame ends once its child has met a goal."""

    def laid_out(self, config: Config, compact: Spelling) -> Spelling | None:
        """What completes the configuration where this would if it were compact."""

    def cost_after(self, stack: Stack | None, goal: int) -> int | None:
        """The tokens of what follows a value that was the stack's frame's child and has met the goal."""


class ItemClosings:
    """Of one grammar's configurations inside remembered items."""

    def __init__(self, completions: Completions, automaton: Automaton, speller: Speller) -> None:
        self._completions = completions
        self._automaton = automaton
        self._speller = speller
        self._most_after: WeakKeyDictionary[Stack, dict[int, int | None]] = WeakKeyDictionary()

    def best(self, parts: Iterable[Part], stack: Stack | None) -> Spelling | None:
        """The cheapest where items must follow that are unlike the present one: with each part, its text is known."""
        found = [one for data, goal in parts if (one := self._with_rest(data, goal, stack)) is not None]
        return min(found, key=lambda one: (one.num_tokens, len(one.data)), default=None)

    def _with_rest(self, data: bytes, goal: int, stack: Stack | None) -> Spelling | None:
        assert stack is not None, "some item around is remembered"
        frame, below = stack.frame, stack.below
        if isinstance(frame, ArrayFrame) and frame.seen is not None:
            parts = self._completions.rest_of_frame(frame.with_text(data), goal, below)
            rest = self._completions.best(parts, below)
            return None if rest is None else self._speller.spell(data, rest)
        parts = self._completions.rest_of_frame(frame, goal, below)
        return self.best(((data + more, met) for more, met in parts), below)

    def most_after(self, stack: Stack, goal: int) -> int | None:
        """No fewer tokens than follow the child of the stack's frame, whatever the text of the present item.

        None where that is not known.
        """
        known = self._most_after.get(stack)
        if known is None:
            known = self._most_after[stack] = {}
        if goal not in known:
            known[goal] = self._find_most_after(stack, goal)
        return known[goal]

    def most_at(self, parts: Iterable[Part], stack: Stack | None) -> int | None:
        """No fewer tokens than the cheapest of the parts takes with what follows it, whatever the present item."""
        costs = [
            self._speller.num_tokens(data) + cost
            for data, goal in parts
            if (cost := self._completions.cost_after(stack, goal)) is not None
        ]
        return min(costs, default=None)

    def _find_most_after(self, stack: Stack, goal: int) -> int | None:
        frame, below = stack.frame, stack.below
        if not isinstance(frame, ArrayFrame) or frame.seen is None:
            return self.most_at(self._completions.rest_of_frame(frame, goal, below), below)
        # An item changes what follows only where it would be one of what follows another.
        items = {NO_ITEM}
        for data, _ in self._completions.rest_of_frame(msgspec.structs.replace(frame, text=NO_ITEM), goal, below):
            items.update(items_of(data))
        most = 0
        for item in items - frame.seen:
            if item != NO_ITEM and not self._may_meet(goal, item):
                continue
            cost = self._cost_after_item(msgspec.structs.replace(frame, text=item), goal, below)
            if cost is None:
                return None
            most = max(most, cost)
        return most

    def _may_meet(self, goal: int, item: bytes) -> bool:
        """Whether a value of the goal may have the text; always where its lines are indented by how deep it stands."""
        if item[:1] in {b"{", b"["}:
            return True
        after = self._automaton.feed((Value((goal,)), None), item)
        return after is not None and _accepts(self._automaton, after)

    def _cost_after_item(self, frame: ArrayFrame, goal: int, below: Stack | None) -> int | None:
        after = frame.after_value(frozenset((goal,)))
        rest = self._completions.best(self._completions.rest_of_frame(frame, goal, below), below)
        if rest is None or after is None:
            return None
        rest = self._completions.laid_out((ArrayEnd(after), below), rest)
        return None if rest is None else rest.num_tokens

    def completes(self, config: Config, completion: Spelling | None) -> bool:
        """Whether what would complete the text, if items were not remembered, repeats none."""
        if completion is None:
            return False
        repeats = repeats_present_item(config, completion.data)
        if repeats is not None:
            return not repeats
        after = self._automaton.feed(config, completion.data)
        return after is not None and _accepts(self._automaton, after)

    def search(self, config: Config) -> list[tuple[Config, Spelling]]:
        """A completion where the obvious one would repeat an item: the first that deviates from it by few bytes.

        It comes last, after those of the configurations that it leads through, for which it is the first as well.
        Empty where none is found.
        """
        pending = [(config, b"")]
        before: dict[Config, Config | None] = {config: None}
        for current, data in pending:
            possible = frozenset(self._automaton.possible_bytes(current))
            for byte in _DEVIATING:
                after = self._automaton.feed(current, bytes((byte,))) if byte in possible else None
                if after is None or after in before:
                    continue
                before[after] = current
                text = data + bytes((byte,))
                found = self._completions.obvious(after)
                if found is not None and (not may_repeat(after[1]) or self.completes(after, found)):
                    return self._along(before, current, text, found)
                pending.append((after, text))
            if len(before) > _MAX_SEARCHED:
                break
        return []

    def _along(
        self, before: dict[Config, Config | None], last: Config, text: bytes, found: Spelling
    ) -> list[tuple[Config, Spelling]]:
        """`text` leads from where the search began to the byte after `last`."""
        along: list[tuple[Config, Spelling]] = []
        at: Config | None = last
        for begin in range(len(text) - 1, -1, -1):
            assert at is not None, "the search began at one"
            along.append((at, self._speller.spell(text[begin:], found)))
            at = before[at]
        return along


_DEVIATING = bytes(dict.fromkeys(b'"],}0123456789abcdefghijklmnopqrstuvwxyz-.{[:_ ' + bytes(range(0x20, 0x100))))


def _accepts(automaton: Automaton, config: Config) -> bool:
    position, stack = config
    if stack is not None:
        return False
    if isinstance(position, Literal):
        return bool(automaton.value_rules.of(position.goals, None).met_by_literal(position.text, position.number))
    return isinstance(position, Done)
