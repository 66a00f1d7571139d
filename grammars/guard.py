"""Guard: the tokens after which a text can still be completed by a number of further tokens.

`GuardWalker` walks a mask as `MaskWalker` does and also notes what each token costs: the fewest tokens that complete
the text after it, or a little more where many tokens are bounded together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from specdec.grammars.automaton import Automaton
from specdec.grammars.frames import ArrayFrame, Frame
from specdec.grammars.item_walk import fresh_item
from specdec.grammars.lexeme_bounds import LexemeBounds
from specdec.grammars.masks import MaskWalker
from specdec.grammars.next_items import NextItems, NextPlace
from specdec.grammars.node_groups import NodeGroup
from specdec.grammars.positions import ArrayEnd, Completed, Key, Literal, Position, Raw, String
from specdec.grammars.repeated_items import ends_item, items_of, must_go_on
from specdec.grammars.stacks import Config, Stack
from specdec.grammars.string_bodies import StringBodies
from specdec.grammars.vocabulary import Vocabulary

_MAX_EXACT = 16
"""Tokens inside one lexeme that are costed one by one; more of them share a bound."""


class GuardWalker(MaskWalker):
    """One walk: `words` has the tokens after which `num_tokens` more are known to complete the text."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        bodies: StringBodies,
        automaton: Automaton,
        next_items: NextItems,
        bounds: LexemeBounds,
        config: Config,
        num_tokens: int,
    ) -> None:
        self._bounds = bounds
        self._num_tokens = num_tokens
        self._fitting, self._others = np.zeros((2, vocabulary.num_words), np.uint32)
        self._decided: dict[int, bool] = {}
        """By token, whether it fits, where tokens are decided one by one."""
        super().__init__(vocabulary, bodies, automaton, next_items, config)
        self.words = self._fitting
        for token_id, fits in self._decided.items():
            bit = np.uint32(1 << (token_id & 31))
            if fits:
                self.words[token_id >> 5] |= bit
            else:
                self.words[token_id >> 5] &= ~bit

    def _fits(self, position: Position, stack: Stack | None) -> bool:
        cost = self._bounds.at(position, stack)
        if cost is None or cost > self._num_tokens:
            return False
        return cost + self._margins(position, stack) <= self._num_tokens

    def _margins(self, position: Position, stack: Stack | None) -> int:
        opened: list[Frame] = []
        # A frame as deep as the innermost one may have had the key that FRESH stands for.
        while stack is not None and stack.depth >= self._depth:
            opened.append(stack.frame)
            stack = stack.below
        return self._bounds.margins(position, tuple(opened))

    def _enter(self, position: Position, stack: Stack | None, group: NodeGroup) -> NodeGroup:
        if isinstance(position, Completed) and stack is not None and stack.is_remembered:
            frame = stack.frame
            if isinstance(frame, ArrayFrame) and frame.seen is not None:
                position, stack = fresh_item(position, stack)
        fits = self._fits_whatever_item(position, stack) if must_go_on(stack) else self._fits(position, stack)
        if not fits and must_go_on(stack):
            self._decide_ends(group)
        return group.enter(self._fitting if fits else self._others)[0]

    def _fits_whatever_item(self, position: Position, stack: Stack | None) -> bool:
        """The same where other items must follow the present one, of which the walk does not know the text."""
        cost = self._bounds.most_at(position, stack)
        return cost is not None and cost + self._margins(position, stack) <= self._num_tokens

    def _needed_after(self, position: Completed, stack: Stack) -> Iterable[bytes]:
        after, below = fresh_item(position, stack)
        if after.frame.seen is None or after.frame.all_may_close():
            return ()
        completion = self._bounds.completion(after, below)
        return () if completion is None else items_of(completion.data)

    def _enter_next(self, place: NextPlace, before: bytes | None) -> None:
        place.group.enter(self._fitting if self._fits(*place.config) else self._others)
        completion = self._bounds.completion(*place.config)
        if completion is None or before is None:
            return
        # Of the tokens that end here, those after which it would repeat the item before.
        position, stack = place.config
        if must_go_on(stack) or (isinstance(position, ArrayEnd) and position.frame.seen is not None):
            begun = b"" if place.item is None else b"," + place.item
            items = frozenset(items_of(begun + completion.data))
            self._decide_some(place, before, items.__contains__)
        elif place.item is not None and (completed := place.item + completion.data).startswith(before):
            self._decide_some(place, before, lambda ended: ends_item(completed, ended))

    def _decide(self, indices: range) -> None:
        for index in indices:
            token_id = int(self._vocabulary.token_ids[index])
            self._decided[token_id] = self._token_fits(token_id)

    def _token_fits(self, token_id: int) -> bool:
        data = self._vocabulary.token_bytes(token_id)
        if data is None:
            after = self._automaton.special_step(self._config, token_id)
        else:
            after = self._automaton.feed(self._config, data)
        return after is not None and self._fits(*after)

    def _follow_raw(self, position: Raw, group: NodeGroup) -> None:
        with self._inside(position, None):
            super()._follow_raw(position, group)
        # Free text may end anywhere, and its tokens are not to be bounded by what the calls take that may follow it.
        v = self._vocabulary
        text = self._automaton.raw_text
        if group is self._root:
            for token_id, target in text.special.get(position.state, {}).items():
                if self._bounds.raw_cost(target) <= self._num_tokens:
                    self._fitting[token_id >> 5] |= np.uint32(1 << (token_id & 31))
        is_end = text.is_value | self._bounds.dear_raw(self._num_tokens)
        v.kernels.walk_raw(
            group.nodes, position.state, text.range_starts, text.lows, text.highs, text.targets, is_end,
            v.trie_bytes, v.trie_skips, v.trie_starts, v.token_ids, self._fitting, v.max_token_bytes + 1,
        )  # fmt: skip

    def _follow_string(self, position: String, stack: Stack | None, group: NodeGroup) -> None:
        with self._inside(position, stack):
            super()._follow_string(position, stack, group)

    def _follow_key(self, position: Key, stack: Stack | None, group: NodeGroup) -> None:
        with self._inside(position, stack):
            super()._follow_key(position, stack, group)

    def _follow_literal(self, position: Literal, stack: Stack | None, group: NodeGroup) -> None:
        with self._inside(position, stack):
            super()._follow_literal(position, stack, group)

    @contextmanager
    def _inside(self, position: Position, stack: Stack | None) -> Iterator[None]:
        """Of the tokens that are allowed meanwhile, which end inside one lexeme, allow those that fit."""
        words, self.words = self.words, np.zeros_like(self.words)
        yield
        inside, self.words = self.words, words
        token_ids = self._vocabulary.kernels.first_bits(inside, _MAX_EXACT + 1)
        if not len(token_ids):
            return
        bound = self._bounds.inside(position, (), stack)
        if bound is not None and bound <= self._num_tokens:
            self._fitting |= inside
        elif len(token_ids) <= _MAX_EXACT:
            for token_id in token_ids.tolist():
                if self._token_fits(token_id):
                    self._fitting[token_id >> 5] |= np.uint32(1 << (token_id & 31))
