"""The automaton: from a position and a stack of frames, over bytes, to the next.

JSON is a visibly pushdown language: brackets push and pop, everything else stays in the innermost frame. So a
state is a position in the top frame and a persistent stack; scalars are byte automata, objects and arrays are
frames (frames.py), and a value position carries the goals of all runs that wait for it.

Liveness. Every rule is satisfiable (goals.py), so every run of a frame can be completed on its own: required keys
have values, free keys are endless, counters reach their minimum before their maximum. A position keeps only goals
whose scalar is still possible. Hence each goal of a position can be met, each met goal lets at least the run that
asked for it go on, and so up the stack: every state that `feed` returns can be completed.

Soundness is the same induction downwards: a goal is reported as met only by a text in its rule.
"""

from __future__ import annotations

import itertools
import json
from weakref import WeakValueDictionary

from specdec.grammars.any_order import KeyRule
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.combinations import known_combinations
from specdec.grammars.frames import ArrayFrame, ArrayRun, Frame, Goals, KeyClass, ObjectFrame, RawFrame
from specdec.grammars.layout import WHITESPACE, Flexible, Pretty
from specdec.grammars.lexemes import BODY, CLOSED
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.numerals import NumeralAutomaton
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
    Value,
)
from specdec.grammars.program import Program
from specdec.grammars.raw_text import RawText
from specdec.grammars.rules import ArrayRule
from specdec.grammars.stopwatch import Stopwatch
from specdec.grammars.text_automaton import TextAutomaton
from specdec.grammars.texts import TextSet
from specdec.grammars.unique import can_be_remembered
from specdec.grammars.value_rules import KeyClasses, ValueRules
from specdec.grammars.walk import DEAD

_LIKELY_FIRST = bytes(dict.fromkeys(b'a1",]}0:{[' + bytes(range(256))))


_MAX_PREPARED = 200
"""Combinations of goals; the cache holds more."""


class Stack:
    """The frames around a position, innermost first; interned, so that equality is identity."""

    __slots__ = ("__weakref__", "below", "depth", "frame", "is_remembered")

    def __init__(self, frame: Frame, below: Stack | None) -> None:
        self.frame = frame
        self.below = below
        self.depth: int = 1 if below is None else below.depth + 1
        self.is_remembered: bool = (isinstance(frame, ArrayFrame) and frame.seen is not None) or (
            below is not None and below.is_remembered
        )
        """Whether some array around remembers the text of its present item."""


Config = tuple[Position, Stack | None]


class Automaton:
    """The transitions of one grammar. Its caches change no result."""

    def __init__(self, program: Program, lexicon: Lexicon) -> None:
        self._rules = program.rules
        self._canonical_goals = program.canonical_goals
        self._raw_text = program.raw_text
        self.layout = program.layout
        self._lexicon = lexicon
        self._value_rules: BoundedCache[tuple[Goals, bool], ValueRules] = BoundedCache(512)
        self._keys: BoundedCache[ObjectFrame, TextSet] = BoundedCache(256)
        self._key_classes: BoundedCache[tuple[tuple[KeyRule, ...], frozenset[KeyClass]], KeyClasses] = BoundedCache(256)
        self._classes_of_frame: BoundedCache[ObjectFrame, KeyClasses] = BoundedCache(256)
        self._candidates: BoundedCache[ObjectFrame, TextSet] = BoundedCache(256)
        self._dead_keys: BoundedCache[ObjectFrame, list[bytes]] = BoundedCache(256)
        self._can_be_remembered: dict[ArrayRule, bool] = {}
        self._stacks: WeakValueDictionary[tuple[Frame, Stack | None], Stack] = WeakValueDictionary()
        self.start: Config = (Value((0,)), None) if self._raw_text is None else self.enter_raw(self._raw_text.start)

    @property
    def raw_text(self) -> RawText:
        """What Raw positions are states of."""
        assert self._raw_text is not None, "a grammar of JSON alone has no raw text"
        return self._raw_text

    def enter_raw(self, state: int) -> Config:
        """A state of the raw text, or the value that begins there."""
        value = self.raw_text.values.get(state)
        if value is None:
            return Raw(state), None
        return Value((value.goal,)), None if value.after is None else self.push(RawFrame(value.after), None)

    def special_step(self, position: Position, token_id: int) -> Config | None:
        """The configuration after a token without bytes; None where it is not allowed."""
        if not isinstance(position, Raw):
            return None
        state = self.raw_text.special.get(position.state, {}).get(token_id)
        return None if state is None else self.enter_raw(state)

    def value_rules(self, goals: Goals, stack: Stack | None) -> ValueRules:
        """The rules of the goals, where the stack is around them: remembered items have one spelling."""
        canonical = goals[0] in self._canonical_goals or (stack is not None and stack.is_remembered)
        rules = self._value_rules.get((goals, canonical))
        if rules is None:
            rules = ValueRules(goals, self._rules, self._lexicon, canonical=canonical)
            self._value_rules.put((goals, canonical), rules)
        return rules

    def prepare(self, stopwatch: Stopwatch) -> None:
        """Work out ahead what positions of several goals need, until half of the time to compile is over."""
        for goals in itertools.islice(known_combinations(self._rules), _MAX_PREPARED):
            if stopwatch.is_half_over():
                return
            self.value_rules(goals, None)

    def special_keys(self, frame: ObjectFrame) -> TextSet:
        """The keys of `ObjectFrame.special_keys`."""
        keys = self._keys.get(frame)
        if keys is None:
            keys = TextSet((key, 0) for key in frame.special_keys())
            self._keys.put(frame, keys)
        return keys

    def candidate_keys(self, frame: ObjectFrame) -> TextSet:
        """The declared keys that may come next."""
        keys = self._candidates.get(frame)
        if keys is None:
            keys = TextSet((key, 0) for run in frame.runs for key in run.rule.candidates(*run.progress))
            self._candidates.put(frame, keys)
        return keys

    def key_classes(self, frame: ObjectFrame) -> KeyClasses | None:
        """The classes that a free key of the frame may have; None where all free keys are alike."""
        found = self._classes_of_frame.get(frame)
        if found is not None:
            return found
        classes = frame.open_classes()
        if classes is None:
            return None
        known = frame.rules(), classes
        found = self._key_classes.get(known)
        if found is None:
            found = KeyClasses(*known, self._lexicon)
            self._key_classes.put(known, found)
        self._classes_of_frame.put(frame, found)
        return found

    def dead_keys(self, frame: ObjectFrame, classes: KeyClasses) -> list[bytes]:
        """The shortest beginnings of keys, spelt, that only keys that have occurred begin with."""
        if classes.is_endless:
            return []
        known = self._dead_keys.get(frame)
        if known is not None:
            return known
        dead: dict[bytes, None] = {}
        seen = [key[:-1] for key in frame.seen]
        texts = [json.loads(b'"' + key + b'"') for key in seen]
        for text in texts:
            for length in range(len(text) + 1):
                if classes.is_used_up(text[:length], texts):
                    dead[json.dumps(text[:length], ensure_ascii=False)[1:-1].encode()] = None
                    break
        self._dead_keys.put(frame, list(dead))
        return list(dead)

    def push(self, frame: Frame, below: Stack | None) -> Stack:
        stack = self._stacks.get((frame, below))
        if stack is None:
            stack = self._stacks[frame, below] = Stack(frame, below)
        return stack

    def feed(self, config: Config, data: bytes) -> Config | None:
        """The configuration after the bytes; None where they leave the language."""
        after = self._feed(config, data)
        if after is None or not self._can_differ(after):
            return None
        return after

    def _feed(self, config: Config, data: bytes) -> Config | None:
        """What `feed` does, but for asking whether a remembered item can still become another."""
        position, stack = config
        begin = 0
        while begin < len(data):
            is_remembered = (stack is not None and stack.is_remembered) or (
                isinstance(position, (ArrayStart, ArrayEnd)) and position.frame.seen is not None
            )
            # Remembered items are followed byte by byte.
            step = self._feed_some(position, stack, data[: begin + 1] if is_remembered else data, begin)
            if step is None:
                return None
            if is_remembered:
                depth = 0 if stack is None else stack.depth
                # The byte after the opening bracket is the first one of an item.
                depth += isinstance(position, ArrayStart)
                after, stack, end = step
                stack = self._remember(stack, data[begin:end], depth)
                position, begin = after, end
            else:
                position, stack, begin = step
            if isinstance(position, Completed):
                resolved = self.resolve(position, stack)
                if resolved is None:
                    return None
                position, stack = resolved
        return position, stack

    def _remember(self, stack: Stack | None, data: bytes, depth: int) -> Stack | None:
        """The stack with the bytes added to the items that its frames up to a depth remember."""
        frames: list[Frame] = []
        below = stack
        while below is not None and (below.depth > depth or below.is_remembered):
            frames.append(below.frame)
            below = below.below
        for frame in reversed(frames):
            level = 1 if below is None else below.depth + 1
            is_extended = data and level <= depth and isinstance(frame, ArrayFrame) and frame.seen is not None
            below = self.push(frame.with_text(data) if is_extended else frame, below)  # type: ignore[union-attr]
        return below

    def _can_differ(self, config: Config) -> bool:
        """Whether an item that may still become one that occurred can become another as well."""
        below = config[1]
        while below is not None and below.is_remembered:
            if isinstance(below.frame, ArrayFrame) and below.frame.is_repeating():
                return self._finds_another(config, below.depth)
            below = below.below
        return True

    def _finds_another(self, config: Config, depth: int) -> bool:
        pending = [config]
        while pending:
            current = pending.pop()
            below = current[1]
            while below is not None and below.depth > depth:
                below = below.below
            assert below is not None, "the item is not complete"
            frame = below.frame
            assert isinstance(frame, ArrayFrame), "only arrays remember"
            text, seen = frame.text, frame.seen or ()
            repeating = {one[len(text)] for one in seen if len(one) > len(text) and one.startswith(text)}
            for byte in _LIKELY_FIRST:
                if byte not in repeating and self._feed(current, bytes((byte,))) is not None:
                    return True
            for byte in repeating:
                after = self._feed(current, bytes((byte,)))
                if after is not None and after[1] is not None and after[1].depth >= depth:
                    pending.append(after)
        return False

    def resolve(self, completed: Completed, stack: Stack | None) -> Config | None:
        """Tell the frame around a completed value which goals it met; None where the value occurred before."""
        if stack is None:
            return Done(), None
        frame = stack.frame
        if isinstance(frame, ObjectFrame):
            return ObjectEnd(frame.after_value(completed.goals)), stack.below
        if isinstance(frame, RawFrame):
            return self.enter_raw(frame.after)
        after = frame.after_value(completed.goals)
        return None if after is None else (ArrayEnd(after), stack.below)

    def step(self, position: Position, stack: Stack | None, byte: int) -> Config | None:
        """One byte, without resolving a completed value; the mask walk takes structure by it."""
        step = self._feed_some(position, stack, bytes((byte,)), 0)
        return None if step is None else (step[0], step[1])

    def first_item(self, position: ArrayStart, stack: Stack | None) -> Config | None:
        """Before the first item, taking no byte; None where the array must be empty."""
        waiting = self._wait_for_item(position.frame, stack, 0)
        return None if waiting is None else (waiting[0], waiting[1])

    def structure_bytes(self, position: Position) -> bytes:
        """The bytes other than those of a scalar that `step` may accept."""
        if self.layout is None:
            return self._bare_structure_bytes(position)
        match position:
            case Indent():
                return position.pending[:1]
            case Closing():
                return b"}" if isinstance(position.frame, ObjectFrame) else b"]"
            case Gap():
                return self._bare_structure_bytes(position.after) + WHITESPACE
        return self._bare_structure_bytes(position) + WHITESPACE

    def needs_line(self, position: ArrayStart, stack: Stack | None) -> bool:
        """Whether a new line comes before the first item."""
        return not (self.layout is None or isinstance(self.layout, Flexible) or _is_compact(position, stack))

    def _bare_structure_bytes(self, position: Position) -> bytes:
        match position:
            case Value():
                rules = self.value_rules(position.goals, None)
                return (
                    (b'"' if rules.has_strings else b"")
                    + (b"[" if rules.arrays else b"")
                    + (b"{" if rules.objects else b"")
                )
            case AfterKey():
                return b":"
            case ObjectStart():
                return b'"}'
            case ObjectNext():
                return b'"'
            case ObjectEnd():
                return b",}"
            case ArrayStart():
                return b"]"
            case ArrayEnd():
                return b",]"
        return b""

    def _feed_some(
        self, position: Position, stack: Stack | None, data: bytes, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
        """Take at least one byte, or complete the position: (position, stack, bytes taken so far)."""
        if self.layout is not None and isinstance(position, _LAID_OUT) and not _is_compact(position, stack):
            return self._feed_laid_out(position, stack, data, begin)
        return self._feed_bare(position, stack, data, begin)

    def _feed_laid_out(
        self, position: Position, stack: Stack | None, data: bytes, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
        byte, layout = data[begin], self.layout
        if isinstance(position, Indent):
            if byte != position.pending[0]:
                return None
            pending = position.pending[1:]
            return (Indent(position.after, pending) if pending else position.after), stack, begin + 1
        if isinstance(position, Closing):
            is_closer = byte == (ord("}") if isinstance(position.frame, ObjectFrame) else ord("]"))
            return _close(position.frame, stack, begin) if is_closer else None
        if isinstance(layout, Flexible):
            bare, num_spaces = (position.after, position.num_spaces) if isinstance(position, Gap) else (position, 0)
            if byte not in WHITESPACE:
                return self._feed_bare(bare, stack, data, begin)
            gap = layout.gap(bare, num_spaces)
            return None if gap is None else (gap, stack, begin + 1)
        assert isinstance(layout, Pretty), "compact has no positions of its own"
        depth = 0 if stack is None else stack.depth
        if byte == ord("\n"):
            match position:
                case ObjectStart() if position.frame.continued() is not None:
                    return layout.member(ObjectNext(position.frame), depth + 1, is_on_line=True), stack, begin + 1
                case ObjectEnd() | ArrayEnd() if position.frame.closed():
                    return layout.line(position.frame, depth), stack, begin + 1
                case ArrayStart():
                    waiting = self._wait_for_item(position.frame, stack, begin + 1)
                    return None if waiting is None else self._on_line(layout, waiting)
            return None
        if byte != ord("}") and byte != ord("]"):
            if isinstance(position, (ObjectStart, ArrayStart)):
                return None
        elif isinstance(position, (ObjectEnd, ArrayEnd)):
            return None
        after = self._feed_bare(position, stack, data, begin)
        if after is None:
            return None
        following = after[0]
        if isinstance(position, AfterKey) and isinstance(following, Value):
            return layout.value(following), after[1], after[2]
        if isinstance(position, (ObjectEnd, ArrayEnd)) and isinstance(following, (ObjectNext, Value)):
            return layout.member(following, depth + 1, is_on_line=False), after[1], after[2]
        return after

    @staticmethod
    def _on_line(layout: Pretty, waiting: tuple[Position, Stack | None, int]) -> tuple[Position, Stack | None, int]:
        value, stack, end = waiting
        assert isinstance(value, Value), "an item is waited for"
        assert stack is not None, "in the array's frame"
        return layout.member(value, stack.depth, is_on_line=True), stack, end

    def _feed_bare(
        self, position: Position, stack: Stack | None, data: bytes, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
        match position:
            case String():
                return self._feed_string(position, stack, data, begin)
            case Key():
                return self._feed_key(position, stack, data, begin)
            case Literal():
                return self._feed_literal(position, stack, data, begin)
            case Value():
                return self._feed_value(position, stack, data, begin)
            case ArrayStart():
                if data[begin] == ord("]"):
                    return _close(position.frame, stack, begin)
                return self._feed_item(position.frame, stack, data, begin)
            case Raw():
                return self._feed_raw(position, data, begin)
            case Done():
                return None
        byte = data[begin]
        if isinstance(position, AfterKey) and byte == ord(":"):
            frame = position.frame
            return Value(frame.children()), self.push(frame, stack), begin + 1
        if isinstance(position, ArrayEnd):
            if byte == ord("]"):
                return _close(position.frame, stack, begin)
            return self._wait_for_item(position.frame, stack, begin + 1) if byte == ord(",") else None
        if isinstance(position, (ObjectStart, ObjectEnd)) and byte == ord("}"):
            return _close(position.frame, stack, begin)
        if isinstance(position, (ObjectStart, ObjectNext)) and byte == ord('"'):
            continued = position.frame.continued()
            if continued is None:
                return None
            classes = self.key_classes(continued)
            return Key(continued, BODY if classes is None else classes.automaton.start, b""), stack, begin + 1
        if isinstance(position, ObjectEnd) and byte == ord(","):
            continued = position.frame.continued()
            return None if continued is None else (ObjectNext(continued), stack, begin + 1)
        return None

    def _feed_raw(self, position: Raw, data: bytes, begin: int) -> tuple[Position, Stack | None, int] | None:
        state, end = self.raw_text.scan(position.state, data, begin)
        return None if state == DEAD else (*self.enter_raw(state), end)

    def _wait_for_item(
        self, frame: ArrayFrame, stack: Stack | None, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
        continued = frame.continued()
        return None if continued is None else (Value(continued.children()), self.push(continued, stack), begin)

    def _feed_item(
        self, frame: ArrayFrame, stack: Stack | None, data: bytes, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
        waiting = self._wait_for_item(frame, stack, begin)
        if waiting is None:
            return None
        value, pushed, _ = waiting
        return self._feed_some(value, pushed, data, begin)

    def _feed_value(
        self, position: Value, stack: Stack | None, data: bytes, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
        rules = self.value_rules(position.goals, stack)
        byte = data[begin]
        if byte == ord('"'):
            if not rules.has_strings:
                return None
            start = BODY if rules.text_automaton is None else rules.text_automaton.start
            return String(position.goals, start, 0, b"" if rules.strings else None), stack, begin + 1
        if byte == ord("{"):
            is_remembered = stack is not None and stack.is_remembered
            # Where texts are compared, a value has one of them.
            objects = rules.ordered_objects if is_remembered else rules.objects
            frame = ObjectFrame(objects, has_one_free_key=is_remembered)
            return (ObjectStart(frame), stack, begin + 1) if rules.objects else None
        if byte == ord("["):
            return (ArrayStart(self._array_frame(rules.arrays)), stack, begin + 1) if rules.arrays else None
        return self._feed_literal(literal_start(position, rules), stack, data, begin)

    def _array_frame(self, runs: tuple[ArrayRun, ...]) -> ArrayFrame:
        """A new array, whose items are remembered as long as some alternative forbids repetition.

        The others go on past a repetition. Those whose items cannot be held in a remembered array are kept alone.
        """
        free = tuple(run for run in runs if not run.rule.is_unique)
        if len(free) == len(runs):
            return ArrayFrame(runs)
        for run in free:
            if run.rule not in self._can_be_remembered:
                self._can_be_remembered[run.rule] = can_be_remembered(run.rule, self._rules, self._lexicon)
        if all(self._can_be_remembered[run.rule] for run in free):
            return ArrayFrame(runs, seen=frozenset())
        return ArrayFrame(free)

    def _feed_literal(
        self, position: Literal, stack: Stack | None, data: bytes, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
        rules = self.value_rules(position.goals, stack)
        text, number = position.text, position.number
        end = begin
        while end < len(data):
            next_number = DEAD if rules.numbers is None or number == DEAD else rules.numbers.steps[number][data[end]]
            next_text = None if text is None else text + data[end : end + 1]
            if next_text is not None and not rules.literals.begins(next_text):
                next_text = None
            if next_number == DEAD and next_text is None:
                break
            text, number = next_text, next_number
            end += 1
        met = rules.met_by_literal(text, number)
        if end < len(data):
            return (Completed(met), stack, end) if met else None
        can_go_on = (rules.numbers is not None and number != DEAD and not rules.numbers.is_final[number]) or (
            text is not None and rules.literals.continues(text)
        )
        if not can_go_on:
            return Completed(met), stack, end
        return Literal(position.goals, text, number), stack, end

    def _feed_string(
        self, position: String, stack: Stack | None, data: bytes, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
        rules = self.value_rules(position.goals, stack)
        if rules.text_automaton is not None:
            return self._feed_terms(position, rules, rules.text_automaton, stack, data, begin)
        state, end, num_begun = self._scan_string(position.state, data, begin)
        if state == DEAD:
            return None
        length = position.length + num_begun
        text = None if position.text is None else position.text + data[begin:end]
        if state == CLOSED:
            met = rules.met_by_length(length) | rules.strings.goals(text)
            return (Completed(met), stack, end) if met else None
        if text is not None and not rules.strings.begins(text):
            text = None
        if text is None and not rules.fits_length(length):
            return None
        return String(position.goals, state, min(length, rules.length_saturation), text), stack, end

    def _feed_terms(
        self,
        position: String,
        rules: ValueRules,
        automaton: TextAutomaton,
        stack: Stack | None,
        data: bytes,
        begin: int,
    ) -> tuple[Position, Stack | None, int] | None:
        """A string of which some term has an automaton; a single text may go on where the automaton does not."""
        before, state, length, end = position.state, position.state, position.length, begin
        if state != DEAD:
            before, state, length, end = automaton.scan(state, length, data, begin)
        text, text_end = _scan_text(position.text, rules.strings, data, begin)
        met: frozenset[int] = frozenset()
        if text is not None and text.endswith(b'"') and text in rules.strings:
            met |= rules.strings.goals(text)
            if state != CLOSED:
                return Completed(met), stack, text_end
        if state == CLOSED:
            met |= rules.met_by_body(before, length)
            return (Completed(met), stack, end) if met else None
        if state != DEAD and not automaton.is_live(state, length):
            state = DEAD
        if state == DEAD:
            if text is None:
                return None
            return String(position.goals, DEAD, 0, text), stack, text_end
        return String(position.goals, state, length, text), stack, end

    def _feed_key(
        self, position: Key, stack: Stack | None, data: bytes, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
        classes = self.key_classes(position.frame)
        if classes is not None:
            return self._feed_classed_key(position, classes, stack, data, begin)
        state, end, _ = self._scan_string(position.state, data, begin)
        if state == DEAD:
            return None
        text = position.text + data[begin:end]
        frame = position.frame
        if state == CLOSED:
            waiting = frame.after_key(text)
            return None if waiting is None else (AfterKey(waiting), stack, end)
        if not frame.takes_free_keys() and not self.special_keys(frame).begins(text):
            return None
        return Key(frame, state, text), stack, end

    def _feed_classed_key(
        self, position: Key, classes: KeyClasses, stack: Stack | None, data: bytes, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
        frame = position.frame
        before, state, end = position.state, position.state, begin
        if state != DEAD:
            before, state, _, end = classes.automaton.scan(state, 0, data, begin)
        candidates = self.candidate_keys(frame)
        declared, declared_end = _scan_text(position.text, candidates, data, begin)
        if declared is not None and declared.endswith(b'"') and declared in candidates:
            of_classes = classes.classes(before) if state == CLOSED else frozenset[KeyClass]()
            waiting = frame.after_key(declared, of_classes)
            return None if waiting is None else (AfterKey(waiting), stack, declared_end)
        if state == CLOSED:
            waiting = frame.after_key(position.text + data[begin:end], classes.classes(before))
            return None if waiting is None else (AfterKey(waiting), stack, end)
        if state == DEAD or not frame.takes_free_keys():
            if declared is None:
                return None
            return Key(frame, DEAD, position.text + data[begin:declared_end]), stack, declared_end
        text = position.text + data[begin:end]
        if declared is None and frame.seen and any(text.startswith(one) for one in self.dead_keys(frame, classes)):
            return None
        return Key(frame, state, text), stack, end

    def _scan_string(self, state: int, data: bytes, begin: int) -> tuple[int, int, int]:
        """(state, end, code points begun) after the bytes up to the closing quote or the end of the data."""
        steps = self._lexicon.plain_steps
        num_begun = 0
        end = begin
        while end < len(data):
            target = steps[state][data[end]]
            if target == DEAD:
                return DEAD, end, num_begun
            end += 1
            if target == CLOSED:
                return CLOSED, end, num_begun
            if state == BODY:
                num_begun += 1
            state = target
        return state, end, num_begun


_LAID_OUT = (Indent, Gap, Closing, Value, AfterKey, ObjectStart, ObjectNext, ObjectEnd, ArrayStart, ArrayEnd)
"""Positions between tokens of JSON."""


def _is_compact(position: Position, stack: Stack | None) -> bool:
    """Whether no whitespace may come: within arrays of unique items, and before the root."""
    if isinstance(position, (ArrayStart, ArrayEnd)) and position.frame.seen is not None:
        return True
    return isinstance(position, Value) if stack is None else stack.is_remembered


def literal_start(position: Value, rules: ValueRules) -> Literal:
    """Before the first byte of null, true, false or a number."""
    return Literal(
        position.goals,
        b"" if rules.literals else None,
        DEAD if rules.numbers is None else NumeralAutomaton.START,
    )


def _scan_text(text: bytes | None, texts: TextSet, data: bytes, begin: int) -> tuple[bytes | None, int]:
    """(text, end) after following the data while some single text goes on so; None where none does."""
    end = begin
    if text is None or not texts.begins(text):
        return None, end
    while end < len(data):
        following = text + data[end : end + 1]
        if not texts.begins(following):
            return None, end
        text = following
        end += 1
        if following[-1:] == b'"' and following in texts:
            break
    return text, end


def _close(
    frame: ObjectFrame | ArrayFrame, stack: Stack | None, begin: int
) -> tuple[Position, Stack | None, int] | None:
    met = frame.closed()
    return (Completed(met), stack, begin + 1) if met else None
