"""Guard: the tokens after which a text can still be completed by a number of further tokens.

`GuardWalker` walks a mask as `MaskWalker` does and also notes what each token costs: the fewest tokens that complete
the text after it, or a little more where many tokens are bounded together. A mask is thereby a stack of levels, and the
mask for a budget is the union of those that fit.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from specdec.grammars.automaton import Automaton
from specdec.grammars.frames import Frame
from specdec.grammars.lexeme_bounds import LexemeBounds
from specdec.grammars.masks import MaskWalker
from specdec.grammars.node_groups import NodeGroup
from specdec.grammars.positions import Key, Literal, Position, Raw, String
from specdec.grammars.stacks import Config, Stack
from specdec.grammars.string_bodies import StringBodies
from specdec.grammars.vocabulary import Vocabulary
from specdec.grammars.walk import Words

_MAX_EXACT = 16
"""Tokens inside one lexeme that are costed one by one; more of them share a bound."""
_MAX_LEVELS = 16


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
        self, vocabulary: Vocabulary, bodies: StringBodies, automaton: Automaton, bounds: LexemeBounds, config: Config
    ) -> None:
        self._bounds = bounds
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
        cost = self._bounds.at(position, stack)
        if cost is None:
            return None
        opened: list[Frame] = []
        # A frame as deep as the innermost one may have had the key that FRESH stands for.
        while stack is not None and stack.depth >= self._depth:
            opened.append(stack.frame)
            stack = stack.below
        return cost + self._bounds.margins(position, tuple(opened))

    def _enter(self, position: Position, stack: Stack | None, group: NodeGroup) -> NodeGroup:
        cost = self._cost(position, stack)
        words = np.zeros_like(self.words) if cost is None else self._level(cost)
        return group.enter(words)[0]

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

    def _follow_raw(self, position: Raw, group: NodeGroup) -> None:
        words, self.words = self.words, np.zeros_like(self.words)
        super()._follow_raw(position, group)
        if self.words.any():
            self._add_inside(self._bounds.inside(position, (), None))
        self.words = words

    def _follow_string(self, position: String, stack: Stack | None, group: NodeGroup) -> None:
        words, self.words = self.words, np.zeros_like(self.words)
        super()._follow_string(position, stack, group)
        if self.words.any():
            self._add_inside(self._bounds.inside(position, (), stack))
        self.words = words

    def _follow_key(self, position: Key, stack: Stack | None, group: NodeGroup) -> None:
        words, self.words = self.words, np.zeros_like(self.words)
        super()._follow_key(position, stack, group)
        if self.words.any():
            self._add_inside(self._bounds.inside(position, (), stack))
        self.words = words

    def _follow_literal(self, position: Literal, stack: Stack | None, group: NodeGroup) -> None:
        words, self.words = self.words, np.zeros_like(self.words)
        super()._follow_literal(position, stack, group)
        if self.words.any():
            self._add_inside(self._bounds.inside(position, (), stack))
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
