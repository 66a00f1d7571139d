"""Grammar: one constraint over one vocabulary: from immutable states to masks and successors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from specdec.grammars.automaton import Automaton
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.ceilings import Ceilings
from specdec.grammars.closings import Closings
from specdec.grammars.constraints import Constraint
from specdec.grammars.forced import ByteWalks, Run, RunTokens
from specdec.grammars.frame_keys import FRESH
from specdec.grammars.frames import Frame
from specdec.grammars.guard import GuardWalker
from specdec.grammars.layout import Pretty
from specdec.grammars.lexeme_bounds import LexemeBounds
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.mask_table import EOS_ROW, MaskTable
from specdec.grammars.masks import MaskWalker, position_alike, shared_position
from specdec.grammars.next_items import NextItems
from specdec.grammars.node_steps import Words
from specdec.grammars.positions import Done, Key, Literal, Position, Raw, Terminated
from specdec.grammars.program import Program
from specdec.grammars.reach import Reach
from specdec.grammars.speller import Speller, Spelling
from specdec.grammars.stacks import Config, Stack
from specdec.grammars.string_bodies import StringBodies
from specdec.grammars.vocabulary import Vocabulary


class GrammarState:
    """A position in a constrained text: immutable, interned and hashable; rollback is keeping a reference.

    Equal states of one grammar are the same object, so that equality and hash are identity.
    """

    __slots__ = ("__weakref__", "_mask", "position", "stack")

    def __init__(self, position: Position, stack: Stack | None) -> None:
        self.position = position
        self.stack = stack
        # (row, its stamp) once a mask was asked for; the one field that changes, and no observer sees it.
        self._mask: CachedMask | None = None

    def __repr__(self) -> str:
        return f"GrammarState({type(self.position).__name__}, depth={self.stack.depth if self.stack else 0})"


class CachedMask(NamedTuple):
    """A row of the mask table, for as long as it has this stamp."""

    row: int
    stamp: int
    reach: Reach | None
    """None where some tokens were decided one by one."""


_DEEPER = CachedMask(-1, -1, None)
"""In place of a cached mask: it depends on one more frame."""

_MAX_CACHED = 8192
"""Of the steps and of the masks of one grammar."""
_MAX_GUARDED = 128
"""Of the masks of one grammar under which so many more tokens complete the text."""
_GUARDED_BYTES = 300
"""Of one of them; its words are the mask table's."""
_STEP_BYTES = 500
"""Of one of them, with its state."""
_MASK_BYTES = 1500
"""Of one of them, with where its tokens lead."""
_RUN_BYTES = 300
"""Of what every text goes on with after a state."""


class Runtime:
    """What all grammars of a vocabulary share: the mask table and bounded caches."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        mask_table: MaskTable,
        lexicon: Lexicon,
        bodies: StringBodies,
        run_tokens: RunTokens | None,
    ) -> None:
        self.vocabulary = vocabulary
        self.mask_table = mask_table
        self.lexicon = lexicon
        self.bodies = bodies
        self.speller = Speller(vocabulary)
        self.byte_walks = ByteWalks(vocabulary, lexicon)
        self.run_tokens = run_tokens
        self.num_computed_masks = 0


class Grammar:
    """Compiled by GrammarCompiler. Its methods are called from one thread at a time (the engine's)."""

    def __init__(self, constraint: Constraint, program: Program, runtime: Runtime) -> None:
        self.constraint = constraint
        """What it was compiled from."""
        self.report = program.report
        self._program_bytes = program.num_bytes
        self._runtime = runtime
        self._eos = frozenset(runtime.vocabulary.eos_token_ids)
        lexicon = runtime.lexicon.with_used(program.automata)
        self._automaton = Automaton(program, lexicon)
        self._automaton.load()
        self._closings = Closings(self._automaton, program, lexicon, runtime.speller)
        self._closings.load()
        # Caches of the grammar's own, so that nothing of it is left when it is dropped.
        self._steps: BoundedCache[tuple[GrammarState, int], GrammarState] = BoundedCache(_MAX_CACHED)
        # From (depth, position) and then frame by frame to (row, stamp), or DEEPER where one more frame matters.
        self._masks: BoundedCache[tuple[object, Position | Frame | None], CachedMask] = BoundedCache(_MAX_CACHED)
        self._unlike: BoundedCache[Config, bool] = BoundedCache(_MAX_CACHED)
        """Where `_mask_alike` finds none."""
        self._next_items = NextItems(self._automaton)
        self._bounds = LexemeBounds(self._automaton, self._closings, runtime.speller)
        self._ceilings = Ceilings(self._automaton, self._bounds)
        self._guarded: BoundedCache[tuple[GrammarState, int], CachedMask] = BoundedCache(_MAX_GUARDED)
        self._runs: BoundedCache[GrammarState, Run] = BoundedCache(1024)
        self._states: WeakValueDictionary[Config, GrammarState] = WeakValueDictionary()
        self.initial_state: GrammarState = self._intern(self._automaton.start)
        self._terminated = self._intern((Terminated(), None))
        self.initial_plan = self.closing(self.initial_state)
        """What completes the empty text in few tokens; None where it is too long to plan for."""

    @property
    def num_bytes(self) -> int:
        """Memory, roughly: of what was compiled, and of what walks have left in caches."""
        return (
            self._program_bytes
            + _STEP_BYTES * self._steps.num_kept
            + _MASK_BYTES * self._masks.num_kept
            + _RUN_BYTES * self._runs.num_kept
            + _GUARDED_BYTES * self._guarded.num_kept
        )

    def advance(self, state: GrammarState, token_id: int) -> GrammarState | None:
        """The state after the token; None where it is not allowed.

        An end-of-sequence id leads from an accepting state to the terminated state, which allows nothing but
        end-of-sequence and stays as it is.
        """
        key = (state, token_id)
        successor = self._steps.get(key)
        if successor is not None:
            return successor
        if token_id in self._eos:
            return self._terminated if self.is_accepting(state) or state is self._terminated else None
        data = self._runtime.vocabulary.token_bytes(token_id)
        successor = self._advance_special(state, token_id) if data is None else self.advance_bytes(state, data)
        if successor is not None:
            self._steps.put(key, successor)
        return successor

    def advance_bytes(self, state: GrammarState, data: bytes) -> GrammarState | None:
        """The state after the bytes; None where they leave the language."""
        config = self._automaton.feed((state.position, state.stack), data)
        return None if config is None else self._intern(config)

    def _advance_special(self, state: GrammarState, token_id: int) -> GrammarState | None:
        config = self._automaton.special_step((state.position, state.stack), token_id)
        return None if config is None else self._intern(config)

    def mask_row(self, state: GrammarState) -> int:
        """Row of the compiler's mask table with exactly the tokens that `advance` accepts; never empty.

        The row of the terminated state allows end-of-sequence only. How long a row id stays valid: mask_table.py.
        """
        table = self._runtime.mask_table
        mask = state._mask  # noqa: SLF001, the grammar's own cache on its state
        if mask is None or table.stamps[mask[0]] != mask[1]:
            mask = state._mask = self._find_mask(state)  # noqa: SLF001
        row = mask[0]
        table.touch(row)
        return row

    def is_accepting(self, state: GrammarState) -> bool:
        """The text may end here: end-of-sequence is allowed."""
        if state.stack is not None:
            return False
        position = state.position
        if isinstance(position, Literal):
            rules = self._automaton.value_rules.of(position.goals, None)
            return bool(rules.met_by_literal(position.text, position.number))
        if isinstance(position, Raw):
            return self._automaton.raw_text.is_accepting(position.state)
        return isinstance(position, Done)

    def is_terminated(self, state: GrammarState) -> bool:
        """End-of-sequence was taken."""
        return state is self._terminated

    def only_eos(self, state: GrammarState) -> bool:
        """End-of-sequence is all that is allowed; true of the terminated state as well."""
        return state.stack is None and self.mask_row(state) == EOS_ROW

    def allows(self, state: GrammarState, token_id: int) -> bool:
        """Whether `advance` accepts the token."""
        return self.advance(state, token_id) is not None

    def token_bytes(self, token_id: int) -> bytes | None:
        """The token's bytes, None for one without."""
        return self._runtime.vocabulary.token_bytes(token_id)

    def closing(self, state: GrammarState) -> Spelling | None:
        """A short text that completes the state's, with the fewest tokens that spell it; None where it is too long."""
        return self._closings.of((state.position, state.stack))

    def forced_bytes(self, state: GrammarState) -> bytes:
        """What every text goes on with; nothing where it may end. Of a longer run the first 512 bytes."""
        return self._run(state).data

    def forced_tokens(self, state: GrammarState, preceding: Sequence[int]) -> tuple[int, ...]:
        """Tokens that spell a beginning of the forced bytes as the tokenizer would, after the tokens before them.

        Those at the end that what follows may change are left out (forced.py). `preceding` may begin anywhere before
        the state. ValueError where the compiler was given no tokenizer.
        """
        run = self._run(state)
        return self._run_tokens().of(run, preceding) if run.data else ()

    def likely_tokens(self, state: GrammarState, preceding: Sequence[int]) -> tuple[int, ...]:
        """Like `forced_tokens`, with those that what follows may change: allowed all the same, and worth a try."""
        run = self._run(state)
        return self._run_tokens().likely(run, preceding) if run.data else ()

    def _run_tokens(self) -> RunTokens:
        if self._runtime.run_tokens is None:
            raise ValueError("forced tokens need GrammarCompiler(vocabulary, retokenizer=...)")
        return self._runtime.run_tokens

    def _run(self, state: GrammarState) -> Run:
        run = self._runs.get(state)
        if run is None:
            run = self._runtime.byte_walks.run(self._automaton, (state.position, state.stack))
            self._runs.put(state, run)
        return run

    @property
    def minimum_tokens(self) -> int | None:
        """Tokens of the shortest answer that is guaranteed; None where that is too long to plan for."""
        return None if self.initial_plan is None else self.initial_plan.num_tokens

    def first_tokens(self, plan: Spelling, num_tokens: int) -> list[int]:
        """Those with which the plan may begin so that num_tokens more complete it."""
        return self._runtime.speller.first_tokens(plan, num_tokens)

    def mask_row_within(self, state: GrammarState, num_tokens: int, plan: Spelling) -> int:
        """Row with the tokens after which num_tokens more complete the text, and with the next ones of the plan.

        `plan` completes the state's text in at most num_tokens + 1 tokens. End-of-sequence needs no token.
        """
        bound = self._closings.bound(state.stack)
        if (bound is not None and bound <= num_tokens) or self._fits_all(state, num_tokens):
            return self.mask_row(state)
        table = self._runtime.mask_table
        words = table.rows[self._guarded_row(state, num_tokens)].copy()
        for token_id in self.first_tokens(plan, num_tokens):
            words[token_id >> 5] |= np.uint32(1 << (token_id & 31))
        if self.is_accepting(state):
            words |= table.eos_words
        return table.intern(words)

    def unguarded_from(self, state: GrammarState) -> int | None:
        """Tokens for which, and for any more, mask_row_within is mask_row, whatever the plan; None if not known."""
        bound = self._closings.bound(state.stack)
        reach = self._reach(state)
        if reach is None:
            return bound
        config = state.position, state.stack
        ceiling = self._ceilings.rough(config, reach)
        if ceiling is None:
            ceiling = self._ceilings.close(config, reach)
        return bound if ceiling is None else ceiling if bound is None else min(bound, ceiling)

    def _guarded_row(self, state: GrammarState, num_tokens: int) -> int:
        """Row with the tokens after which so many more are known to complete the text."""
        table = self._runtime.mask_table
        mask = self._guarded.get((state, num_tokens))
        if mask is None or table.stamps[mask[0]] != mask[1]:
            runtime = self._runtime
            config = state.position, state.stack
            walker = GuardWalker(
                runtime.vocabulary, runtime.bodies, self._automaton, self._next_items, self._bounds, config, num_tokens
            )
            # Equal for most numbers of tokens: words of each one's own took 26 MB after a thousand answers.
            row = table.intern(walker.words)
            mask = CachedMask(row, table.stamps[row], None)
            self._guarded.put((state, num_tokens), mask)
        table.touch(mask[0])
        return mask[0]

    def _fits_all(self, state: GrammarState, num_tokens: int) -> bool:
        """Whether so many tokens are known to complete the text after any token of the state's mask."""
        reach = self._reach(state)
        if reach is None:
            return False
        config = state.position, state.stack
        ceiling = self._ceilings.rough(config, reach)
        if ceiling is None or ceiling > num_tokens:
            ceiling = self._ceilings.close(config, reach)
        return ceiling is not None and ceiling <= num_tokens

    def _reach(self, state: GrammarState) -> Reach | None:
        """Where the tokens of its mask lead; None where that is not kept, since some are decided one by one."""
        if state.stack is not None and state.stack.is_remembered:
            return None
        self.mask_row(state)
        mask = state._mask  # noqa: SLF001, the grammar's own cache on its state
        assert mask is not None, "the row was found"
        return mask.reach

    def _intern(self, config: Config) -> GrammarState:
        state = self._states.get(config)
        if state is None:
            state = self._states[config] = GrammarState(*config)
        return state

    def _find_mask(self, state: GrammarState) -> CachedMask:
        if state is self._terminated:
            return CachedMask(EOS_ROW, self._runtime.mask_table.stamps[EOS_ROW], None)
        shared = shared_position(state.position, self._automaton)
        mask = self._cached_mask(shared, state.stack)
        if mask is None and shared is not state.position:
            mask = self._cached_mask(state.position, state.stack)
        return self._walk(state, shared) if mask is None else mask

    def _cached_mask(self, position: Position, stack: Stack | None) -> CachedMask | None:
        found = self._cached_mask_and_depth(position, stack)
        return None if found is None else found[0]

    def _cached_mask_and_depth(self, position: Position, stack: Stack | None) -> tuple[CachedMask, int] | None:
        """The mask, and the number of frames that it depends on."""
        masks = self._masks
        key: tuple[object, Position | Frame | None] = (self._mask_root(stack), position)
        mask = masks.get(key)
        num_frames = 0
        while mask is _DEEPER:
            key = (key, None if stack is None else stack.frame)
            stack = None if stack is None else stack.below
            mask = masks.get(key)
            num_frames += 1
        if mask is None or self._runtime.mask_table.stamps[mask[0]] != mask[1]:
            return None
        return mask, num_frames

    def _mask_root(self, stack: Stack | None) -> int:
        """What a mask depends on beside the position and frames: where lines are indented, how deep they are."""
        return 0 if stack is None or not isinstance(self._automaton.layout, Pretty) else stack.depth

    def _walk(self, state: GrammarState, shared: Position) -> CachedMask:
        runtime = self._runtime
        runtime.num_computed_masks += 1
        config = state.position, state.stack
        like = None if shared is not state.position else self._mask_alike(*config)
        walker = MaskWalker(runtime.vocabulary, runtime.bodies, self._automaton, self._next_items, config, like)
        if walker.may_end:
            walker.words |= runtime.mask_table.eos_words
        row = runtime.mask_table.intern(walker.words)
        mask = CachedMask(row, runtime.mask_table.stamps[row], walker.reach())
        if walker.decided_singly and isinstance(state.position, Key) and state.position.text == FRESH:
            # What was decided by the text of no key in particular says nothing about any.
            return mask
        # Tokens decided one by one depend on everything, and that is what the position and all frames are.
        num_frames = 2**31 if walker.decided_singly else walker.num_frames_read
        key: tuple[object, Position | Frame | None]
        key = (self._mask_root(state.stack), state.position if walker.decided_singly else shared)
        stack = state.stack
        for _ in range(num_frames):
            self._masks.put(key, _DEEPER)
            key = (key, None if stack is None else stack.frame)
            if stack is None:
                break
            stack = stack.below
        self._masks.put(key, mask)
        return mask

    def _mask_alike(self, position: Position, stack: Stack | None) -> tuple[Words, int, Reach] | None:
        """A copy of a mask that this one is nearly like, the number of frames that it depends on, and its reach."""
        alike = position_alike(position, self._automaton)
        if alike is None:
            return None
        found = self._cached_mask_and_depth(alike, stack)
        if found is None:
            if self._unlike.get((alike, stack)):
                return None
            self._walk(self._intern((alike, stack)), alike)
            found = self._cached_mask_and_depth(alike, stack)
            if found is None:
                self._unlike.put((alike, stack), True)
                return None
        mask, num_frames = found
        assert mask.reach is not None, "decided singly, a mask is not kept for such a key"
        return self._runtime.mask_table.rows[mask.row].copy(), num_frames, mask.reach
