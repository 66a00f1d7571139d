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
from collections.abc import Sequence

from specdec.grammars.combinations import known_combinations
from specdec.grammars.frame_keys import FrameKeys
from specdec.grammars.frames import ArrayFrame, ArrayRun, Frame, ObjectFrame, RawFrame
from specdec.grammars.layout import WHITESPACE, Flexible, Pretty
from specdec.grammars.lexemes import BODY
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
    Value,
)
from specdec.grammars.program import Program
from specdec.grammars.raw_text import RawText
from specdec.grammars.repetition import Repetitions
from specdec.grammars.rules import Rule
from specdec.grammars.scalar_steps import ScalarSteps, Step, literal_start
from specdec.grammars.stacks import Config, Stack, Stacks
from specdec.grammars.stopwatch import Stopwatch
from specdec.grammars.value_rules import KnownValueRules
from specdec.grammars.walk import DEAD

_FIRST_OF_VALUES = b'"1{[-tfn023456789'
_LIKELY_FIRST = bytes(dict.fromkeys(b'a1",]}0:{[' + bytes(range(256))))
_MAX_PREPARED = 200
"""Combinations of goals; the cache holds more."""
_MAX_LOADED = 250
"""Rules; the same holds."""


class Automaton:
    """The transitions of one grammar. Its caches change no result."""

    def __init__(self, program: Program, lexicon: Lexicon) -> None:
        self._rules = program.rules
        self._raw_text = program.raw_text
        self.layout = program.layout
        self._lexicon = lexicon
        self.value_rules = KnownValueRules(program.rules, program.canonical_goals, lexicon)
        self._stacks = Stacks()
        self._repetitions = Repetitions(self._feed, self.possible_bytes)
        self.keys = FrameKeys(lexicon)
        self._scalars = ScalarSteps(lexicon, self.keys, self.value_rules)
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
        stack = None if value.after is None else self._stacks.push(RawFrame(value.after), None)
        begun = self._feed((Value((value.goal,)), stack), value.begun)
        assert begun is not None, "a value that begins otherwise has no such state"
        return begun

    def pushed(self, frames: Sequence[Frame], stack: Stack | None) -> Stack | None:
        """The stack with other frames on it, of which the first will be the innermost."""
        for frame in reversed(frames):
            stack = self._stacks.push(frame, stack)
        return stack

    def special_step(self, config: Config, token_id: int) -> Config | None:
        """The configuration after a token without bytes; None where it is not allowed."""
        position, stack = config
        if (
            isinstance(position, Literal)
            and stack is not None
            and isinstance(stack.frame, RawFrame)
            and self.value_rules.of(position.goals, stack).met_by_literal(position.text, position.number)
        ):
            # A number that may end here: what follows is raw text.
            position = Raw(stack.frame.after)
        if not isinstance(position, Raw):
            return None
        state = self.raw_text.special.get(position.state, {}).get(token_id)
        return None if state is None else self.enter_raw(state)

    def prepare(self, stopwatch: Stopwatch) -> None:
        """Build ahead the automata that walks need, until half of the time to compile is over."""
        classed = ((number,) for number, rule in enumerate(self._rules) if _has_classed_keys(rule))
        combined = itertools.islice(known_combinations(self._rules), _MAX_PREPARED)
        for goals in itertools.chain(classed, combined):
            if stopwatch.is_half_over():
                return
            objects = self.value_rules.of(goals, None).objects
            frame = ObjectFrame(objects).continued() if objects else None
            if frame is not None:
                self.keys.prepare(frame)

    def load(self) -> None:
        """Set up ahead what the first walk over each rule would wait for; its automata are built."""
        for number in range(min(len(self._rules), _MAX_LOADED)):
            self.value_rules.of((number,), None)

    def feed(self, config: Config, data: bytes) -> Config | None:
        """The configuration after the bytes; None where they leave the language."""
        after = self._feed(config, data)
        if after is None or not self._repetitions.can_differ(after):
            return None
        return after

    def can_differ_from_another(self, config: Config, text: bytes) -> bool:
        """Whether a remembered item can become one that did not occur, nor is another that begins with the text.

        `text` goes on from what is written of the item. False where it is not seen at once.
        """
        return self._repetitions.can_differ_from_another(config, text)

    def can_differ_from_any(self, config: Config) -> bool:
        """The same, whatever the other; False where it is not seen at once."""
        return self._repetitions.can_differ_from_any(config)

    def _feed(self, config: Config, data: bytes) -> Config | None:
        """What `feed` does, but for asking whether a remembered item can still become another."""
        position, stack = config
        begin = 0
        while begin < len(data):
            is_remembered = (stack is not None and stack.is_remembered) or (
                isinstance(position, (ArrayStart, ArrayEnd)) and position.frame.seen is not None
            )
            step = self._feed_some(position, stack, data, begin)
            if step is None:
                return None
            if is_remembered:
                depth = 0 if stack is None else stack.depth
                # The byte after the opening bracket is the first one of an item.
                depth += isinstance(position, ArrayStart)
                after, stack, end = step
                stack = self._stacks.remember(stack, data[begin:end], depth)
                position, begin = after, end
            else:
                position, stack, begin = step
            if isinstance(position, Completed):
                resolved = self.resolve(position, stack)
                if resolved is None:
                    return None
                position, stack = resolved
        return position, stack

    def possible_bytes(self, config: Config) -> bytes:
        """In a remembered item, which is compact: those that `_feed` takes, and others where that is not clear."""
        position, stack = config
        if isinstance(position, Value):
            rules = self.value_rules.of(position.goals, stack)
            return rules.opening_bytes + bytes(rules.literal_bytes)
        if isinstance(position, (AfterKey, ObjectStart, ObjectNext, ObjectEnd, ArrayEnd)):
            return self._bare_structure_bytes(position)
        if isinstance(position, ArrayStart):
            return self._bare_structure_bytes(position) + _FIRST_OF_VALUES
        if isinstance(position, Key) and not position.frame.takes_free_keys():
            is_classed = self.keys.classes(position.frame) is not None
            texts = self.keys.candidates(position.frame) if is_classed else self.keys.special(position.frame)
            return texts.following(position.text)
        if isinstance(position, String) and position.text is not None:
            rules = self.value_rules.of(position.goals, stack)
            if not rules.terms:
                return rules.strings.following(position.text)
        return _LIKELY_FIRST

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
        if self.layout is None and type(position) in _STRUCTURE_BYTES:
            return self._step_structure(position, stack, byte)
        step = self._feed_some(position, stack, bytes((byte,)), 0)
        return None if step is None else (step[0], step[1])

    def first_item(self, position: ArrayStart, stack: Stack | None) -> Config | None:
        """Before the first item, taking no byte; None where the array must be empty."""
        return self._wait_for_item(position.frame, stack)

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
        if isinstance(position, Value):
            return self.value_rules.of(position.goals, None).opening_bytes
        return _STRUCTURE_BYTES.get(type(position), b"")

    def _feed_some(self, position: Position, stack: Stack | None, data: bytes, begin: int) -> Step | None:
        """Take at least one byte, or complete the position: (position, stack, bytes taken so far)."""
        if self.layout is not None and isinstance(position, _LAID_OUT) and not _is_compact(position, stack):
            return self._feed_laid_out(position, stack, data, begin)
        return self._feed_bare(position, stack, data, begin)

    def _feed_laid_out(self, position: Position, stack: Stack | None, data: bytes, begin: int) -> Step | None:
        byte, layout = data[begin], self.layout
        if isinstance(position, Indent):
            if byte != position.pending[0]:
                return None
            pending = position.pending[1:]
            return (Indent(position.after, pending) if pending else position.after), stack, begin + 1
        if isinstance(position, Closing):
            is_closer = byte == (ord("}") if isinstance(position.frame, ObjectFrame) else ord("]"))
            closed = _close(position.frame, stack) if is_closer else None
            return None if closed is None else (*closed, begin + 1)
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
                    waiting = self._wait_for_item(position.frame, stack)
                    return None if waiting is None else (*self._on_line(layout, waiting), begin + 1)
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
    def _on_line(layout: Pretty, waiting: Config) -> Config:
        value, stack = waiting
        assert isinstance(value, Value), "an item is waited for"
        assert stack is not None, "in the array's frame"
        return layout.member(value, stack.depth, is_on_line=True), stack

    def _feed_bare(self, position: Position, stack: Stack | None, data: bytes, begin: int) -> Step | None:
        match position:
            case String():
                return self._scalars.feed_string(position, stack, data, begin)
            case Key():
                return self._scalars.feed_key(position, stack, data, begin)
            case Literal():
                return self._scalars.feed_literal(position, stack, data, begin)
            case Value():
                return self._feed_value(position, stack, data, begin)
            case ArrayStart() if data[begin] != ord("]"):
                return self._feed_item(position.frame, stack, data, begin)
            case Raw():
                return self._feed_raw(position, data, begin)
        after = self._step_structure(position, stack, data[begin])
        return None if after is None else (*after, begin + 1)

    def _step_structure(self, position: Position, stack: Stack | None, byte: int) -> Config | None:
        """One byte, at a position whose bytes are of structure alone."""
        match position:
            case ObjectEnd():
                if byte == ord("}"):
                    return _close(position.frame, stack)
                continued = position.frame.continued() if byte == ord(",") else None
                return None if continued is None else (ObjectNext(continued), stack)
            case ObjectNext() | ObjectStart():
                if byte == ord('"'):
                    return self._begin_key(position.frame, stack)
                is_closed = byte == ord("}") and isinstance(position, ObjectStart)
                return _close(position.frame, stack) if is_closed else None
            case AfterKey() if byte == ord(":"):
                return Value(position.frame.children()), self._stacks.push(position.frame, stack)
            case ArrayEnd() if byte == ord(","):
                return self._wait_for_item(position.frame, stack)
            case ArrayEnd() | ArrayStart() if byte == ord("]"):
                return _close(position.frame, stack)
        return None

    def _begin_key(self, frame: ObjectFrame, stack: Stack | None) -> Config | None:
        continued = frame.continued()
        if continued is None:
            return None
        classes = self.keys.classes(continued)
        return Key(continued, BODY if classes is None else classes.automaton.start, b""), stack

    def _feed_raw(self, position: Raw, data: bytes, begin: int) -> Step | None:
        state, end = self.raw_text.scan(position.state, data, begin)
        return None if state == DEAD else (*self.enter_raw(state), end)

    def _wait_for_item(self, frame: ArrayFrame, stack: Stack | None) -> Config | None:
        continued = frame.continued()
        return None if continued is None else (Value(continued.children()), self._stacks.push(continued, stack))

    def _feed_item(self, frame: ArrayFrame, stack: Stack | None, data: bytes, begin: int) -> Step | None:
        waiting = self._wait_for_item(frame, stack)
        return None if waiting is None else self._feed_some(*waiting, data, begin)

    def _feed_value(self, position: Value, stack: Stack | None, data: bytes, begin: int) -> Step | None:
        rules = self.value_rules.of(position.goals, stack)
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
        return self._scalars.feed_literal(literal_start(position, rules), stack, data, begin)

    @staticmethod
    def _array_frame(runs: tuple[ArrayRun, ...]) -> ArrayFrame:
        """A new array, whose items are remembered as long as some alternative forbids repetition.

        The others go on past a repetition. Compiling has seen to it that they live under the rules for remembered items
        (meetings.py).
        """
        return ArrayFrame(runs, seen=frozenset() if any(run.rule.is_unique for run in runs) else None)


def _has_classed_keys(rule: Rule) -> bool:
    return any(free.language is not None for shape in rule.objects for free in shape.free)


_STRUCTURE_BYTES: dict[type, bytes] = {
    AfterKey: b":", ObjectStart: b'"}', ObjectNext: b'"', ObjectEnd: b",}", ArrayStart: b"]", ArrayEnd: b",]",
}  # fmt: skip
"""Those that may come at a position whose bytes are of structure alone, or before the first item."""
_LAID_OUT = (Indent, Gap, Closing, Value, AfterKey, ObjectStart, ObjectNext, ObjectEnd, ArrayStart, ArrayEnd)
"""Positions between tokens of JSON."""


def _is_compact(position: Position, stack: Stack | None) -> bool:
    """Whether no whitespace may come: within arrays of unique items, and before the root."""
    if isinstance(position, (ArrayStart, ArrayEnd)) and position.frame.seen is not None:
        return True
    return isinstance(position, Value) if stack is None else stack.is_remembered


def _close(frame: ObjectFrame | ArrayFrame, stack: Stack | None) -> Config | None:
    met = frame.closed()
    return (Completed(met), stack) if met else None
