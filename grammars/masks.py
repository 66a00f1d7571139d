"""MaskWalker: from a configuration to the set of tokens that can follow.

The vocabulary's trie is walked from its root with the configuration. Inside one lexeme (a string, a key, a number)
compiled code does it; where a lexeme or a bracket ends, all trie nodes that reached the same configuration go on
together as one group. A mask therefore takes a handful of Python steps, however many tokens it allows.

Sharing:

- The walk of a free string body from the root depends on the vocabulary only, and is kept in StringBodies.
- A mask depends on the position and on those frames of the stack that some token is long enough to close into.
  The walk notes how many those are, and the mask is cached under them alone.
- After a free key, a token rarely writes a second key. All keys that are in no way special therefore share one
  walk, in which FRESH stands for the key; where a second key of the same object would close inside one token,
  the tokens concerned are decided one by one. So long as there are none, the mask depends neither on the key's
  text nor on the keys seen before it.
"""

from __future__ import annotations

import numpy as np

from specdec.grammars.automaton import Automaton
from specdec.grammars.frame_keys import FRESH
from specdec.grammars.frames import ArrayFrame, ObjectFrame
from specdec.grammars.item_walk import ItemWalk
from specdec.grammars.layout import WHITESPACE
from specdec.grammars.next_items import NextItems
from specdec.grammars.node_groups import NodeGroup
from specdec.grammars.node_steps import Words
from specdec.grammars.positions import (
    AfterKey,
    ArrayStart,
    Completed,
    Done,
    Gap,
    Key,
    Literal,
    Position,
    Raw,
    String,
    Value,
)
from specdec.grammars.reach import Arrival, Reach
from specdec.grammars.scalar_steps import literal_start
from specdec.grammars.stacks import Config, Stack
from specdec.grammars.string_bodies import StringBodies
from specdec.grammars.text_automaton import TextAutomaton
from specdec.grammars.texts import TextSet
from specdec.grammars.value_rules import UNBOUNDED, KeyClasses, ValueRules
from specdec.grammars.vocabulary import Vocabulary
from specdec.grammars.walk import DEAD


class MaskWalker(ItemWalk):
    """One walk: `words` is the mask, the rest is what it depended on."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        bodies: StringBodies,
        automaton: Automaton,
        next_items: NextItems,
        config: Config,
        like: tuple[Words, int, Reach] | None = None,
    ) -> None:
        """`like` is the mask of a key that is not special, the frames that it depends on, and where it leads.

        The mask of `config`, in a key that may become special, differs from it by the special keys alone.
        """
        super().__init__(vocabulary, bodies.root, automaton, next_items, config)
        self._bodies = bodies
        self._depth = _depth(config[1])
        self.may_end = False
        """Whether the text is complete without another token."""
        self.num_frames_read = 0
        """How many frames of the stack the mask depends on; one more than there are if on the stack's end."""
        self._arrivals: list[Arrival] = []
        self._like: Reach | None = None
        if like is None:
            self._go_on(*config, self._root)
        else:
            self.words, self.num_frames_read, self._like = like
            # What the special keys begin with is inside this key.
            self._arrivals.append((*config, True))
            self._follow_special_keys(*config)
        while self._pending:
            position, stack, group = self._pending.pop()
            if stack is not None and stack.is_remembered and isinstance(stack.frame, ArrayFrame):
                group = self._not_repeating(position, stack, stack.frame, group)
                if not len(group):
                    continue
            inner = self._enter(position, stack, group)
            if len(inner.nodes):
                self._go_on(position, stack, inner)

        self._decide_repetitions()

    def reach(self) -> Reach | None:
        """Where the tokens of the mask lead; None where some were decided one by one."""
        return None if self.decided_singly else Reach(self._config, self._arrivals, self._like)

    def _enter(self, position: Position, stack: Stack | None, group: NodeGroup) -> NodeGroup:
        """Allow the tokens that end at the nodes, in this configuration; return the nodes below which some go on."""
        inner, has_ended = group.enter(self.words)
        if has_ended:
            self._arrivals.append((position, stack, False))
        return inner

    def _go_on(self, position: Position, stack: Stack | None, group: NodeGroup) -> None:
        """Follow the tokens below the nodes, at which the text is in this configuration."""
        if isinstance(position, Completed):
            if stack is not None and isinstance(stack.frame, ArrayFrame) and stack.frame.seen is not None:
                forgotten = self._go_on_after_item(position, stack, stack.frame, group)
                if forgotten is None:
                    return
                position, stack = forgotten
            else:
                self.num_frames_read = max(self.num_frames_read, self._depth - _depth(stack) + 1)
                resolved = self._automaton.resolve(position, stack)
                assert resolved is not None, "only remembered items can have occurred"
                position, stack = resolved
        if isinstance(position, Done):
            self.may_end = self.may_end or group is self._root
            return
        if not isinstance(position, (String, Key, Literal, Raw)):
            self._follow_structure(position, stack, group)
            return
        self._arrivals.append((position, stack, True))
        if isinstance(position, String):
            self._follow_string(position, stack, group)
        elif isinstance(position, Key):
            self._follow_key(position, stack, group)
        elif isinstance(position, Literal):
            self._follow_literal(position, stack, group)
        else:
            self._follow_raw(position, group)

    def _follow_raw(self, position: Raw, group: NodeGroup) -> None:
        v = self._vocabulary
        text = self._automaton.raw_text
        if group is self._root:
            self.may_end = self.may_end or text.is_accepting(position.state)
            for token_id in text.special.get(position.state, ()):
                self.words[token_id >> 5] |= np.uint32(1 << (token_id & 31))
        begun, states = v.kernels.walk_raw(
            group.nodes, position.state, text.range_starts, text.lows, text.highs, text.targets, text.is_value,
            v.trie_bytes, v.trie_skips, v.trie_starts, v.token_ids, self.words, v.max_token_bytes + 1,
        )  # fmt: skip
        members: dict[int, list[int]] = {}
        for node, state in zip(begun.tolist(), states.tolist(), strict=True):
            members.setdefault(state, []).append(node)
        for state, found in members.items():
            self._pending.append((*self._automaton.enter_raw(state), NodeGroup(v, found)))

    def _follow_structure(
        self, position: Position, stack: Stack | None, group: NodeGroup, *, is_first_item: bool = False
    ) -> None:
        for byte in self._automaton.structure_bytes(position):
            if is_first_item and byte in WHITESPACE:
                # It was followed as whitespace after the bracket.
                continue
            children = group.step(byte)
            if children is not None:
                after = self._automaton.step(position, stack, byte)
                if after is not None:
                    self._pending.append((*after, children))
        bare = position.after if isinstance(position, Gap) else position
        if isinstance(bare, Value):
            rules = self._automaton.value_rules.of(bare.goals, stack)
            if group.can_follow(rules.literal_bytes):
                literal = literal_start(bare, rules)
                self._arrivals.append((literal, stack, True))
                self._follow_literal(literal, stack, group)
        elif isinstance(bare, ArrayStart) and not self._automaton.needs_line(bare, stack):
            item = self._automaton.first_item(bare, stack)
            if item is not None:
                self._follow_structure(*item, group, is_first_item=True)

    def _follow_literal(self, position: Literal, stack: Stack | None, group: NodeGroup) -> None:
        v = self._vocabulary
        rules = self._automaton.value_rules.of(position.goals, stack)
        met = rules.met_by_literal(position.text, position.number)
        if met:
            self._go_on(Completed(met), stack, group)
        met_at: dict[int, frozenset[int]] = {}
        if rules.numbers is not None and position.number != DEAD:
            numbers = rules.numbers
            ended, states = v.kernels.walk_number(
                group.nodes, position.number, numbers.table, numbers.accepting,
                v.trie_bytes, v.trie_skips, v.trie_starts, v.token_ids, self.words,
            )  # fmt: skip
            for node, state in zip(ended.tolist(), states.tolist(), strict=True):
                met_at[node] = rules.met_by_literal(None, state)
        if position.text is not None:
            self._add_texts(rules.literals, position.text, group, met_at)
        self._complete(met_at, stack)

    def _follow_string(self, position: String, stack: Stack | None, group: NodeGroup) -> None:
        rules = self._automaton.value_rules.of(position.goals, stack)
        if rules.text_automaton is not None:
            self._follow_terms(position, rules, rules.text_automaton, stack, group)
            return
        if position.text is None and len(rules.lengths) == 1:
            low, high, met = rules.lengths[0]
            closed = self._walk_body(group, position, low, high)
            self._pending.append((Completed(met), stack, closed))
            return
        met_at: dict[int, frozenset[int]] = {}
        for low, high, met in rules.lengths:
            if position.length <= high:
                for node in self._walk_body(group, position, low, high).nodes.tolist():
                    met_at[node] = met_at.get(node, frozenset()) | met
        if position.text is not None:
            self._add_texts(rules.strings, position.text, group, met_at)
        self._complete(met_at, stack)

    def _follow_terms(
        self, position: String, rules: ValueRules, automaton: TextAutomaton, stack: Stack | None, group: NodeGroup
    ) -> None:
        met_at: dict[int, frozenset[int]] = {}
        if position.state != DEAD:
            met_by: dict[tuple[int, int], frozenset[int]] = {}
            for node, state, length in self._bodies.walk_terms(
                automaton, group, position.state, position.length, self.words
            ):
                if (state, length) not in met_by:
                    met_by[state, length] = rules.met_by_body(state, length)
                if met_by[state, length]:
                    met_at[node] = met_by[state, length]
        if position.text is not None:
            self._add_texts(rules.strings, position.text, group, met_at)
        self._complete(met_at, stack)

    def _walk_body(self, group: NodeGroup, position: String, low: int, high: int) -> NodeGroup:
        min_length = max(0, low - position.length)
        max_length = UNBOUNDED if high == UNBOUNDED else high - position.length
        return self._bodies.walk(group, position.state, min_length, max_length, self.words)

    def _add_texts(self, texts: TextSet, prefix: bytes, group: NodeGroup, met_at: dict[int, frozenset[int]]) -> None:
        for node, text in self._walk_texts(texts, prefix, group, mark_inside=True):
            met_at[node] = met_at.get(node, frozenset()) | texts.goals(text)

    def _complete(self, met_at: dict[int, frozenset[int]], stack: Stack | None) -> None:
        groups: dict[frozenset[int], list[int]] = {}
        for node, met in met_at.items():
            groups.setdefault(met, []).append(node)
        for met, members in groups.items():
            self._pending.append((Completed(met), stack, NodeGroup(self._vocabulary, members)))

    def _follow_key(self, position: Key, stack: Stack | None, group: NodeGroup) -> None:
        frame = position.frame
        classes = self._automaton.keys.classes(frame)
        if classes is not None:
            self._follow_classed_key(position, classes, stack, group)
            return
        special = self._automaton.keys.special(frame)
        is_free = frame.takes_free_keys()
        closed: NodeGroup | None = None
        if is_free:
            closed = self._bodies.walk(group, position.state, 0, UNBOUNDED, self.words)
            if FRESH in frame.seen:
                self._decide_singly(closed)
                return
        if special.begins(position.text):
            ended = self._walk_texts(special, position.text, group, mark_inside=not is_free)
            for node, text in ended:
                self._after_key(frame.after_key(text), stack, self._bodies.at_node(node))
            if closed is not None and ended:
                removed = np.array([node for node, _ in ended], np.int32)
                v = self._vocabulary
                closed = NodeGroup(v, v.kernels.without_nodes(closed.nodes, removed))
        if closed is not None and len(closed):
            self._after_key(frame.after_key(FRESH), stack, closed)

    def _follow_special_keys(self, position: Position, stack: Stack | None) -> None:
        v = self._vocabulary
        assert isinstance(position, Key), "only keys are special"
        for node, text in self._walk_texts(
            self._automaton.keys.special(position.frame), position.text, self._root, mark_inside=False
        ):
            ended = self._bodies.at_node(node)
            v.kernels.clear_nodes(ended.nodes, v.trie_skips, v.trie_starts, v.token_ids, self.words)
            self._after_key(position.frame.after_key(text), stack, ended)

    def _follow_classed_key(self, position: Key, classes: KeyClasses, stack: Stack | None, group: NodeGroup) -> None:
        frame = position.frame
        candidates = self._automaton.keys.candidates(frame)
        closed: list[tuple[int, int, int]] = []
        decided: set[int] = set()
        is_free = frame.takes_free_keys() and position.state != DEAD
        if is_free:
            closed = self._bodies.walk_terms(classes.automaton, group, position.state, 0, self.words)
            if FRESH in frame.seen:
                # Which of them repeat the key that FRESH stands for is not known here.
                decided = {node for node, _, _ in closed}
                self._decide_singly(NodeGroup(self._vocabulary, sorted(decided)))
                closed = []
            elif frame.seen:
                closed = self._without_dead_keys(position, classes, group, closed)
        ended: dict[int, bytes] = {}
        if candidates.begins(position.text):
            ended = dict(self._walk_texts(candidates, position.text, group, mark_inside=True))
        if is_free:
            # Keys that are declared or have occurred, and are no candidates: none of them is a fresh one.
            special = self._automaton.keys.special(frame)
            ended |= dict(self._walk_texts(special, position.text, group, mark_inside=False))
        state_at = {node: state for node, state, _ in closed}
        for node, text in ended.items():
            if node in decided:
                continue
            own = classes.classes(state_at[node]) if node in state_at else frozenset()
            self._after_key(frame.after_key(text, own), stack, self._bodies.at_node(node))
        groups: dict[int, list[int]] = {}
        for node, state, _ in closed:
            if node not in ended:
                groups.setdefault(state, []).append(node)
        for state, members in groups.items():
            self._after_key(frame.after_key(FRESH, classes.classes(state)), stack, NodeGroup(self._vocabulary, members))

    def _without_dead_keys(
        self, position: Key, classes: KeyClasses, group: NodeGroup, closed: list[tuple[int, int, int]]
    ) -> list[tuple[int, int, int]]:
        """Take back the tokens that begin a key which only keys that have occurred begin with."""
        v = self._vocabulary
        declared = self._automaton.keys.candidates(position.frame)
        for dead in self._automaton.keys.dead(position.frame, classes):
            if not dead.startswith(position.text) or any(
                text.startswith(dead) and text not in position.frame.seen for text in declared.texts
            ):
                continue
            below: NodeGroup | None = group
            for byte in dead[len(position.text) :]:
                below = None if below is None else below.step(byte)
            for node in [] if below is None else below.nodes.tolist():
                end = int(v.trie_skips[node])
                for index in range(v.trie_starts[node], v.trie_starts[end]):
                    token_id = int(v.token_ids[index])
                    self.words[token_id >> 5] &= ~np.uint32(1 << (token_id & 31))
                closed = [one for one in closed if not node <= one[0] < end]
        return closed

    def _after_key(self, waiting: ObjectFrame | None, stack: Stack | None, group: NodeGroup) -> None:
        if waiting is not None:
            self._pending.append((AfterKey(waiting), stack, group))

    def _walk_texts(
        self, texts: TextSet, prefix: bytes, group: NodeGroup, *, mark_inside: bool
    ) -> list[tuple[int, bytes]]:
        v = self._vocabulary
        text_bytes, text_skips, text_starts = texts.trie(v.kernels)
        ended, indices = v.kernels.walk_texts(
            group.nodes, np.frombuffer(bytearray(prefix), np.uint8), text_bytes, text_skips, text_starts,
            v.trie_bytes, v.trie_skips, v.trie_starts, v.token_ids, mark_inside, self.words,
            v.max_token_bytes + 1,
        )  # fmt: skip
        return [(node, texts.texts[index]) for node, index in zip(ended.tolist(), indices.tolist(), strict=True)]


def shared_position(position: Position, automaton: Automaton) -> Position:
    """The position that stands for all those with the same mask, if no token is decided singly."""
    if isinstance(position, Key) and position.frame.takes_free_keys():
        special = automaton.keys.special(position.frame)
        if not special.begins(position.text):
            return Key(automaton.keys.fresh(position.frame), position.state, FRESH)
    return position


def position_alike(position: Position, automaton: Automaton) -> Key | None:
    """Of a key that may become special, the one that is not, from which its mask is had with less work."""
    if not isinstance(position, Key) or position.text == FRESH or not position.frame.takes_free_keys():
        return None
    if automaton.keys.classes(position.frame) is not None:
        return None
    return Key(automaton.keys.fresh(position.frame), position.state, FRESH)


def _depth(stack: Stack | None) -> int:
    return 0 if stack is None else stack.depth
