"""Closings: from any configuration a short text that completes it, and the fewest tokens that spell that text.

Each run of a frame can be finished on its own (automaton.py), so a closing is worked out for one goal at a time: the
position's tail, a short value of every child that is still to come (short_values.py), the rest of the frame, and then
what the frame's own goal needs further out. Of the goals still possible, the one that takes the fewest tokens is taken.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.automaton import Automaton
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import ArrayFrame, Frame, ObjectFrame, RawFrame
from specdec.grammars.item_closings import ItemClosings, Part
from specdec.grammars.layout import Pretty
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.positions import (
    AfterKey,
    ArrayEnd,
    ArrayStart,
    Closing,
    Completed,
    Done,
    Gap,
    Indent,
    Key,
    Literal,
    ObjectEnd,
    ObjectNext,
    ObjectStart,
    Position,
    Raw,
    String,
    Terminated,
    Value,
)
from specdec.grammars.program import Program, ShortTexts
from specdec.grammars.repeated_items import may_repeat, must_go_on
from specdec.grammars.rules import UNLIMITED, ObjectRule
from specdec.grammars.short_values import ShortValues
from specdec.grammars.speller import EMPTY, Speller, Spelling
from specdec.grammars.stacks import Config, Stack
from specdec.grammars.stopwatch import Stopwatch
from specdec.grammars.tails import Tails
from specdec.grammars.texts import TextSet
from specdec.grammars.walk import DEAD

_MAX_COMPARED = 16
"""Ways to go on that are compared at one position."""
_MAX_PADDING = 100_000


class Closings:
    """Of one grammar's configurations."""

    def __init__(self, automaton: Automaton, program: Program, lexicon: Lexicon, speller: Speller) -> None:
        rules, canonical = program.rules, bool(program.canonical_goals)
        self._automaton = automaton
        self._speller = speller
        self.tails = Tails(lexicon, speller)
        self._values = {
            is_canonical: ShortValues(
                rules,
                lexicon,
                speller,
                self.tails,
                is_canonical=is_canonical,
                known=program.short_texts.of_rules.get(is_canonical, {}),
            )
            for is_canonical in {canonical, True}
        }
        self._canonical = canonical
        self._after: WeakKeyDictionary[Stack, dict[int, Spelling | None]] = WeakKeyDictionary()
        self._of_items = ItemClosings(self, automaton, speller)
        self._most_per_frame = program.short_texts.most_per_frame
        self._has_raw_text = program.raw_text is not None
        self._most_after_key: BoundedCache[tuple[ObjectFrame, Stack | None], int] = BoundedCache(1024)
        self._known: BoundedCache[Config, Spelling] = BoundedCache(4096)

    def load(self) -> None:
        """Set up ahead what the first walk in a budget would wait for."""
        self._short_values(None).load()

    def of(self, config: Config) -> Spelling | None:
        """A short completion; None where every one that was tried is too long."""
        known = self._known.get(config)
        if known is None:
            found = self._find(config)
            if found is None:
                return None
            known = found
            self._known.put(config, known)
        return known

    def after(self, stack: Stack | None, goal: int) -> Spelling | None:
        """What follows a value that was the stack's frame's child and has met the goal."""
        if stack is None:
            return EMPTY
        if isinstance(stack.frame, RawFrame):
            return self.of(self._automaton.enter_raw(stack.frame.after))
        known = self._after.get(stack)
        if known is None:
            known = self._after[stack] = {}
        if goal not in known:
            known[goal] = self.best(self.rest_of_frame(stack.frame, goal, stack.below), stack.below)
        return known[goal]

    def short_texts(self, stopwatch: Stopwatch) -> ShortTexts:
        """What a program holds of its short values, as far as half of the time to compile allows."""
        most: int | None = 0
        for values in self._values.values():
            own = values.most_bytes(stopwatch)
            most = None if most is None or own is None else max(most, own)
        return ShortTexts(most, {is_canonical: values.known for is_canonical, values in self._values.items()})

    def bound(self, stack: Stack | None) -> int | None:
        """No fewer tokens than it takes to complete the text after any one token where this stack is around it.

        A token keeps some of the frames, each of which needs at most so many bytes, and opens others. None where the
        most bytes of a frame are not known, or there are none.
        """
        if self._has_raw_text or self._most_per_frame is None or (stack is not None and stack.is_remembered):
            return None
        per_frame = self._most_per_frame
        if isinstance(self._automaton.layout, Pretty):
            return None
        depth = 0 if stack is None else stack.depth
        return (depth + 2 + self._speller.max_opened) * per_frame

    def cost_after(self, stack: Stack | None, goal: int) -> int | None:
        """The tokens of `after`, laid out; where items must follow that differ from the present one, no fewer."""
        if stack is not None and must_go_on(stack):
            return self._of_items.most_after(stack, goal)
        compact = self.after(stack, goal)
        if compact is None or stack is None or not isinstance(self._automaton.layout, Pretty):
            return None if compact is None else compact.num_tokens
        resolved = self._automaton.resolve(Completed(frozenset((goal,))), stack)
        spelling = None if resolved is None else self.laid_out(resolved, compact)
        return None if spelling is None else spelling.num_tokens

    def most_at(self, position: Position, stack: Stack | None) -> int | None:
        """No fewer tokens than `of` takes where items must follow, whichever the present one that did not occur."""
        return self._of_items.most_at(self._parts(position, stack), stack)

    def most_after_key(self, frame: ObjectFrame, stack: Stack | None) -> int | None:
        """The most tokens that it takes after a key that may come next, whichever; None where some are too many."""
        known = self._most_after_key.get((frame, stack))
        if known is None:
            costs = list(self._costs_after_key(frame, stack))
            if not costs or any(cost is None for cost in costs):
                return None
            known = max(cost for cost in costs if cost is not None)
            self._most_after_key.put((frame, stack), known)
        return known

    def _costs_after_key(self, frame: ObjectFrame, stack: Stack | None) -> Iterator[int | None]:
        values = self._short_values(stack)
        for run in frame.runs:
            rule = run.rule
            steps: list[tuple[int, int, int, int]] = []
            for key in rule.candidates(*run.progress):
                steps += rule.after_declared(*run.progress, rule.positions[key])
            for number in range(len(rule.free)) if frame.takes_free_keys() else ():
                steps += rule.after_free(*run.progress, number)
            after = self.after(stack, run.goal)
            if must_go_on(stack):
                extra = self.cost_after(stack, run.goal)
                if extra is None:
                    yield None
                    return
            else:
                extra = 0
            for declared, num_keys, pending, child in dict.fromkeys(steps):
                value = values.text(child)
                following = run._replace(declared=declared, num_keys=num_keys, pending=pending)
                rest = values.object_rest(
                    following, frame.seen, has_keys=True, must_continue=False, has_one_free_key=frame.has_one_free_key
                )
                if value is None or rest is None or after is None:
                    yield None
                else:
                    waiting = AfterKey(
                        ObjectFrame((following._replace(child=child),), frame.seen, frame.has_one_free_key)
                    )
                    spelling = self.laid_out((waiting, stack), self._speller.spell(b":" + value + rest, after))
                    yield None if spelling is None else spelling.num_tokens + extra

    def most_after_plain_key(self, frame: ObjectFrame) -> tuple[tuple[int, int], ...] | None:
        """Goals of the frame, each with no fewer tokens than it takes to meet it after any key that may come next.

        Of a colon, a value and the rest of the object each is spelt by itself. The keys required from here on are those
        that any rest ends with, so that the rests are the ends of one text. None where a value is too long, or members
        are counted or come in any order. No item around is remembered.
        """
        values = self._short_values(None)
        most: dict[int, int] = {}
        for run in frame.runs:
            rule = run.rule
            if not (isinstance(rule, ObjectRule) and rule.is_plain):
                return None
            value = values.most_tokens(rule, run.declared)
            rest = values.object_rest(
                run, frozenset(), has_keys=True, must_continue=False, has_one_free_key=frame.has_one_free_key
            )
            if value is None or rest is None:
                return None
            num_tokens = 1 + value + int(self._speller.spell(rest).costs.max())
            most[run.goal] = max(num_tokens, most.get(run.goal, 0))
        return tuple(most.items())

    def _find(self, config: Config) -> Spelling | None:
        position, stack = config
        if isinstance(position, (Done, Terminated)):
            return EMPTY
        if isinstance(position, Raw):
            return self._raw_closing(position.state)
        found = self.obvious(config)
        if not may_repeat(stack) or self._of_items.completes(config, found):
            return found
        found = None
        for along, found in self._of_items.search(config):
            self._known.put(along, found)
        return found

    def obvious(self, config: Config) -> Spelling | None:
        """The cheapest of what would complete the configuration if its present item had not occurred."""
        position, stack = config
        parts = self._parts(position, stack)
        found = self._of_items.best(parts, stack) if must_go_on(stack) else self.best(parts, stack)
        return None if found is None else self.laid_out(config, found)

    @functools.cached_property
    def raw_costs(self) -> NDArray[np.int64]:
        """Of each state of the raw text, no fewer tokens than it takes from there; UNLIMITED for too many to say."""
        raw_text = self._automaton.raw_text
        num_bytes, ends = raw_text.tails()
        costs = np.where(ends < 0, UNLIMITED, num_bytes)
        for state in raw_text.values:
            closing = self.of(self._automaton.enter_raw(state))
            if closing is None:
                costs[ends == state] = UNLIMITED
            else:
                costs[ends == state] += closing.num_tokens
        return costs

    def _raw_closing(self, state: int) -> Spelling | None:
        raw_text = self._automaton.raw_text
        tail, end = raw_text.tail(state)
        rest = self.of(self._automaton.enter_raw(end)) if end in raw_text.values else EMPTY
        return None if rest is None else self._speller.spell(tail, rest)

    def laid_out(self, config: Config, compact: Spelling) -> Spelling | None:
        """What completes the configuration where this would if it were compact; None where it would not."""
        if not isinstance(self._automaton.layout, Pretty):
            return compact
        data = bytearray()
        for byte in compact.data:
            position, stack = config
            while True:
                after = self._automaton.feed((position, stack), bytes((byte,)))
                if after is not None:
                    config = after
                    data.append(byte)
                    break
                if isinstance(position, Indent):
                    data += position.pending
                    position = position.after
                    continue
                line = self._automaton.feed((position, stack), b"\n")
                if line is None:
                    return None
                data += b"\n"
                position, stack = line
        return self._speller.spell(bytes(data))

    def best(self, parts: Iterable[Part], stack: Stack | None) -> Spelling | None:
        """The part with what follows it that takes the fewest tokens; None where there is none."""
        best: Spelling | None = None
        for data, goal in parts:
            rest = self.after(stack, goal)
            if rest is None:
                continue
            spelling = self._speller.spell(data, rest)
            if best is None or (spelling.num_tokens, len(spelling.data)) < (best.num_tokens, len(best.data)):
                best = spelling
        return best

    def _short_values(self, stack: Stack | None) -> ShortValues:
        return self._values[self._canonical or (stack is not None and stack.is_remembered)]

    def _parts(self, position: Position, stack: Stack | None) -> Iterator[Part]:
        match position:
            case Completed():
                yield from ((b"", goal) for goal in position.goals)
            case Value():
                values = self._short_values(stack)
                for goal in position.goals:
                    text = values.text(goal)
                    if text is not None:
                        yield text, goal
            case Literal():
                yield from self._literal_parts(position, stack)
            case String():
                yield from self._string_parts(position, stack)
            case Key():
                yield from self._key_parts(position, stack)
            case AfterKey():
                yield from self._after_key_parts(position.frame, stack)
            case ObjectStart():
                yield from self._object_parts(position.frame, stack, has_keys=False)
            case ObjectNext():
                yield from self._object_parts(position.frame, stack, has_keys=False, must_continue=True)
            case ObjectEnd():
                yield from self._object_parts(position.frame, stack, has_keys=True)
            case ArrayStart():
                yield from self._array_parts(position.frame, stack, has_items=False)
            case ArrayEnd():
                yield from self._array_parts(position.frame, stack, has_items=True)
            case Gap() | Indent():
                yield from self._parts(position.after, stack)
            case Closing():
                closer = b"}" if isinstance(position.frame, ObjectFrame) else b"]"
                yield from ((closer, goal) for goal in position.frame.closed())

    def parts(self, position: Position) -> Iterator[Part]:
        """How the position's own value may end soonest; no item around is remembered."""
        return self._parts(position, None)

    def frame_parts(self, frame: Frame, goal: int) -> Iterator[Part]:
        """How the frame may end soonest once its child has met the goal; no item around is remembered."""
        return self.rest_of_frame(frame, goal, None)

    def rest_of_frame(self, frame: Frame, goal: int, below: Stack | None) -> Iterator[Part]:
        """How the frame ends once its child has met a goal."""
        assert not isinstance(frame, RawFrame), "raw text is no value"
        after = frame.after_value(frozenset((goal,)))
        if isinstance(after, ObjectFrame):
            yield from self._object_parts(after, below, has_keys=True)
        elif after is not None:
            yield from self._array_parts(after, below, has_items=True)

    def _object_parts(
        self, frame: ObjectFrame, stack: Stack | None, *, has_keys: bool, must_continue: bool = False
    ) -> Iterator[Part]:
        values = self._short_values(stack)
        for run in frame.runs:
            rest = values.object_rest(
                run, frame.seen, has_keys=has_keys, must_continue=must_continue,
                has_one_free_key=frame.has_one_free_key,
            )  # fmt: skip
            if rest is not None:
                yield rest, run.goal

    def _array_parts(self, frame: ArrayFrame, stack: Stack | None, *, has_items: bool) -> Iterator[Part]:
        values = self._values[True] if frame.seen is not None else self._short_values(stack)
        for run in frame.runs:
            seen = frame.seen if run.rule.is_unique else None
            rest = values.array_rest(run.rule, frame.num_items, run.counted, seen, has_items=has_items)
            if rest is not None:
                yield rest, run.goal

    def _after_key_parts(self, frame: ObjectFrame, stack: Stack | None) -> Iterator[Part]:
        values = self._short_values(stack)
        for run in frame.runs:
            value = values.text(run.child)
            rest = values.object_rest(
                run, frame.seen, has_keys=True, must_continue=False, has_one_free_key=frame.has_one_free_key
            )
            if value is not None and rest is not None:
                yield b":" + value + rest, run.goal

    def _key_parts(self, position: Key, stack: Stack | None) -> Iterator[Part]:
        for key in self.keys(position):
            classes = self._automaton.keys.classes(position.frame)
            waiting = (
                position.frame.after_key(key)
                if classes is None
                else position.frame.after_key(key, self._classes(position, key))
            )
            if waiting is not None:
                tail = key[len(position.text) :]
                yield from ((tail + data, goal) for data, goal in self._after_key_parts(waiting, stack))

    def _classes(self, position: Key, key: bytes) -> frozenset[tuple[int, int]]:
        classes = self._automaton.keys.classes(position.frame)
        assert classes is not None, "asked where keys have classes"
        if position.state == DEAD:
            return frozenset()
        before, state, _, _ = classes.automaton.scan(position.state, 0, key[len(position.text) :], 0)
        return classes.classes(before) if state == 1 else frozenset()

    def keys(self, position: Key) -> Iterator[bytes]:
        """Keys, spelt with their closing quote, that the text begins, each of which can be finished."""
        frame, text = position.frame, position.text
        found: dict[bytes, None] = {}
        for run in frame.runs:
            declared = [key for key in run.rule.candidates(*run.progress) if key.startswith(text)]
            declared.sort(key=lambda key: (not run.rule.required[run.rule.positions[key]], len(key)))
            found.update(dict.fromkeys(declared[:_MAX_COMPARED]))
        yield from found
        if not frame.takes_free_keys() or position.state == DEAD:
            return
        classes = self._automaton.keys.classes(frame)
        if classes is None:
            key = text + self.tails.to_body(position.state)
            for _ in range(len(self._automaton.keys.special(frame).texts) + 1):
                if key + b'"' not in found and frame.after_key(key + b'"') is not None:
                    yield key + b'"'
                    return
                key += self._speller.padding
            return
        values = self._short_values(None)
        num_found = 0
        for term in range(classes.automaton.num_terms):
            for tail in values.members(classes.automaton, term, position.state):
                key = text + tail
                if key not in found and frame.after_key(key, self._classes(position, key)) is not None:
                    found[key] = None
                    yield key
                    num_found += 1
                    break
            if num_found == _MAX_COMPARED:
                return

    def _literal_parts(self, position: Literal, stack: Stack | None) -> Iterator[Part]:
        rules = self._automaton.value_rules.of(position.goals, stack)
        if position.text is not None:
            yield from _text_parts(rules.literals, position.text)
        if rules.numbers is not None and position.number != DEAD:
            tail, state = self.tails.of_number(rules.numbers, position.number)
            yield from ((tail, goal) for goal in rules.met_by_literal(None, state))

    def _string_parts(self, position: String, stack: Stack | None) -> Iterator[Part]:
        rules = self._automaton.value_rules.of(position.goals, stack)
        if position.text is not None:
            yield from _text_parts(rules.strings, position.text)
        if rules.text_automaton is None:
            tail = self.tails.to_body(position.state)
            for low, high, met in rules.lengths:
                num_missing = max(0, low - position.length)
                if position.length <= high and num_missing <= _MAX_PADDING:
                    data = tail + self._speller.padding * num_missing + b'"'
                    yield from ((data, goal) for goal in met)
        elif position.state != DEAD:
            automaton = rules.text_automaton
            for term, (_, met) in enumerate(rules.terms):
                data_or_none = self.tails.of_text(automaton, position.state, position.length, term)
                if data_or_none is not None:
                    yield from ((data_or_none, goal) for goal in met)


def _text_parts(texts: TextSet, prefix: bytes) -> Iterator[Part]:
    for text in nsmallest(_MAX_COMPARED, texts.starting(prefix), key=len):
        yield from ((text[len(prefix) :], goal) for goal in texts.goals(text))
