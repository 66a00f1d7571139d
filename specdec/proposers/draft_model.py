"""DraftModel: a smaller model with the target's vocabulary drafts token by token, for all sequences at once.

It draws through the target's sampler, under the target's grammar mask, and keeps its KV in its own part of the target's
blocks. Its watermark may lag: it then feeds what it missed before it drafts.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from functools import partial
from typing import Final

from torch import Tensor

from specdec.attention import Span
from specdec.batch import ScheduledSequence
from specdec.faults import attributed_to, find_fault
from specdec.model_runner import ModelRunner
from specdec.proposers.base import Draft, DraftDistribution, Source
from specdec.sampler import DraftSampler, SamplingRow
from specdec.speculative import SYNTHETIC

SOURCE: Final = Source("draft_model")
_SYNTHETIC: Final = Source(SYNTHETIC)
"""Of its tokens where they are accepted at given rates (synthetic.py)."""


class DraftModel:
    """One pass and one token a draft with every call."""

    def __init__(self, runner: ModelRunner, sampler: DraftSampler) -> None:
        self._runner = runner
        self._sampler = sampler
        self._logits = runner.logits

    @staticmethod
    def can_draft(scheduled: ScheduledSequence) -> bool:
        """Whether its KV can reach the end of the verified tokens in this step."""
        sequence = scheduled.sequence
        lag = sequence.num_tokens - sequence.num_draft_computed_tokens
        return scheduled.num_draft_slots > 0 and lag <= scheduled.num_draft_model_tokens

    def extend(self, drafts: AbstractSequence[Draft], lagging: AbstractSequence[ScheduledSequence] = ()) -> int:
        """Draw one more token for each draft; sequences that lag are fed what this step lets them.

        Returns the tokens of the pass.
        """
        rows = [self._row(draft) for draft in drafts]
        spans = [_span_of_missing(draft) for draft in drafts]
        silent = [_span_of_lag(scheduled) for scheduled in lagging]
        logits = self._runner.forward([*spans, *silent], self._logits)
        for draft, span in zip(drafts, spans, strict=True):
            draft.sequence.num_draft_computed_tokens += len(span.token_ids)
        for scheduled, span in zip(lagging, silent, strict=True):
            scheduled.sequence.num_draft_computed_tokens += len(span.token_ids)
        if drafts:
            for draft, (token_id, distribution) in zip(drafts, self._draw(logits, rows, spans), strict=True):
                with attributed_to(draft.sequence, "draft"):
                    is_synthetic = SYNTHETIC in draft.sequence.plan.methods
                    draft.push_unmasked(token_id, _SYNTHETIC if is_synthetic else SOURCE, distribution)
        else:
            # Whoever asks is going to time the pass.
            self._runner.wait()
        return sum(len(span.token_ids) for span in (*spans, *silent))

    def _draw(
        self, logits: Tensor, rows: AbstractSequence[SamplingRow], spans: AbstractSequence[Span]
    ) -> list[tuple[int, DraftDistribution | None]]:
        """logits fp32 [R, V], overwritten, which the spans gave."""
        try:
            return self._sampler.sample_drafts(logits, rows)
        except Exception:
            logits = self._runner.forward(spans, self._logits)
            draws = [partial(self._sampler.sample_drafts, logits[i : i + 1], [row]) for i, row in enumerate(rows)]
            find_fault("draft", zip((row.sequence for row in rows), draws, strict=True))
            raise

    def _row(self, draft: Draft) -> SamplingRow:
        grammar = draft.sequence.grammar
        mask_row = None
        if grammar is not None and draft.sequence.plan.mask_drafts:
            assert draft.state is not None, "a full draft is not extended"
            with attributed_to(draft.sequence, "draft"):
                mask_row = grammar.mask_row(draft.state)
        return SamplingRow(draft.sequence, tuple(draft.token_ids), mask_row)


def _span_of_missing(draft: Draft) -> Span:
    """What the model has not computed of the text and the draft."""
    sequence = draft.sequence
    start = sequence.num_draft_computed_tokens
    num_drafted = max(0, start - sequence.num_tokens)
    token_ids = sequence.token_ids[start:] + draft.token_ids[num_drafted:]
    return Span(token_ids, start, sequence.block_table, num_logits=1)


def _span_of_lag(scheduled: ScheduledSequence) -> Span:
    sequence = scheduled.sequence
    start = sequence.num_draft_computed_tokens
    end = min(sequence.num_computed_tokens + scheduled.num_tokens, start + scheduled.num_draft_model_tokens)
    return Span(sequence.token_ids[start:end], start, sequence.block_table, num_logits=0)
