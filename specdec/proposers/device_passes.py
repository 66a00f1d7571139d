"""DevicePasses: several tokens a draft with every call, and the host waits once: the GPU path.

Each token is drawn, fed to the next pass and followed through its sequence's grammar where the model runs; the host
only says beforehand where everything goes. A stretch ends behind a token that leads where the device does not know the
mask (transition_mirror.py). The host takes all tokens through the grammar anyway, and puts that transition there for
the next time. Sequences whose logits depend on the tokens drafted before, or whose drafts are verified by what they
were drawn from, draw one token with every call.

B stretches, the longest first; S tokens of the longest; W columns, B and some more.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.attention import Span
from specdec.device_tensors import together_on_device
from specdec.faults import SequenceFaultError, attributed_to
from specdec.grammars import BudgetedState, Grammar, GrammarState, MaskTable
from specdec.kernels.grammar_advance import FALLBACK_ROW, grammar_advance
from specdec.kernels.sample import sample
from specdec.model_runner import ModelRunner
from specdec.noise import Stream, noise_keys, noise_state
from specdec.proposers.draft_passes import DrawnStretch, FollowedTokens, SinglePasses, Stretch
from specdec.sampler import DraftSampler, divisor_of, penalises, truncates
from specdec.sequence import Sequence
from specdec.speculative import MAX_DRAFT_TOKENS, Verification
from specdec.transition_mirror import TransitionMirror, Transitions

_ALIGNED_COLUMNS: Final = 8
"""At a multiple of which a position's numbers begin: Triton compiles a kernel once more for a less aligned pointer."""


@dataclass(frozen=True, slots=True)
class _Loop:
    """What the positions of the stretches are drawn from, and where these are in their grammars; on the device."""

    keys: Tensor
    """int64 [S, W, 2]"""
    temperatures: Tensor
    """fp32 [B]"""
    cuts: dict[str, Tensor]
    """top_k int32, top_p and min_p fp64 [B]; empty where nothing is cut."""
    states: Tensor
    """int32 [B]"""
    remaining: Tensor
    """int32 [B]"""
    is_known: Tensor
    """bool [B], False for those without a mask"""
    mask_row_ids: Tensor
    """int64 [B]"""
    is_masked: Tensor
    """bool [B]"""
    transitions: Transitions | None
    """None where there is no mask."""


class DevicePasses:
    """A draft model on the device."""

    def __init__(self, runner: ModelRunner, sampler: DraftSampler, mask_table: MaskTable, num_token_ids: int) -> None:
        """`sampler` draws where a call draws one token; ids from num_token_ids on are padding."""
        self.followed = FollowedTokens()
        self.transitions = TransitionMirror(mask_table, runner.device)
        self._single = SinglePasses(runner, sampler)
        self._runner = runner
        self._num_token_ids = num_token_ids
        self._followed: WeakKeyDictionary[Sequence, tuple[int, GrammarState]] = WeakKeyDictionary()
        """How many of each one's tokens have been followed, and the state after them."""
        self._compile()

    def max_tokens(self, sequence: Sequence) -> int:
        return MAX_DRAFT_TOKENS if _draws_ahead(sequence) else 1

    def draw(self, stretches: AbstractSequence[Stretch], silent: AbstractSequence[Span]) -> list[DrawnStretch]:
        for stretch in stretches:
            if _is_masked(stretch) and _draws_ahead(stretch.row.sequence):
                with attributed_to(stretch.row.sequence, "draft"):
                    self._follow(stretch)
        if all(stretch.num_tokens == 1 for stretch in stretches):
            drawn = self._single.draw(stretches, silent)
            return [self._learnt(*each) for each in zip(stretches, drawn, strict=True)]
        ordered = sorted(stretches, key=lambda stretch: -stretch.num_tokens)
        ahead = [stretch for stretch in ordered if _draws_ahead(stretch.row.sequence)]
        single = [stretch for stretch in ordered if not _draws_ahead(stretch.row.sequence)]
        try:
            drawn = self._draw(ahead, single, silent)
        except SequenceFaultError:
            raise
        except Exception:
            self._single.find_fault(stretches)
            raise
        by_stretch = {id(stretch): one for stretch, one in zip((*ahead, *single), drawn, strict=True)}
        return [by_stretch[id(stretch)] for stretch in stretches]

    def _draw(
        self, ahead: AbstractSequence[Stretch], single: AbstractSequence[Stretch], silent: AbstractSequence[Span]
    ) -> list[DrawnStretch]:
        """Of `ahead`, which is the longest first, then of `single`, a token each."""
        loop = self._loop(ahead)
        logits = self._runner.forward([*(each.span for each in (*ahead, *single)), *silent], self._single.logits)
        # The next pass's take their place.
        of_single = logits[len(ahead) :].clone() if single else None
        drawn = self._run(ahead, logits[: len(ahead)], loop)
        # The one wait.
        numbers = torch.cat([drawn.flatten(), loop.remaining.long()]).tolist()
        num_columns = drawn.shape[1]
        remaining = numbers[drawn.numel() :]
        result: list[DrawnStretch] = []
        for i, stretch in enumerate(ahead):
            token_ids = numbers[i : drawn.numel() : num_columns][: stretch.num_tokens]
            if _is_masked(stretch):
                num_advances = _state_of(stretch).remaining - remaining[i]
                token_ids = token_ids[: num_advances + 1]
            result.append(self._learnt(stretch, DrawnStretch([(token_id, None) for token_id in token_ids])))
        if of_single is not None:
            result += [DrawnStretch([drawn]) for drawn in self._single.sample(of_single, single)]
        return result

    def _run(self, stretches: AbstractSequence[Stretch], logits: Tensor, loop: _Loop) -> Tensor:
        """logits fp32 [B, V] of the first tokens -> what was drawn at each position, int64 [S, W]."""
        num_positions, num_columns = loop.keys.shape[:2]
        drawn = torch.zeros(num_positions, num_columns, dtype=torch.int64, device=logits.device)
        mask = {}
        for position in range(num_positions):
            going = [stretch for stretch in stretches if stretch.num_tokens > position]
            count = len(going)
            if position:
                before = drawn[position - 1, :count]
                if loop.transitions is not None:
                    grammar_advance(
                        loop.states[:count],
                        before,
                        loop.remaining[:count],
                        loop.is_known[:count],
                        loop.mask_row_ids[:count],
                        loop.transitions.table,
                    )
                logits = self._runner.forward_drawn(
                    [_span_of_drawn(stretch, position) for stretch in going], before, self._single.logits
                )
            if loop.transitions is not None:
                mask = {
                    "mask_rows": loop.transitions.mask_rows,
                    "mask_row_ids": loop.mask_row_ids[:count],
                    "is_constrained": loop.is_masked[:count],
                }
            sample(
                logits,
                loop.keys[position, :count],
                loop.temperatures[:count],
                drawn[position, :count],
                num_token_ids=self._num_token_ids,
                **{name: cut[:count] for name, cut in loop.cuts.items()},
                **mask,
            )
        return drawn

    def _compile(self) -> None:
        """Follow nobody, so that no answer waits for the kernel."""
        device = self._runner.device
        numbers, token_ids = (torch.zeros(1, dtype=dtype, device=device) for dtype in (torch.int32, torch.int64))
        is_known = torch.zeros(1, dtype=torch.bool, device=device)
        table = self.transitions.on_device(()).table
        grammar_advance(numbers, token_ids, numbers, is_known, token_ids, table)

    def _loop(self, stretches: AbstractSequence[Stretch]) -> _Loop:
        """What the host knows beforehand, on the device, in a few copies."""
        masked = [stretch for stretch in stretches if _is_masked(stretch)]
        numbers = iter(self.transitions.number([_state_of(stretch).state for stretch in masked]))
        rows = [FALLBACK_ROW if stretch.row.mask_row is None else stretch.row.mask_row for stretch in stretches]
        transitions = self.transitions.on_device(rows) if masked else None
        are_masked = [_is_masked(stretch) for stretch in stretches]
        every = [stretch.row.sequence.params for stretch in stretches]
        keys = _keys(stretches)
        has_border = any(truncates(params) for params in every)
        words, rows_now, top_k, states, remaining, is_known, is_masked, temperatures, top_p, min_p = together_on_device(
            self._runner.device,
            (np.int64, keys.ravel()),
            (np.int64, rows),
            (np.int32, [min(params.top_k, self._num_token_ids) for params in every]),
            (np.int32, [next(numbers) if each else 0 for each in are_masked]),
            (np.int32, [_state_of(each).remaining if _is_masked(each) else 0 for each in stretches]),
            (np.uint8, are_masked),
            (np.uint8, are_masked),
            (np.float32, [0.0 if each.temperature == 0.0 else divisor_of(each.temperature) for each in every]),
            (np.float64, [params.top_p for params in every]),
            (np.float64, [params.min_p for params in every]),
        )
        return _Loop(
            keys=words.view(keys.shape),
            temperatures=temperatures,
            cuts={"top_k": top_k, "top_p": top_p, "min_p": min_p} if has_border else {},
            states=states,
            remaining=remaining,
            is_known=is_known.view(torch.bool),
            mask_row_ids=rows_now,
            is_masked=is_masked.view(torch.bool),
            transitions=transitions,
        )

    def _follow(self, stretch: Stretch) -> None:
        """Put the transitions that a text has taken since its last stretch."""
        sequence = stretch.row.sequence
        assert sequence.grammar_state is not None, "a constrained sequence has a state"
        here = sequence.num_tokens, sequence.grammar_state.state
        num_followed, state = self._followed.get(sequence, here)
        self._followed[sequence] = here
        if sequence.num_tokens - num_followed > MAX_DRAFT_TOKENS + 1:
            # Nothing was drafted for it for a while: to walk so far would hold up the others' step.
            return
        grammar = _grammar_of(stretch)
        for token_id in sequence.token_ids[num_followed:]:
            successor = grammar.advance(state, token_id)
            assert successor is not None, "it is a token of the text"
            self.transitions.put(grammar, state, token_id, successor)
            state = successor

    def _learnt(self, stretch: Stretch, drawn: DrawnStretch) -> DrawnStretch:
        """With whether it is lost: the transition behind its last token is then put for the next time."""
        if not _is_masked(stretch) or not _draws_ahead(stretch.row.sequence):
            return drawn
        with attributed_to(stretch.row.sequence, "draft"):
            num_known, num_lacking, num_guarded = self.followed
            num_tokens = len(drawn.tokens)
            has_ended_early = num_tokens < stretch.num_tokens
            if num_tokens == stretch.draft.num_free:
                # Nothing was to follow.
                self.followed = FollowedTokens(num_known + num_tokens - 1, num_lacking, num_guarded)
                return drawn
            grammar, state = _grammar_of(stretch), _state_of(stretch).state
            for token_id, _ in drawn.tokens[:-1]:
                state = _after(grammar, state, token_id)
            last = drawn.tokens[-1][0]
            after = _after(grammar, state, last)
            is_lacking = self.transitions.put(grammar, state, last, after)
            is_guarded = has_ended_early and not is_lacking and not grammar.is_terminated(after)
            self.followed = FollowedTokens(
                num_known + num_tokens - 1, num_lacking + (has_ended_early and is_lacking), num_guarded + is_guarded
            )
            return drawn._replace(is_lost=is_lacking or is_guarded)


def _draws_ahead(sequence: Sequence) -> bool:
    """Whether its shaped logits, and its draws, need nothing of the tokens drafted before but the grammar's state."""
    params = sequence.params
    return (
        (sequence.plan.verification is Verification.COUPLED or params.temperature == 0.0)
        and not params.logit_bias
        and not penalises(params)
        and params.min_tokens <= sequence.num_output_tokens
    )


def _is_masked(stretch: Stretch) -> bool:
    return stretch.row.mask_row is not None


def _state_of(stretch: Stretch) -> BudgetedState:
    assert stretch.draft.state is not None, "a draft that is masked has a state"
    return stretch.draft.state


def _grammar_of(stretch: Stretch) -> Grammar:
    assert stretch.row.sequence.grammar is not None, "a draft that is masked has a grammar"
    return stretch.row.sequence.grammar.grammar


def _after(grammar: Grammar, state: GrammarState, token_id: int) -> GrammarState:
    successor = grammar.advance(state, token_id)
    assert successor is not None, "the mask allowed the token"
    return successor


def _span_of_drawn(stretch: Stretch, position: int) -> Span:
    """Of the token before this position of the stretch: which it is, the device knows."""
    start = stretch.span.context_len + position - 1
    return Span((0,), start, stretch.span.block_table, num_logits=1)


def _keys(stretches: AbstractSequence[Stretch]) -> NDArray[np.int64]:
    """int64 [S, W, 2]: of each position of each stretch the two words of its noise."""
    num_positions = stretches[0].num_tokens
    num_columns = -(-len(stretches) // _ALIGNED_COLUMNS) * _ALIGNED_COLUMNS
    keys = np.zeros((num_positions, num_columns, 2), dtype=np.int64)
    # At temperature 0 there is no noise.
    noisy = [i for i, stretch in enumerate(stretches) if stretch.row.sequence.params.temperature > 0.0]
    if noisy:
        rows = [stretches[i].row for i in noisy]
        states = [noise_state(row.sequence.seed, row.sequence.choice_index) for row in rows]
        places = np.arange(num_positions)[:, None] + np.array([row.position for row in rows], np.int64)
        words = noise_keys(np.tile(np.array(states, np.uint64), num_positions), places.ravel(), Stream.TOKEN)
        # Also of positions beyond a stretch's last, which nobody looks at.
        keys[:, noisy] = words.reshape(num_positions, len(noisy), 2)
    return keys
