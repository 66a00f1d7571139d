"""ScalarSteps: the bytes inside literals, strings and keys."""

from __future__ import annotations

from specdec.grammars.frame_keys import FrameKeys
from specdec.grammars.frames import KeyClass
from specdec.grammars.lexemes import BODY, CLOSED
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.numerals import NumeralAutomaton
from specdec.grammars.positions import AfterKey, Completed, Key, Literal, Position, String, Value
from specdec.grammars.stacks import Stack
from specdec.grammars.text_automaton import TextAutomaton
from specdec.grammars.texts import TextSet
from specdec.grammars.value_rules import KeyClasses, KnownValueRules, ValueRules
from specdec.grammars.walk import DEAD

Step = tuple[Position, Stack | None, int]
"""(position, stack, bytes taken so far)."""


def literal_start(position: Value, rules: ValueRules) -> Literal:
    """Before the first byte of null, true, false or a number."""
    return Literal(
        position.goals,
        b"" if rules.literals else None,
        DEAD if rules.numbers is None else NumeralAutomaton.START,
    )


class ScalarSteps:
    """Each method takes bytes of `data` from `begin` on, up to the end of the scalar; None where none can be taken."""

    def __init__(self, lexicon: Lexicon, keys: FrameKeys, value_rules: KnownValueRules) -> None:
        self._plain_steps = lexicon.plain_steps
        self._keys = keys
        self._value_rules = value_rules

    def feed_literal(self, position: Literal, stack: Stack | None, data: bytes, begin: int) -> Step | None:
        rules = self._value_rules.of(position.goals, stack)
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

    def feed_string(self, position: String, stack: Stack | None, data: bytes, begin: int) -> Step | None:
        rules = self._value_rules.of(position.goals, stack)
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
    ) -> Step | None:
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

    def feed_key(self, position: Key, stack: Stack | None, data: bytes, begin: int) -> Step | None:
        classes = self._keys.classes(position.frame)
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
        if not frame.takes_free_keys() and not self._keys.special(frame).begins(text):
            return None
        return Key(frame, state, text), stack, end

    def _feed_classed_key(
        self, position: Key, classes: KeyClasses, stack: Stack | None, data: bytes, begin: int
    ) -> Step | None:
        frame = position.frame
        before, state, end = position.state, position.state, begin
        if state != DEAD:
            before, state, _, end = classes.automaton.scan(state, 0, data, begin)
        candidates = self._keys.candidates(frame)
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
        if declared is None and frame.seen and any(text.startswith(one) for one in self._keys.dead(frame, classes)):
            return None
        return Key(frame, state, text), stack, end

    def _scan_string(self, state: int, data: bytes, begin: int) -> tuple[int, int, int]:
        """(state, end, code points begun) after the bytes up to the closing quote or the end of the data."""
        steps = self._plain_steps
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
