"""Closings: from any configuration a short text that completes it, and the fewest tokens that spell that text.

Each run of a frame can be finished on its own (automaton.py), so a closing is worked out for one goal at a time: the
position's tail, a short value of every child that is still to come (short_values.py), the rest of the frame, and then
what the frame's own goal needs further out. Of the goals still possible, the one that takes the fewest tokens is taken.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
from numpy.typing import NDArray

from specdec.grammars.automaton import Automaton
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import ArrayFrame, Frame, ObjectFrame, RawFrame
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
_MAX_SEARCHED = 4000

Part = tuple[bytes, int]
"""Bytes that complete the value at a position, and a goal that it then meets."""


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
        self._most_of: WeakKeyDictionary[Stack, dict[int, int | None]] = WeakKeyDictionary()
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
            known[goal] = self._best(self._frame_parts(stack.frame, goal, stack.below), stack.below)
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
            return self._known_most_after(stack, goal)
        compact = self.after(stack, goal)
        if compact is None or stack is None or not isinstance(self._automaton.layout, Pretty):
            return None if compact is None else compact.num_tokens
        resolved = self._automaton.resolve(Completed(frozenset((goal,))), stack)
        spelling = None if resolved is None else self._laid_out(resolved, compact)
        return None if spelling is None else spelling.num_tokens

    def _known_most_after(self, stack: Stack, goal: int) -> int | None:
        known = self._most_of.get(stack)
        if known is None:
            known = self._most_of[stack] = {}
        if goal not in known:
            known[goal] = self._most_after(stack, goal)
        return known[goal]

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
                    spelling = self._laid_out((waiting, stack), self._speller.spell(b":" + value + rest, after))
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
        found = self._obvious(config)
        if _may_repeat(position, stack) and (found is None or not self._completes(config, found.data)):
            return self._search(config)
        return found

    def _obvious(self, config: Config) -> Spelling | None:
        """The cheapest of what would complete the configuration if its present item had not occurred."""
        position, stack = config
        parts = self._parts(position, stack)
        found = self._best_of_items(parts, stack) if must_go_on(stack) else self._best(parts, stack)
        return None if found is None else self._laid_out(config, found)

    def _best_of_items(self, parts: Iterable[Part], stack: Stack | None) -> Spelling | None:
        """As `_best`, where the items after the present one must be unlike it as well: its text is known there."""
        found = [one for data, goal in parts if (one := self._with_rest(data, goal, stack)) is not None]
        return min(found, key=lambda one: (one.num_tokens, len(one.data)), default=None)

    def _with_rest(self, data: bytes, goal: int, stack: Stack | None) -> Spelling | None:
        assert stack is not None, "some item around is remembered"
        frame = stack.frame
        assert not isinstance(frame, RawFrame), "raw text is around no remembered item"
        if isinstance(frame, ArrayFrame) and frame.seen is not None:
            rest = self._best(self._frame_parts(frame.with_text(data), goal, stack.below), stack.below)
            return None if rest is None else self._speller.spell(data, rest)
        parts = self._frame_parts(frame, goal, stack.below)
        return self._best_of_items(((data + more, met) for more, met in parts), stack.below)

    def _most_after(self, stack: Stack, goal: int) -> int | None:
        """No fewer tokens than `after` takes, whichever the present item is; None where that is not known.

        One that the rest of the array does not begin with changes nothing about it.
        """
        frame, below = stack.frame, stack.below
        assert not isinstance(frame, RawFrame), "raw text is around no remembered item"
        if not (isinstance(frame, ArrayFrame) and frame.seen is not None):
            costs = [
                self._speller.num_tokens(data) + cost
                for data, met in self._frame_parts(frame, goal, below)
                if (cost := self.cost_after(below, met)) is not None
            ]
            return min(costs, default=None)
        items = {_NO_ITEM}
        for data, _ in self._frame_parts(msgspec.structs.replace(frame, text=_NO_ITEM), goal, below):
            items.update(_items(data))
        most = 0
        for item in items - frame.seen:
            written = msgspec.structs.replace(frame, text=item)
            after = written.after_value(frozenset((goal,)))
            rest = self._best(self._frame_parts(written, goal, below), below)
            if rest is not None and after is not None:
                rest = self._laid_out((ArrayEnd(after), below), rest)
            if rest is None:
                return None
            most = max(most, rest.num_tokens)
        return most

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

    def _laid_out(self, config: Config, compact: Spelling) -> Spelling | None:
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

    def _best(self, parts: Iterable[Part], stack: Stack | None) -> Spelling | None:
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
        assert not isinstance(frame, RawFrame), "raw text is no value"
        return self._frame_parts(frame, goal, None)

    def _frame_parts(self, frame: ObjectFrame | ArrayFrame, child: int, below: Stack | None) -> Iterator[Part]:
        """How the frame ends once its child has met a goal."""
        after = frame.after_value(frozenset((child,)))
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
            rest = values.array_rest(run.rule, frame.num_items, run.counted, frame.seen, has_items=has_items)
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

    def _completes(self, config: Config, data: bytes) -> bool:
        """Whether the bytes, which would complete the text if items were not remembered, repeat none."""
        repeated = _repeats_present_item(config, data)
        if repeated is not None:
            return not repeated
        after = self._automaton.feed(config, data)
        return after is not None and _accepts(self._automaton, after)

    def _search(self, config: Config) -> Spelling | None:
        """A completion where the obvious one would repeat an item: the first that deviates from it by few bytes."""
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
                found = self._obvious(after)
                if found is not None and (not _may_repeat(*after) or self._completes(after, found.data)):
                    return self._known_along(before, current, text, found)
                pending.append((after, text))
            if len(before) > _MAX_SEARCHED:
                break
        return None

    def _known_along(self, before: dict[Config, Config | None], last: Config, text: bytes, found: Spelling) -> Spelling:
        """The completion that the search found, kept for all that it came through: it is the first one from there too.

        `text` leads from where the search began to the byte after `last`.
        """
        at: Config | None = last
        begin = len(text) - 1
        while True:
            spelling = self._speller.spell(text[begin:], found)
            assert at is not None, "the search began at one"
            self._known.put(at, spelling)
            at, begin = before[at], begin - 1
            if at is None:
                return spelling


_NO_ITEM = b"\xff"
"""No text has this byte."""


def _items(rest: bytes) -> Iterator[bytes]:
    """The items of the end of an array, each with a comma before it but for the first, perhaps."""
    text = rest.decode()
    begin = 0
    while text[begin] != "]":
        begin += text[begin] == ","
        _, end = _DECODER.raw_decode(text, begin)
        yield text[begin:end].encode()
        begin = end


_DECODER = json.JSONDecoder()
_DEVIATING = bytes(dict.fromkeys(b'"],}0123456789abcdefghijklmnopqrstuvwxyz-.{[:_ ' + bytes(range(0x20, 0x100))))


def _accepts(automaton: Automaton, config: Config) -> bool:
    position, stack = config
    if stack is not None:
        return False
    if isinstance(position, Literal):
        return bool(automaton.value_rules.of(position.goals, None).met_by_literal(position.text, position.number))
    return isinstance(position, Done)


def _may_repeat(position: Position, stack: Stack | None) -> bool:
    """Whether what would complete the text, if items were not remembered, might repeat one."""
    if isinstance(position, (ArrayStart, ArrayEnd)) and _must_go_on(position.frame):
        return True
    while stack is not None and stack.is_remembered:
        frame, stack = stack.frame, stack.below
        if isinstance(frame, ArrayFrame) and (frame.is_repeating() or _must_go_on(frame)):
            return True
    return False


def _repeats_present_item(config: Config, data: bytes) -> bool | None:
    """Whether the present item ends as one that occurred; None where more than that matters."""
    position, stack = config
    if isinstance(position, (ArrayStart, ArrayEnd)) and position.frame.seen is not None:
        return None
    frame: ArrayFrame | None = None
    while stack is not None and stack.is_remembered:
        if isinstance(stack.frame, ArrayFrame) and stack.frame.seen is not None:
            if frame is not None:
                return None
            frame = stack.frame
        stack = stack.below
    if frame is None or not frame.all_may_close() or not all(run.rule.is_unique for run in frame.runs):
        return None
    text, whole = frame.text, frame.text + data
    return any(
        one.startswith(text) and whole.startswith(one) and whole[len(one) : len(one) + 1] in (b",", b"]")
        for one in frame.seen or ()
    )


def must_go_on(stack: Stack | None) -> bool:
    """Whether items must follow the present one that are unlike it and all before it."""
    while stack is not None and stack.is_remembered:
        if isinstance(stack.frame, ArrayFrame) and _must_go_on(stack.frame):
            return True
        stack = stack.below
    return False


def _must_go_on(frame: ArrayFrame) -> bool:
    """Whether the items that complete the array must be unlike its others."""
    return frame.seen is not None and not frame.all_may_close()


def _text_parts(texts: TextSet, prefix: bytes) -> Iterator[Part]:
    for text in nsmallest(_MAX_COMPARED, texts.starting(prefix), key=len):
        yield from ((text[len(prefix) :], goal) for goal in texts.goals(text))
