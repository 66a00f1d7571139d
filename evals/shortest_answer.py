"""ShortestSearch: the fewest tokens of any answer that a grammar accepts, by search and not by plan.

It is a breadth-first search by tokens. One token's step walks the vocabulary's trie from all states of a level at once,
byte by byte: a pair (state, trie node) stands for every way there, and a state that a token ends in is kept once, at
the first level that reaches it. Tokens that lead to the same state are thereby one, and no token is left out.

States are relaxed, so that there are few: a free key that is like no declared one forgets its text, objects forget
which free keys they have, and arrays that their items must differ. A relaxed state allows all that its state allows, so
what the search finds is no more than the fewest tokens. The plan's own answer, which `minimum_tokens` counts, is no
less. Where no level below the minimum holds a complete text the two are equal, and the minimum is exact. Where one
does, the tokens that led there are taken through the grammar itself: if it accepts them, their number is the fewest,
for the search found nothing shorter. If it does not, or time or states run out, nothing is said.
"""

from __future__ import annotations

import time
from bisect import bisect_left

import msgspec
import numpy as np
from numpy.typing import NDArray

from specdec.grammars import Grammar, GrammarState, Vocabulary
from specdec.grammars.frames import ArrayFrame, Frame, ObjectFrame
from specdec.grammars.positions import Key, Position
from specdec.grammars.stacks import Config, Stack, Stacks

Ids = NDArray[np.int64]
_UNKNOWN, _DEAD = -2, -1
_MAX_STATES = 60_000
_MAX_PAIRS = 2_000_000
"""Of states and trie nodes that are walked together; what is more waits its turn."""
_FREE_KEY = b'""'
"""Stands for every free key's text: no key is spelt with two bare quotes."""


class ShortestAnswer(msgspec.Struct, frozen=True, kw_only=True):
    num_tokens: int | None
    """None where the search could not decide."""
    text: bytes | None = None
    """An answer of so many tokens, where it is shorter than the plan's."""
    why: str | None = None
    """Why it could not decide."""
    at_least: int = 0
    """The answer has no fewer tokens."""


class ShortestSearch:
    """Over one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        skips, starts = vocabulary.trie_skips, vocabulary.trie_starts
        num_nodes = len(skips)
        self._bytes = vocabulary.trie_bytes.astype(np.int64)
        self._is_end = starts[1:] > starts[:-1]
        self._first_index = starts[:-1].astype(np.int64)
        # Children of a node follow it: the first is the next one, each other begins where the one before it ends.
        children: list[list[int]] = [[] for _ in range(num_nodes)]
        ancestors: list[int] = []
        for node in range(num_nodes):
            while ancestors and skips[ancestors[-1]] <= node:
                ancestors.pop()
            if ancestors:
                children[ancestors[-1]].append(node)
            ancestors.append(node)
        self._num_children = np.array([len(found) for found in children], np.int64)
        self._first_child = np.concatenate(([0], np.cumsum(self._num_children)[:-1]))
        self._children = np.array([child for found in children for child in found], np.int64)

    def of(self, grammar: Grammar, seconds: float) -> ShortestAnswer:
        """The fewest tokens of an answer; undecided after about so many seconds, or too many states."""
        return _Search(self, grammar, time.perf_counter() + seconds).run()

    def children(self, nodes: Ids) -> tuple[Ids, Ids]:
        """(the index in `nodes` of its parent, the child) for every child of the nodes."""
        counts = self._num_children[nodes]
        parents = np.repeat(np.arange(len(nodes)), counts)
        offsets = np.arange(len(parents)) - np.repeat(np.cumsum(counts) - counts, counts)
        return parents, self._children[self._first_child[nodes][parents] + offsets]

    def byte_of(self, nodes: Ids) -> Ids:
        return self._bytes[nodes]

    def is_end(self, nodes: Ids) -> NDArray[np.bool_]:
        """Whether a token ends at the node."""
        return self._is_end[nodes]

    def token_id(self, node: int) -> int:
        return int(self._vocabulary.token_ids[self._first_index[node]])

    @property
    def num_nodes(self) -> int:
        return len(self._bytes)


class _Undecided(Exception):  # noqa: N818, no error: it says how a search ended
    pass


class _Search:
    """One search: relaxed states by number, their steps by byte, and the level at which a token first ended in each."""

    def __init__(self, tokens: ShortestSearch, grammar: Grammar, deadline: float) -> None:
        self._tokens = tokens
        self._grammar = grammar
        self._deadline = deadline
        self._relaxation = _Relaxation()
        self._states: list[GrammarState] = []
        self._number_of: dict[Config, int] = {}
        self._steps = np.full((1024, 256), _UNKNOWN, np.int32)
        self._reached_by: dict[int, tuple[int, int] | None] = {}
        """Of each state that a token ends in, the state before and the trie node of the token."""

    def run(self) -> ShortestAnswer:
        minimum = self._grammar.minimum_tokens
        assert minimum is not None, "what is compared with has a minimum"
        first = self._number((self._grammar.initial_state.position, self._grammar.initial_state.stack))
        self._reached_by[first] = None
        frontier = [first]
        num_tokens = 0
        try:
            for num_tokens in range(1, minimum):
                frontier = self._after_token(frontier)
                for state in frontier:
                    if self._grammar.is_accepting(self._states[state]):
                        return self._found(state, num_tokens)
        except _Undecided as undecided:
            return ShortestAnswer(num_tokens=None, why=str(undecided), at_least=num_tokens)
        return ShortestAnswer(num_tokens=minimum, at_least=minimum)

    def _found(self, state: int, num_tokens: int) -> ShortestAnswer:
        """Whether the grammar itself takes the tokens that led to a relaxed state."""
        token_ids: list[int] = []
        reached = self._reached_by[state]
        while reached is not None:
            before, node = reached
            token_ids.append(self._tokens.token_id(node))
            reached = self._reached_by[before]
        after: GrammarState | None = self._grammar.initial_state
        text = b""
        for token_id in reversed(token_ids):
            after = None if after is None else self._grammar.advance(after, token_id)
            text += self._grammar.token_bytes(token_id) or b""
        if after is None or not self._grammar.is_accepting(after):
            why = f"a relaxed answer of {num_tokens} tokens is none of the grammar's: {text!r}"
            return ShortestAnswer(num_tokens=None, why=why, at_least=num_tokens)
        return ShortestAnswer(num_tokens=num_tokens, text=text, at_least=num_tokens)

    def _after_token(self, frontier: list[int]) -> list[int]:
        """The states that one token more first ends in."""
        found: list[int] = []
        chunk = max(1, _MAX_PAIRS // self._tokens.num_nodes)
        for begin in range(0, len(frontier), chunk):
            self._walk(np.array(frontier[begin : begin + chunk], np.int64), found)
        return found

    def _walk(self, sources: Ids, found: list[int]) -> None:
        """Walk the trie from its root with each of the states, one byte of all of them at a time."""
        states, nodes = sources, np.zeros(len(sources), np.int64)
        while len(nodes):
            if time.perf_counter() > self._deadline:
                raise _Undecided("out of time")
            parents, nodes = self._tokens.children(nodes)
            states = self._step(states[parents], self._tokens.byte_of(nodes))
            alive = states != _DEAD
            states, nodes, sources = states[alive], nodes[alive], sources[parents[alive]]
            # Two states that have become one at the same node go on together.
            _, kept = np.unique(states * self._tokens.num_nodes + nodes, return_index=True)
            states, nodes, sources = states[kept], nodes[kept], sources[kept]
            ends = np.flatnonzero(self._tokens.is_end(nodes))
            reached, first = np.unique(states[ends], return_index=True)
            for state, index in zip(reached.tolist(), ends[first].tolist(), strict=True):
                if state not in self._reached_by:
                    self._reached_by[state] = int(sources[index]), int(nodes[index])
                    found.append(state)

    def _step(self, states: Ids, bytes_: Ids) -> Ids:
        """The states after a byte each; _DEAD where it is not allowed."""
        after = self._steps[states, bytes_]
        unknown = after == _UNKNOWN
        if unknown.any():
            for pair in np.unique(states[unknown] * 256 + bytes_[unknown]).tolist():
                state, byte = divmod(pair, 256)
                following = self._grammar.advance_bytes(self._states[state], bytes((byte,)))
                number = _DEAD if following is None else self._number((following.position, following.stack))
                self._steps[state, byte] = number
            after = self._steps[states, bytes_]
        return after.astype(np.int64)

    def _number(self, config: Config) -> int:
        relaxed = self._relaxation.of(config)
        number = self._number_of.get(relaxed)
        if number is None:
            number = self._number_of[relaxed] = len(self._states)
            if number == _MAX_STATES:
                raise _Undecided("too many states")
            if number == len(self._steps):
                self._steps = np.concatenate((self._steps, np.full_like(self._steps, _UNKNOWN)))
            self._states.append(GrammarState(*relaxed))
        return number


class _Relaxation:
    """From configurations to ones that allow no less, of which there are fewer."""

    def __init__(self) -> None:
        self._stacks = Stacks()
        self._of_stack: dict[Stack, Stack] = {}
        self._special: dict[ObjectFrame, list[bytes]] = {}

    def of(self, config: Config) -> Config:
        position, stack = config
        return self._position(position), self._stack(stack)

    def _stack(self, stack: Stack | None) -> Stack | None:
        if stack is None:
            return None
        relaxed = self._of_stack.get(stack)
        if relaxed is None:
            relaxed = self._stacks.push(_relaxed_frame(stack.frame), self._stack(stack.below))
            self._of_stack[stack] = self._of_stack[relaxed] = relaxed
        return relaxed

    def _position(self, position: Position) -> Position:
        frame = getattr(position, "frame", None)
        if not isinstance(frame, (ObjectFrame, ArrayFrame)):
            return position
        relaxed = _relaxed_frame(frame)
        changed: Position = position if relaxed is frame else msgspec.structs.replace(position, frame=relaxed)
        if isinstance(changed, Key) and changed.frame.takes_free_keys() and not self._begins(changed):
            return msgspec.structs.replace(changed, text=_FREE_KEY)
        return changed

    def _begins(self, position: Key) -> bool:
        """Whether the key may still become one that is not like any other."""
        special = self._special.get(position.frame)
        if special is None:
            special = self._special[position.frame] = sorted(position.frame.special_keys())
        index = bisect_left(special, position.text)
        return index < len(special) and special[index].startswith(position.text)


def _relaxed_frame(frame: Frame) -> Frame:
    if isinstance(frame, ArrayFrame) and frame.seen is not None:
        return msgspec.structs.replace(frame, seen=None, text=b"")
    if isinstance(frame, ObjectFrame) and frame.seen and not frame.has_one_free_key:
        return msgspec.structs.replace(frame, seen=frozenset())
    return frame
