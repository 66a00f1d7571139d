"""Guard: the tokens after which a text can still be completed by a number of further tokens.

`GuardWalker` walks a mask as `MaskWalker` does and also notes what each token costs: the fewest tokens that complete
the text after it, or a little more where many tokens are bounded together. A mask is thereby a stack of levels, and the
mask for a budget is the union of those that fit.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from specdec.grammars.automaton import Automaton
from specdec.grammars.closings import Closings
from specdec.grammars.frames import ObjectFrame
from specdec.grammars.masks import FRESH, MaskWalker, StringBodies
from specdec.grammars.positions import Completed, Key, Literal, Position, Raw, String
from specdec.grammars.stacks import Config, Stack
from specdec.grammars.texts import TextSet
from specdec.grammars.vocabulary import Vocabulary
from specdec.grammars.walk import DEAD, Nodes, Words

_MAX_EXACT = 16
"""Tokens inside one lexeme that are costed one by one; more of them share a bound."""
_MAX_LEVELS = 16
_LONGEST_CODE_POINT = 6
"""Bytes of the longest spelling of a code point, and so of the longest rest of one."""


class Levels:
    """What may follow one state, by what it costs."""

    __slots__ = ("costs", "words")

    def __init__(self, levels: dict[int, Words]) -> None:
        ordered = sorted(levels)
        if len(ordered) > _MAX_LEVELS:
            # What costs more is taken to cost most.
            last = ordered[-1]
            for cost in ordered[_MAX_LEVELS - 1 : -1]:
                levels[last] |= levels[cost]
            ordered = [*ordered[: _MAX_LEVELS - 1], last]
        self.costs = ordered
        self.words: list[Words] = []
        """words[i] allows what costs at most costs[i]."""
        for cost in ordered:
            self.words.append(levels[cost] | self.words[-1] if self.words else levels[cost])

    def within(self, num_tokens: int) -> Words | None:
        """What can be completed by so many further tokens; None where nothing is known to be."""
        index = bisect_right(self.costs, num_tokens)
        return self.words[index - 1] if index else None


class GuardWalker(MaskWalker):
    """One walk: `levels` is what it found."""

    def __init__(
        self, vocabulary: Vocabulary, bodies: StringBodies, automaton: Automaton, closings: Closings, config: Config
    ) -> None:
        self._closings = closings
        self._levels: dict[int, Words] = {}
        self._single_costs: dict[int, int | None] = {}
        super().__init__(vocabulary, bodies, automaton, config)
        for token_id, cost in self._single_costs.items():
            bit = np.uint32(1 << (token_id & 31))
            for words in self._levels.values():
                words[token_id >> 5] &= ~bit
            if cost is not None:
                self._level(cost)[token_id >> 5] |= bit
        self.levels = Levels(self._levels)

    def _level(self, cost: int) -> Words:
        words = self._levels.get(cost)
        if words is None:
            words = self._levels[cost] = np.zeros(self._vocabulary.num_words, np.uint32)
        return words

    def _cost(self, position: Position, stack: Stack | None) -> int | None:
        if isinstance(position, Completed):
            resolved = self._automaton.resolve(position, stack)
            if resolved is None:
                return None
            position, stack = resolved
        spelling = self._closings.of((position, stack))
        if spelling is None:
            return None
        return spelling.num_tokens + self._margin(position, stack)

    def _margin(self, position: Position, stack: Stack | None) -> int:
        """What a closing may cost more where the key that FRESH stands for is one that it uses."""
        frames: list[object] = [getattr(position, "frame", None)]
        while stack is not None and stack.depth >= self._depth:
            frames.append(stack.frame)
            stack = stack.below
        margin = 0
        for frame in frames:
            if isinstance(frame, ObjectFrame) and FRESH in frame.seen:
                classes = self._automaton.keys.classes(frame)
                longest = 1
                if classes is not None:
                    shortest = classes.automaton.shortest[classes.automaton.longest >= 0]
                    longest = _LONGEST_CODE_POINT * (1 + int(shortest.max(initial=0)))
                margin += longest + len(frame.seen)
        return margin

    def _enter(self, position: Position, stack: Stack | None, nodes: Nodes) -> Nodes:
        cost = self._cost(position, stack)
        v = self._vocabulary
        words = np.zeros_like(self.words) if cost is None else self._level(cost)
        return v.kernels.enter_nodes(nodes, v.trie_skips, v.trie_starts, v.token_ids, words)

    def _decide(self, indices: range) -> None:
        for index in indices:
            token_id = int(self._vocabulary.token_ids[index])
            self._single_costs[token_id] = self._cost_of_token(token_id)

    def _cost_of_token(self, token_id: int) -> int | None:
        data = self._vocabulary.token_bytes(token_id)
        if data is None:
            after = self._automaton.special_step(self._config[0], token_id)
        else:
            after = self._automaton.feed(self._config, data)
        return None if after is None else self._cost(*after)

    def _follow_raw(self, position: Raw, nodes: Nodes) -> None:
        words, self.words = self.words, np.zeros_like(self.words)
        super()._follow_raw(position, nodes)
        if self.words.any():
            self._add_inside(self._closings.raw_bound())
        self.words = words

    def _follow_string(self, position: String, stack: Stack | None, nodes: Nodes) -> None:
        words, self.words = self.words, np.zeros_like(self.words)
        super()._follow_string(position, stack, nodes)
        if self.words.any():
            self._add_inside(self._string_bound(position, stack))
        self.words = words

    def _follow_key(self, position: Key, stack: Stack | None, nodes: Nodes) -> None:
        words, self.words = self.words, np.zeros_like(self.words)
        super()._follow_key(position, stack, nodes)
        if self.words.any():
            self._add_inside(self._key_bound(position, stack))
        self.words = words

    def _follow_literal(self, position: Literal, stack: Stack | None, nodes: Nodes) -> None:
        words, self.words = self.words, np.zeros_like(self.words)
        super()._follow_literal(position, stack, nodes)
        if self.words.any():
            self._add_inside(self._literal_bound(position, stack))
        self.words = words

    def _add_inside(self, bound: int | None) -> None:
        """Cost the tokens in `words`, which end inside one lexeme; none of them costs more than the bound."""
        token_ids = np.flatnonzero(np.unpackbits(self.words.view(np.uint8), bitorder="little"))
        if len(token_ids) <= _MAX_EXACT:
            for token_id in token_ids.tolist():
                cost = self._cost_of_token(token_id)
                if cost is not None:
                    self._level(cost)[token_id >> 5] |= np.uint32(1 << (token_id & 31))
            return
        if bound is not None:
            self._level(bound)[:] |= self.words

    def _string_bound(self, position: String, stack: Stack | None) -> int | None:
        """No less than it costs to end the string and the text, wherever inside the string a token ends."""
        rules = self._automaton.value_rules.of(position.goals, stack)
        num_bytes = _LONGEST_CODE_POINT + 1
        if position.text is not None:
            num_bytes = max(num_bytes, _longest_rest(rules.strings, position.text))
        if rules.text_automaton is None:
            num_bytes += max((max(0, low - position.length) for low, _, _ in rules.lengths), default=0)
        elif position.state != DEAD:
            automaton = rules.text_automaton
            longest = int(automaton.shortest[automaton.longest >= 0].max(initial=0))
            if automaton.is_counted:
                longest = max(longest, int(automaton.lows.max()) - position.length)
            num_bytes = max(num_bytes, _LONGEST_CODE_POINT * (longest + 1) + 1)
        return self._rest_bound(position.goals, stack, num_bytes)

    def _literal_bound(self, position: Literal, stack: Stack | None) -> int | None:
        rules = self._automaton.value_rules.of(position.goals, stack)
        num_bytes = 0 if position.text is None else _longest_rest(rules.literals, position.text)
        if rules.numbers is not None and position.number != DEAD:
            num_bytes = max(num_bytes, self._closings.tails.longest_of_number(rules.numbers))
        return self._rest_bound(position.goals, stack, num_bytes)

    def _key_bound(self, position: Key, stack: Stack | None) -> int | None:
        frame = position.frame
        classes = self._automaton.keys.classes(frame)
        special = self._automaton.keys.special(frame)
        num_bytes = max(_LONGEST_CODE_POINT, _longest_rest(special, position.text)) + len(special.texts) + 1
        if classes is not None:
            automaton = classes.automaton
            longest = int(automaton.shortest[automaton.longest >= 0].max(initial=0))
            num_bytes += _LONGEST_CODE_POINT * (longest + 1)
        most = self._closings.most_after_key(frame, stack)
        return None if most is None else most + num_bytes

    def _rest_bound(self, goals: tuple[int, ...], stack: Stack | None, num_bytes: int) -> int | None:
        costs = [cost for goal in goals if (cost := self._closings.cost_after(stack, goal)) is not None]
        if not costs:
            return None
        num_remembered = 0
        below = stack
        while below is not None and below.is_remembered:
            num_remembered += len(getattr(below.frame, "seen", None) or ())
            below = below.below
        # A token per byte at most; an item that occurred is left by a byte for each that it could still become.
        return max(costs) + num_bytes + 2 * num_remembered


def _longest_rest(texts: TextSet, prefix: bytes) -> int:
    return max((len(text) for text in texts.texts), default=len(prefix)) - len(prefix)
