"""DraftModelProposer: a smaller model with the target's vocabulary drafts token by token.

It draws through the target's sampler with the target's noise, under the target's grammar mask, and keeps its KV in its
own part of the target's blocks. Its watermark may lag: it then feeds what it missed before it drafts.
"""

from __future__ import annotations

from specdec.attention import Span
from specdec.batch import Batch, ScheduledSequence
from specdec.grammars import BudgetedState
from specdec.model_runner import ModelRunner
from specdec.proposers.base import Proposal
from specdec.sampler import Sampler, SamplingRow


class _Draft:
    """The draft of one sequence as it grows."""

    __slots__ = ("scheduled", "state", "token_ids")

    def __init__(self, scheduled: ScheduledSequence) -> None:
        self.scheduled = scheduled
        self.token_ids: list[int] = []
        self.state: BudgetedState | None = scheduled.sequence.grammar_state

    @property
    def row(self) -> SamplingRow:
        sequence = self.scheduled.sequence
        mask_row = None
        if sequence.grammar is not None and self.state is not None:
            mask_row = sequence.grammar.mask_row(self.state)
        return SamplingRow(sequence, tuple(self.token_ids), mask_row)

    def push(self, token_id: int) -> None:
        sequence = self.scheduled.sequence
        self.token_ids.append(token_id)
        if sequence.grammar is not None and self.state is not None:
            self.state = sequence.grammar.advance(self.state, token_id)

    @property
    def is_full(self) -> bool:
        """Nothing can follow: no slots are left, or the answer would have ended."""
        sequence = self.scheduled.sequence
        if len(self.token_ids) >= self.scheduled.num_draft_slots:
            return True
        if not self.token_ids:
            return False
        if sequence.grammar is not None:
            assert self.state is not None, "a drafted token was allowed by its mask"
            return sequence.grammar.is_terminated(self.state) or sequence.grammar.only_eos(self.state)
        return self.token_ids[-1] in sequence.eos_token_ids and not sequence.params.ignore_eos


class DraftModelProposer:
    """Batches all sequences through the draft model, once a drafted token."""

    name = "draft_model"
    num_drafts_cut_by_grammar = 0

    def __init__(self, runner: ModelRunner, sampler: Sampler) -> None:
        self._runner = runner
        self._sampler = sampler

    def propose(self, batch: Batch) -> list[Proposal]:
        drafts = [_Draft(scheduled) for scheduled in batch.scheduled]
        drafting = self._catch_up(drafts)
        while drafting:
            spans = [
                Span(
                    draft.token_ids[-1:],
                    draft.scheduled.sequence.num_draft_computed_tokens,
                    draft.scheduled.sequence.block_table,
                    num_logits=1,
                )
                for draft in drafting
            ]
            drafting = self._extend(drafting, spans)
        return [Proposal(draft.token_ids) for draft in drafts]

    def _catch_up(self, drafts: list[_Draft]) -> list[_Draft]:
        """Feed the verified tokens that the draft's KV lacks; returns the drafts that got a first token and go on."""
        feeding, spans, silent = [], [], []
        for draft in drafts:
            scheduled, sequence = draft.scheduled, draft.scheduled.sequence
            end = sequence.num_computed_tokens + scheduled.num_tokens
            start = sequence.num_draft_computed_tokens
            num_fed = min(end - start, scheduled.num_draft_model_tokens)
            if num_fed == 0:
                continue
            goes_on = start + num_fed == sequence.num_tokens and scheduled.num_draft_slots > 0
            span = Span(sequence.token_ids[start : start + num_fed], start, sequence.block_table, int(goes_on))
            if goes_on:
                feeding.append(draft)
                spans.append(span)
            else:
                silent.append(span)
                sequence.num_draft_computed_tokens += num_fed
        return self._extend(feeding, spans, silent)

    def _extend(self, drafts: list[_Draft], spans: list[Span], silent: list[Span] | None = None) -> list[_Draft]:
        """One pass and one draw a draft; returns those that are not full.

        `silent` spans only write their KV.
        """
        if not spans and not silent:
            return []
        logits = self._runner.forward([*spans, *(silent or [])])
        for draft, span in zip(drafts, spans, strict=True):
            draft.scheduled.sequence.num_draft_computed_tokens += len(span.token_ids)
        token_ids = self._sampler.sample(logits, [draft.row for draft in drafts])
        for draft, token_id in zip(drafts, token_ids, strict=True):
            draft.push(token_id)
        return [draft for draft in drafts if not draft.is_full]
