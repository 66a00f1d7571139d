"""ItemWalk: the part of a mask's walk that minds items which must differ from others of their array.

Most tokens that end an item end one that is unlike all that occurred. They are followed together; those that spell an
item that occurred, or go on from there, are decided one by one, by the exact text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import numpy as np

from specdec.grammars.automaton import Automaton
from specdec.grammars.frames import ArrayFrame
from specdec.grammars.next_items import NextItems, NextPlace
from specdec.grammars.node_groups import NodeGroup
from specdec.grammars.node_steps import Words
from specdec.grammars.positions import ArrayEnd, Completed, Position, Value
from specdec.grammars.repeated_items import NO_ITEM
from specdec.grammars.stacks import Config, Stack
from specdec.grammars.vocabulary import Vocabulary


class ItemWalk:
    """What MaskWalker inherits; it follows what is in `_pending`."""

    def __init__(
        self, vocabulary: Vocabulary, root: NodeGroup, automaton: Automaton, next_items: NextItems, config: Config
    ) -> None:
        self._vocabulary = vocabulary
        self._automaton = automaton
        self._next_items = next_items
        self._config = config
        self._root = root
        self._pending: list[tuple[Position, Stack | None, NodeGroup]] = []
        self.words: Words = np.zeros(vocabulary.num_words, np.uint32)
        self.decided_singly = False
        """Whether some tokens were decided one by one, by the exact text so far."""
        self._items_begun: dict[Stack, NodeGroup] = {}
        """Where an item begins inside a token, after items that are known; all others began before it."""

    def _not_repeating(self, position: Position, stack: Stack, frame: ArrayFrame, group: NodeGroup) -> NodeGroup:
        """The nodes at which a remembered item is unlike all before it, as far as that can be told for all at once.

        The tokens below the others are decided one by one.
        """
        if frame.seen is None:
            return group
        if isinstance(position, Completed):
            needed = frozenset(self._needed_after(position, stack))
            if needed and not (self._is_around(stack) or stack in self._items_begun):
                self._decide_singly(group)
                return NodeGroup(self._vocabulary, [])
            repeating = self._repeating_nodes(stack, frame, frame.seen | needed)
            fresh = [node for node in group.nodes.tolist() if node not in repeating]
            if len(fresh) < len(group):
                self._decide_after(
                    frame, NodeGroup(self._vocabulary, [node for node in group.nodes.tolist() if node in repeating])
                )
                return NodeGroup(self._vocabulary, fresh)
        elif isinstance(position, Value) and group is not self._root:
            if not self._is_after_known_items(group):
                # What is begun inside a token may repeat what ended inside it.
                self._decide_singly(group)
                return NodeGroup(self._vocabulary, [])
            self._items_begun[stack] = group
        return group

    def _needed_after(self, position: Completed, stack: Stack) -> Iterable[bytes]:  # noqa: ARG002, a guard needs it
        """Items that a completion of the array has after the present one, where that is unlike them as well."""
        return ()

    def _is_after_known_items(self, group: NodeGroup) -> bool:
        """Whether all items before the one that begins at the nodes had ended where the walk began."""
        return isinstance(self._config[0], ArrayEnd) and group is self._root.step(ord(","))

    def _repeating_nodes(self, stack: Stack, frame: ArrayFrame, items: Iterable[bytes]) -> frozenset[int]:
        """The nodes at which the present item has become one of these."""
        nodes: list[int] = []
        for one in items:
            if one.startswith(frame.text):
                group: NodeGroup | None = self._items_begun.get(stack, self._root)
                for byte in one[len(frame.text) :]:
                    group = None if group is None else group.step(byte)
                nodes += [] if group is None else group.nodes.tolist()
        return frozenset(nodes)

    def _decide_repetitions(self) -> None:
        """Decide the tokens that go on as an item that occurred, one by one."""
        below = self._config[1]
        while below is not None and below.is_remembered:
            if isinstance(below.frame, ArrayFrame) and below.frame.seen is not None:
                self._decide_repetitions_of(below.frame, self._root)
            below = below.below
        for stack, group in self._items_begun.items():
            assert isinstance(stack.frame, ArrayFrame), "only arrays have items"
            # Nothing of the item is written yet, and it may be that all there is has occurred.
            self._decide_ends(group)
            self._decide_repetitions_of(stack.frame, group)

    def _decide_repetitions_of(self, frame: ArrayFrame, begin: NodeGroup) -> None:
        self.decided_singly = True
        # Items that begin alike are followed together.
        after: dict[bytes, NodeGroup | None] = {}
        for one in frame.seen or ():
            rest = one[len(frame.text) :] if one.startswith(frame.text) else b""
            group: NodeGroup | None = begin
            for end in range(1, len(rest) + 1):
                begun = rest[:end]
                if begun not in after:
                    assert group is not None, "the loop ends where none is left"
                    group = after[begun] = group.step(rest[end - 1])
                    if group is not None:
                        self._decide_ends(group)
                group = after[begun]
                if group is None:
                    break

    def _go_on_after_item(
        self, position: Completed, stack: Stack, frame: ArrayFrame, group: NodeGroup
    ) -> Config | None:
        """Follow the tokens below the nodes, at which a remembered item is complete.

        Where no alternative that is left minds a repetition nothing is followed: the array goes on from what is
        returned as one whose items were never remembered, its whitespace included.
        """
        self.decided_singly = True
        # Where the walk began the item is known, and may be one that occurred.
        resolved = self._automaton.resolve(position, stack) if group is self._root else fresh_item(position, stack)
        if resolved is None:
            return None
        after, below = resolved
        assert isinstance(after, ArrayEnd), "it is in an array"
        if after.frame.seen is None:
            return resolved
        following = group.step(ord(","))
        if following is not None:
            if group is self._root:
                self._follow_next_items(self._automaton.feed(self._config, b","), following, None)
            elif self._is_around(stack):
                self._follow_next_items(self._automaton.step(after, below, ord(",")), following, frame.text)
            else:
                self._decide_singly(following)
        closing = group.step(ord("]"))
        closed = None if closing is None else self._automaton.step(after, below, ord("]"))
        if closing is not None and closed is not None:
            self._pending.append((*closed, closing))
        return None

    def _is_around(self, stack: Stack) -> bool:
        """Whether the walk began inside the stack, so that its frame has the text up to there of the present item."""
        below = self._config[1]
        while below is not None and below.depth > stack.depth:
            below = below.below
        return below is stack

    def _follow_next_items(self, waiting: Config | None, group: NodeGroup, before: bytes | None) -> None:
        """Follow the tokens below the nodes, at which a comma ended an item that begins with `before`.

        None where what waits knows the item.
        """
        if waiting is None:
            return
        assert waiting[1] is not None, "items are in an array"
        assert isinstance(waiting[1].frame, ArrayFrame), "it goes on"
        if waiting[1].frame.seen is None:
            self._pending.append((*waiting, group))
            return
        for place in self._next_items.follow(waiting, group):
            if before is None or self._next_items.is_sure(place, before):
                self._enter_next(place, before)
            else:
                self._decide_ends(place.group)
            if before is not None and place.may_repeat(before):
                self._decide_some(place, before, place.repeats)

    def _decide_some(self, place: NextPlace, before: bytes, is_doubtful: Callable[[bytes], bool]) -> None:
        """Decide one by one, of the tokens that end at the place, those that ended a doubtful item."""
        v = self._vocabulary
        num_beyond = len(place.since_comma) + 1
        for node in place.group.nodes.tolist():
            for index in range(v.trie_starts[node], v.trie_starts[node + 1]):
                data = v.token_bytes(int(v.token_ids[index]))
                assert data is not None, "only tokens with bytes are in the trie"
                if is_doubtful(before + data[: len(data) - num_beyond]):
                    self._decide(range(index, index + 1))

    def _enter_next(self, place: NextPlace, before: bytes | None) -> None:  # noqa: ARG002, a guard needs it
        """Allow the tokens that end at the place, after an item that begins with `before`; None if it is known."""
        place.group.enter(self.words)

    def _decide_after(self, frame: ArrayFrame, group: NodeGroup) -> None:
        """Decide the tokens at and below the nodes, at which an item is complete, one by one."""
        if not all(run.rule.is_unique for run in frame.runs):
            # Past a repetition whitespace may come.
            self._decide_singly(group)
            return
        self._decide_ends(group)
        for byte in b",]":
            below = group.step(byte)
            if below is not None:
                self._decide_singly(below)

    def _decide_singly(self, group: NodeGroup) -> None:
        """Decide all tokens at and below the nodes by the automaton, from where the walk began."""
        v = self._vocabulary
        for node in group.nodes.tolist():
            self.decided_singly = True
            self._decide(range(v.trie_starts[node], v.trie_starts[v.trie_skips[node]]))

    def _decide_ends(self, group: NodeGroup) -> None:
        """Decide the tokens that end at the nodes by the automaton, from where the walk began."""
        v = self._vocabulary
        for node in group.nodes.tolist():
            self._decide(range(v.trie_starts[node], v.trie_starts[node + 1]))

    def _decide(self, indices: range) -> None:
        """Decide the tokens of these places in the trie's order, by the automaton, from where the walk began."""
        v = self._vocabulary
        for index in indices:
            token_id = int(v.token_ids[index])
            data = v.token_bytes(token_id)
            assert data is not None, "only tokens with bytes are in the trie"
            bit = np.uint32(1 << (token_id & 31))
            if self._automaton.feed(self._config, data) is not None:
                self.words[token_id >> 5] |= bit
            else:
                self.words[token_id >> 5] &= ~bit


def fresh_item(position: Completed, stack: Stack) -> tuple[ArrayEnd, Stack | None]:
    """After a remembered item unlike all before it, whichever."""
    frame = stack.frame
    assert isinstance(frame, ArrayFrame), "only arrays remember"
    after = msgspec.structs.replace(frame, text=NO_ITEM).after_value(position.goals)
    assert after is not None, "it is in no array"
    return ArrayEnd(after), stack.below
