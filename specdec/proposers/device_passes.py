"""DevicePasses: several tokens a draft with every call, and the host waits once: the GPU path.

Each token is drawn, fed to the next pass and followed through its sequence's grammar where the model runs; the host
only says beforehand where everything goes. Where there are graphs it does no more than replay one for each token
(captured_drafting.py), else it launches each pass (launched_drafting.py). A stretch ends behind a token that leads
where the device does not know the mask (transition_mirror.py). The host takes all tokens through the grammar anyway,
and puts that transition there for the next time. Sequences whose logits depend on the tokens drafted before, or whose
drafts are verified by what they were drawn from, draw one token with every call.

B stretches, the longest first; T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as AbstractSequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.attention import Span
from specdec.captured_drafting import CapturedDrafting, graphs_of
from specdec.device_tensors import HostCopy, Parts
from specdec.faults import SequenceFaultError, attributed_to
from specdec.grammars import BudgetedState, Grammar, GrammarState, MaskTable
from specdec.graph_capture import GraphCapture
from specdec.kernels.grammar_advance import FALLBACK_ROW, grammar_advance
from specdec.launched_drafting import DraftLoop, LaunchedDrafting
from specdec.model_runner import ModelRunner
from specdec.noise import Stream, noise_keys, noise_state
from specdec.proposers.draft_passes import DrawingStretches, DrawnStretch, FollowedTokens, SinglePasses, Stretch
from specdec.sampler import DraftSampler, divisor_of, penalises, truncates
from specdec.sequence import Sequence
from specdec.speculative import MAX_DRAFT_TOKENS, Verification
from specdec.transition_mirror import TransitionMirror
from specdec.triton_attention import TritonAttention

_Value = TypeVar("_Value")


class _LoopUnderWay(NamedTuple):
    numbers: Tensor
    """int64: DrawnLoop.joined"""
    num_columns: int
    num_drawn: int
    """Of the numbers those that are tokens."""
    copy: HostCopy


class DevicePasses:
    """A draft model on the device."""

    def __init__(self, runner: ModelRunner, sampler: DraftSampler, mask_table: MaskTable, num_token_ids: int) -> None:
        """`sampler` draws where a call draws one token; ids from num_token_ids on are padding."""
        self.followed = FollowedTokens()
        self.transitions = TransitionMirror(mask_table, runner.device)
        self._single = SinglePasses(runner, sampler)
        self._runner = runner
        self._num_token_ids = num_token_ids
        self._launched = LaunchedDrafting(runner, num_token_ids=num_token_ids)
        self._captured: CapturedDrafting | None = None
        self._transitions = self.transitions.on_device(())
        """As they were last asked for."""
        self._followed: WeakKeyDictionary[Sequence, tuple[int, GrammarState]] = WeakKeyDictionary()
        """How many of each one's tokens have been followed, and the state after them."""
        self._compile()

    @property
    def num_graphs(self) -> int:
        return 0 if self._captured is None else len(self._captured)

    def capture(
        self,
        sizes: AbstractSequence[int],
        new_capture: Callable[[], GraphCapture],
        *,
        max_model_len: int,
        report: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Loops of no more sequences than one of the sizes are replayed from now on.

        `report` is told of how many sizes and kinds there are graphs. The runner's logits have room for the largest
        size. Raises RuntimeError where the device refuses; all loops are then launched kernel by kernel.
        """
        runner = self._runner
        assert isinstance(runner.attention, TritonAttention), "what is captured are kernels"
        captured = CapturedDrafting(
            runner.model,
            runner.cache,
            runner.attention,
            runner.logits.rows(max(sizes), runner.model.config.vocab_size),
            sizes,
            new_capture,
            num_token_ids=self._num_token_ids,
            max_model_len=max_model_len,
        )
        for each in graphs_of(sizes):
            report(len(captured))
            captured.capture(each, self._transitions)
        report(len(captured))
        self._captured = captured

    def max_tokens(self, sequence: Sequence) -> int:
        return MAX_DRAFT_TOKENS if _draws_ahead(sequence) else 1

    def draw(self, stretches: AbstractSequence[Stretch], silent: AbstractSequence[Span]) -> list[DrawnStretch]:
        self._follow_masked(stretches)
        if all(stretch.num_tokens == 1 for stretch in stretches):
            drawn = self._single.draw(stretches, silent)
            return [self._learnt(*each) for each in zip(stretches, drawn, strict=True)]
        ordered = sorted(stretches, key=lambda stretch: -stretch.num_tokens)
        ahead = [stretch for stretch in ordered if _draws_ahead(stretch.row.sequence)]
        single = [stretch for stretch in ordered if not _draws_ahead(stretch.row.sequence)]
        with self._finding_fault(stretches):
            loop, of_single = self._launch(ahead, single, silent)
            drawn = self._arrived(loop, ahead)
            if of_single is not None:
                drawn += [DrawnStretch([one]) for one in self._single.sample(of_single, single)]
        return _in_order_of(stretches, (*ahead, *single), drawn)

    def launch(self, stretches: AbstractSequence[Stretch], silent: AbstractSequence[Span]) -> DrawingStretches | None:
        if not stretches or not all(_draws_ahead(stretch.row.sequence) for stretch in stretches):
            return None
        self._follow_masked(stretches)
        ahead = sorted(stretches, key=lambda stretch: -stretch.num_tokens)
        with self._finding_fault(stretches):
            loop, _ = self._launch(ahead, (), silent)
        places = [range(i, loop.num_drawn, loop.num_columns)[: each.num_tokens] for i, each in enumerate(ahead)]

        def wait() -> list[DrawnStretch]:
            with self._finding_fault(stretches):
                drawn = self._arrived(loop, ahead)
            return _in_order_of(stretches, ahead, drawn)

        return DrawingStretches(loop.numbers, _in_order_of(stretches, ahead, places), loop.copy.has_arrived, wait)

    def _follow_masked(self, stretches: AbstractSequence[Stretch]) -> None:
        for stretch in stretches:
            if _is_masked(stretch) and _draws_ahead(stretch.row.sequence):
                with attributed_to(stretch.row.sequence, "draft"):
                    self._follow(stretch)

    @contextmanager
    def _finding_fault(self, stretches: AbstractSequence[Stretch]) -> Iterator[None]:
        try:
            yield
        except SequenceFaultError:
            raise
        except Exception:
            self._single.find_fault(stretches)
            raise

    def _launch(
        self, ahead: AbstractSequence[Stretch], single: AbstractSequence[Stretch], silent: AbstractSequence[Span]
    ) -> tuple[_LoopUnderWay, Tensor | None]:
        """Of `ahead`, which is the longest first; and logits fp32 [B', V] for `single`, where there is any."""
        loop = self._loop(ahead)
        logits = self._runner.forward([*(each.span for each in (*ahead, *single)), *silent], self._single.logits)
        # The next pass's take their place.
        of_single = logits[len(ahead) :].clone() if single else None
        drawn = loop(logits[: len(ahead)])
        numbers, num_columns = drawn.joined(), len(drawn.last_ids)
        copy = HostCopy(self._runner.device, numbers.view(torch.uint8), [numbers])
        return _LoopUnderWay(numbers, num_columns, num_columns * ahead[0].num_tokens, copy), of_single

    def _arrived(self, loop: _LoopUnderWay, ahead: AbstractSequence[Stretch]) -> list[DrawnStretch]:
        """The one wait."""
        [array] = loop.copy.arrays()
        numbers = array.tolist()
        remaining = numbers[loop.num_drawn :]
        result: list[DrawnStretch] = []
        for i, stretch in enumerate(ahead):
            token_ids = numbers[i : loop.num_drawn : loop.num_columns][: stretch.num_tokens]
            if _is_masked(stretch):
                num_advances = _state_of(stretch).remaining - remaining[i]
                token_ids = token_ids[: num_advances + 1]
            result.append(self._learnt(stretch, DrawnStretch([(token_id, None) for token_id in token_ids])))
        return result

    def _compile(self) -> None:
        """Follow nobody, so that no answer waits for the kernel."""
        device = self._runner.device
        numbers, token_ids = (torch.zeros(1, dtype=dtype, device=device) for dtype in (torch.int32, torch.int64))
        is_known = torch.zeros(1, dtype=torch.bool, device=device)
        grammar_advance(numbers, token_ids, numbers, is_known, token_ids, self._transitions.table)

    def _loop(self, stretches: AbstractSequence[Stretch]) -> DraftLoop:
        """With what the host knows beforehand on its way to the device."""
        masked = [stretch for stretch in stretches if _is_masked(stretch)]
        numbers = iter(self.transitions.number([_state_of(stretch).state for stretch in masked]))
        rows = [FALLBACK_ROW if stretch.row.mask_row is None else stretch.row.mask_row for stretch in stretches]
        if masked:
            self._transitions = self.transitions.on_device(rows)
        are_masked = [_is_masked(stretch) for stretch in stretches]
        every = [stretch.row.sequence.params for stretch in stretches]
        parts: Parts = {
            "temperatures": (
                np.float32,
                [0.0 if each.temperature == 0.0 else divisor_of(each.temperature) for each in every],
            ),
            "states": (np.int32, [next(numbers) if each else 0 for each in are_masked]),
            "remaining": (np.int32, [_state_of(each).remaining if _is_masked(each) else 0 for each in stretches]),
            "is_known": (np.bool_, are_masked),
            "mask_row_ids": (np.int64, rows),
            "is_masked": (np.bool_, are_masked),
        }
        if any(truncates(params) for params in every):
            parts["top_k"] = (np.int32, [min(params.top_k, self._num_token_ids) for params in every])
            parts["top_p"] = (np.float64, [params.top_p for params in every])
            parts["min_p"] = (np.float64, [params.min_p for params in every])
        spans = [stretch.span for stretch in stretches]
        given = (spans, [stretch.num_tokens for stretch in stretches], _keys(stretches), parts, self._transitions)
        captured = None if self._captured is None else self._captured.send(*given)
        return self._launched.send(*given) if captured is None else captured

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


def _in_order_of(
    stretches: AbstractSequence[Stretch], others: AbstractSequence[Stretch], values: AbstractSequence[_Value]
) -> list[_Value]:
    """Values of the same stretches in another order."""
    by_stretch = {id(stretch): value for stretch, value in zip(others, values, strict=True)}
    return [by_stretch[id(stretch)] for stretch in stretches]


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


def _keys(stretches: AbstractSequence[Stretch]) -> NDArray[np.int64]:
    """int64 [T, B, 2]: of each position of each stretch the two words of its noise."""
    num_positions = stretches[0].num_tokens
    keys = np.zeros((num_positions, len(stretches), 2), dtype=np.int64)
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
