"""LexemeBounds: what it costs at most to complete a text from a configuration, and from inside a lexeme."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.automaton import Automaton
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.closings import Closings
from specdec.grammars.frame_keys import FRESH
from specdec.grammars.frames import Frame, ObjectFrame
from specdec.grammars.layout import Pretty
from specdec.grammars.part_costs import PartCosts
from specdec.grammars.positions import Completed, Key, Literal, ObjectNext, Position, Raw, String
from specdec.grammars.repeated_items import must_go_on
from specdec.grammars.rules import last_run
from specdec.grammars.speller import Speller, Spelling
from specdec.grammars.stacks import Stack
from specdec.grammars.text_automaton import LONGEST_CODE_POINT
from specdec.grammars.walk import DEAD

Frames = tuple[Frame, ...]


class LexemeBounds:
    """Of one grammar. Every bound is in tokens, of which a byte takes one at most; None where there is none.

    `frames` are those that a token opened on the stack, the innermost first; there are some only where both are apart.
    """

    def __init__(self, automaton: Automaton, closings: Closings, speller: Speller) -> None:
        self._automaton = automaton
        self._closings = closings
        self._parts = PartCosts(closings, speller)
        self._bytes_of_keys: BoundedCache[ObjectFrame, int] = BoundedCache(1024)
        """Of those of which nothing was begun."""
        self._is_pretty = isinstance(automaton.layout, Pretty)

    def at(self, position: Position, stack: Stack | None) -> int | None:
        """The tokens of a short completion."""
        spelling = self.completion(position, stack)
        return None if spelling is None else spelling.num_tokens

    def most_at(self, position: Position, stack: Stack | None) -> int | None:
        """As `at`, where other items must follow the present one, of which no text is known but what all begin with."""
        return self._closings.most_at(position, stack)

    def completion(self, position: Position, stack: Stack | None) -> Spelling | None:
        """A short one; None where every one that was tried is too long."""
        if isinstance(position, Completed):
            resolved = self._automaton.resolve(position, stack)
            if resolved is None:
                return None
            position, stack = resolved
        return self._closings.of((position, stack))

    def near(self, position: Position, frames: Frames, stack: Stack | None) -> int | None:
        """As `at`, in a hurry: no fewer tokens than that."""
        if isinstance(position, String):
            return self._inside_string(position, frames, stack)
        if isinstance(position, (Key, ObjectNext)) and self._is_plain(position.frame):
            # A quote comes first where no key was begun.
            text = position.text if isinstance(position, Key) else b""
            cost = self._inside_key(position.frame, text, frames, stack)
            return None if cost is None else 1 + cost
        return self._parts.at(position, frames, stack)

    def inside(self, position: Position, frames: Frames, stack: Stack | None) -> int | None:
        """No fewer tokens than the text takes, wherever inside the lexeme from the position on a token ends."""
        match position:
            case String():
                return self._inside_string(position, frames, stack)
            case Key():
                return self._inside_key(position.frame, position.text, frames, stack)
            case Literal():
                return self._inside_literal(position, frames, stack)
            case Raw():
                return self._dearest_raw
        raise AssertionError(f"{position} is in no lexeme")

    def raw_cost(self, state: int) -> int:
        """No fewer tokens than the text takes from a state of the raw text."""
        return int(self._closings.raw_costs[state])

    def dear_raw(self, num_tokens: int) -> NDArray[np.bool_]:
        """Which states of the raw text take more tokens."""
        return self._closings.raw_costs > num_tokens

    @functools.cached_property
    def _dearest_raw(self) -> int:
        return int(self._closings.raw_costs.max())

    def margins(self, position: Position, frames: Frames) -> int:
        """What a closing may cost more where the key that FRESH stands for is one that it uses."""
        return self._margin(getattr(position, "frame", None)) + sum(map(self._margin, frames))

    def is_apart(self, stack: Stack | None) -> bool:
        """Whether what completes a frame of the stack depends on that frame alone."""
        return not (self._is_pretty or (stack is not None and stack.is_remembered))

    def _is_plain(self, frame: ObjectFrame) -> bool:
        return all(run.rule.is_plain for run in frame.runs) and self._automaton.keys.classes(frame) is None

    def _margin(self, frame: object) -> int:
        if not isinstance(frame, ObjectFrame) or FRESH not in frame.seen:
            return 0
        classes = self._automaton.keys.classes(frame)
        longest = 1
        if classes is not None:
            longest = LONGEST_CODE_POINT * (1 + classes.automaton.longest_rest)
        return longest + len(frame.seen)

    def _inside_string(self, position: String, frames: Frames, stack: Stack | None) -> int | None:
        rules = self._automaton.value_rules.of(position.goals, stack)
        num_bytes = self._closings.tails.longest_to_body + 1
        if position.text is not None:
            num_bytes = max(num_bytes, rules.strings.longest_rest(position.text))
        if rules.text_automaton is None:
            num_bytes += max((max(0, low - position.length) for low, _, _ in rules.lengths), default=0)
        elif position.state != DEAD:
            num_bytes = max(num_bytes, rules.text_automaton.longest_tail(position.length))
        return self._rest(position.goals, frames, stack, num_bytes)

    def _inside_literal(self, position: Literal, frames: Frames, stack: Stack | None) -> int | None:
        rules = self._automaton.value_rules.of(position.goals, stack)
        num_bytes = 0 if position.text is None else rules.literals.longest_rest(position.text)
        if rules.numbers is not None and position.number != DEAD:
            num_bytes = max(num_bytes, self._closings.tails.longest_of_number(rules.numbers))
        return self._rest(position.goals, frames, stack, num_bytes)

    def _inside_key(self, frame: ObjectFrame, text: bytes, frames: Frames, stack: Stack | None) -> int | None:
        most = self._parts.most_after_key(frame, frames, stack) if self.is_apart(stack) else None
        if most is None:
            most = self._closings.most_after_key(frame, self._automaton.pushed(frames, stack))
        return None if most is None else most + self._bytes_of_key(frame, text)

    def _bytes_of_key(self, frame: ObjectFrame, text: bytes) -> int:
        """No fewer than it takes to end a key of the frame that begins with the text."""
        known = None if text else self._bytes_of_keys.get(frame)
        if known is None:
            known = self._find_bytes_of_key(frame, text)
            if not text:
                self._bytes_of_keys.put(frame, known)
        return known

    def _find_bytes_of_key(self, frame: ObjectFrame, text: bytes) -> int:
        rules = {run.rule for run in frame.runs}
        classes = self._automaton.keys.classes(frame)
        if frame.takes_free_keys() and classes is None:
            # A code point is completed. As long as that is no key that may come, it is made longer by one and the same
            # byte: each time some key that ends in as many of them has been met, or the one that FRESH stands for.
            runs = [rule.longest_run for rule in rules] + [last_run(key) for key in frame.seen if key != FRESH]
            return self._closings.tails.longest_to_body + max(runs) + (FRESH in frame.seen) + 2
        if text:
            special = self._automaton.keys.special(frame)
            longest, num_special = special.longest_rest(text), len(special.texts)
        else:
            longest = max([rule.longest_key for rule in rules])
            num_special = len(frame.seen) + sum([len(rule.keys) for rule in rules])
        if not frame.takes_free_keys():
            return longest
        assert classes is not None, "it has none above"
        return (
            max(LONGEST_CODE_POINT, longest) + num_special + 1
            + LONGEST_CODE_POINT * (classes.automaton.longest_rest + 1)
        )  # fmt: skip

    def _rest(self, goals: tuple[int, ...], frames: Frames, stack: Stack | None, num_bytes: int) -> int | None:
        beyond = [self._beyond(frames, stack, goal) for goal in goals]
        costs = [cost for cost in beyond if cost is not None]
        # Where items must follow, the cost is not known, rather than none, and the lexeme may meet that goal alone.
        if not costs or (len(costs) < len(beyond) and must_go_on(stack)):
            return None
        num_remembered = 0
        below = stack
        while below is not None and below.is_remembered:
            num_remembered += len(getattr(below.frame, "seen", None) or ())
            below = below.below
        # A token per byte at most; an item that occurred is left by a byte for each that it could still become.
        return max(costs) + num_bytes + 2 * num_remembered

    def _beyond(self, frames: Frames, stack: Stack | None, goal: int) -> int | None:
        return self._parts.beyond(frames, stack, goal) if frames else self._closings.cost_after(stack, goal)
