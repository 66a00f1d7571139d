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

from weakref import WeakValueDictionary

from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import ArrayFrame, ArrayRun, Frame, Goals, ObjectFrame, ObjectRun
from specdec.grammars.lexemes import BODY, CLOSED, NumberAutomaton
from specdec.grammars.positions import (
    AfterKey,
    ArrayEnd,
    ArrayStart,
    Completed,
    Done,
    Key,
    Literal,
    ObjectEnd,
    ObjectNext,
    ObjectStart,
    Position,
    String,
    Value,
)
from specdec.grammars.rules import Rule
from specdec.grammars.texts import TextSet
from specdec.grammars.walk import DEAD

UNBOUNDED = 2**200
"""More code points than any text has, and any schema asks for."""


class Stack:
    """The frames around a position, innermost first; interned, so that equality is identity."""

    __slots__ = ("__weakref__", "below", "depth", "frame")

    def __init__(self, frame: Frame, below: Stack | None) -> None:
        self.frame = frame
        self.below = below
        self.depth: int = 1 if below is None else below.depth + 1


class Lexemes:
    """The byte automata of one vocabulary."""

    def __init__(self, string_steps: list[list[int]], integers: NumberAutomaton, numbers: NumberAutomaton) -> None:
        self.string_steps = string_steps
        self.integers = integers
        self.numbers = numbers


class ValueRules:
    """The rules of several goals, side by side, as a value position needs them."""

    def __init__(self, goals: Goals, rules: list[Rule], lexemes: Lexemes) -> None:
        members = [(goal, rules[goal]) for goal in goals]
        self.literals = TextSet((text, goal) for goal, rule in members for text in rule.literals)
        self.strings = TextSet((text, goal) for goal, rule in members for text in rule.strings)
        self.number_goals = frozenset(goal for goal, rule in members if rule.numbers)
        self.integer_goals = frozenset(goal for goal, rule in members if rule.integers)
        self.numbers = lexemes.numbers if self.number_goals else lexemes.integers if self.integer_goals else None
        ranges: dict[tuple[int, int], set[int]] = {}
        for goal, rule in members:
            for one in rule.lengths:
                high = UNBOUNDED if one.max_length is None else one.max_length
                ranges.setdefault((one.min_length, high), set()).add(goal)
        self.lengths = [(low, high, frozenset(met)) for (low, high), met in ranges.items()]
        bounds = [bound for low, high, _ in self.lengths for bound in (low, high + 1) if bound < UNBOUNDED]
        self.length_saturation = max(bounds, default=0)
        self.objects = tuple(ObjectRun(goal, shape) for goal, rule in members for shape in rule.objects)
        self.arrays = tuple(ArrayRun(goal, shape) for goal, rule in members for shape in rule.arrays)
        self.has_strings = bool(self.strings or self.lengths)

    def met_by_literal(self, text: bytes | None, number: int) -> frozenset[int]:
        """The goals met if null, true, false or the number ends here."""
        met = self.literals.goals(text)
        if self.numbers is not None and number != DEAD:
            if self.numbers.is_integer[number]:
                met |= self.integer_goals
            if self.numbers.is_number[number]:
                met |= self.number_goals
        return met

    def met_by_length(self, length: int) -> frozenset[int]:
        """The goals met by any string of so many code points."""
        if len(self.lengths) == 1:
            low, high, met = self.lengths[0]
            return met if low <= length <= high else frozenset()
        return frozenset[int]().union(*(met for low, high, met in self.lengths if low <= length <= high))

    def fits_length(self, length: int) -> bool:
        """Whether some string may have so many code points or more."""
        return any(length <= high for _, high, _ in self.lengths)


Config = tuple[Position, Stack | None]


class Automaton:
    """The transitions of one grammar. Its caches change no result."""

    def __init__(self, rules: list[Rule], lexemes: Lexemes) -> None:
        self._rules = rules
        self._lexemes = lexemes
        self._value_rules: BoundedCache[Goals, ValueRules] = BoundedCache(512)
        self._keys: BoundedCache[ObjectFrame, TextSet] = BoundedCache(256)
        self._stacks: WeakValueDictionary[tuple[Frame, Stack | None], Stack] = WeakValueDictionary()

    start: Config = (Value((0,)), None)

    def value_rules(self, goals: Goals) -> ValueRules:
        rules = self._value_rules.get(goals)
        if rules is None:
            rules = ValueRules(goals, self._rules, self._lexemes)
            self._value_rules.put(goals, rules)
        return rules

    def special_keys(self, frame: ObjectFrame) -> TextSet:
        """The keys of `ObjectFrame.special_keys`."""
        keys = self._keys.get(frame)
        if keys is None:
            keys = TextSet((key, 0) for key in frame.special_keys())
            self._keys.put(frame, keys)
        return keys

    def push(self, frame: Frame, below: Stack | None) -> Stack:
        stack = self._stacks.get((frame, below))
        if stack is None:
            stack = self._stacks[frame, below] = Stack(frame, below)
        return stack

    def feed(self, config: Config, data: bytes) -> Config | None:
        """The configuration after the bytes; None where they leave the language."""
        position, stack = config
        begin = 0
        while begin < len(data):
            step = self._feed_some(position, stack, data, begin)
            if step is None:
                return None
            position, stack, begin = step
            if isinstance(position, Completed):
                position, stack = self.resolve(position, stack)
        return position, stack

    def resolve(self, completed: Completed, stack: Stack | None) -> Config:
        """Tell the frame around a completed value which goals it met."""
        if stack is None:
            return Done(), None
        frame = stack.frame
        if isinstance(frame, ObjectFrame):
            return ObjectEnd(frame.after_value(completed.goals)), stack.below
        return ArrayEnd(frame.after_value(completed.goals)), stack.below

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
        match position:
            case Value():
                rules = self.value_rules(position.goals)
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
            return None if continued is None else (Key(continued, BODY, b""), stack, begin + 1)
        if isinstance(position, ObjectEnd) and byte == ord(","):
            continued = position.frame.continued()
            return None if continued is None else (ObjectNext(continued), stack, begin + 1)
        return None

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
        rules = self.value_rules(position.goals)
        byte = data[begin]
        if byte == ord('"'):
            text = b"" if rules.strings else None
            return (String(position.goals, BODY, 0, text), stack, begin + 1) if rules.has_strings else None
        if byte == ord("{"):
            return (ObjectStart(ObjectFrame(rules.objects)), stack, begin + 1) if rules.objects else None
        if byte == ord("["):
            return (ArrayStart(ArrayFrame(rules.arrays)), stack, begin + 1) if rules.arrays else None
        return self._feed_literal(literal_start(position, rules), stack, data, begin)

    def _feed_literal(
        self, position: Literal, stack: Stack | None, data: bytes, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
        rules = self.value_rules(position.goals)
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
        rules = self.value_rules(position.goals)
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

    def _feed_key(
        self, position: Key, stack: Stack | None, data: bytes, begin: int
    ) -> tuple[Position, Stack | None, int] | None:
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

    def _scan_string(self, state: int, data: bytes, begin: int) -> tuple[int, int, int]:
        """(state, end, code points begun) after the bytes up to the closing quote or the end of the data."""
        steps = self._lexemes.string_steps
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


def literal_start(position: Value, rules: ValueRules) -> Literal:
    """Before the first byte of null, true, false or a number."""
    return Literal(
        position.goals,
        b"" if rules.literals else None,
        DEAD if rules.numbers is None else NumberAutomaton.START,
    )


def _close(frame: Frame, stack: Stack | None, begin: int) -> tuple[Position, Stack | None, int] | None:
    met = frame.closed()
    return (Completed(met), stack, begin + 1) if met else None
