"""Drafts against the target: some accepted, then exactly one more token.

Terms, for one sequence and one target pass over K draft tokens:
    accepted   a draft token that the target drew as well, at every position up to it
    rejected   the first draft token that it did not
    discarded  the draft tokens after that: never compared
    recovered  the target's own token in a rejected one's place
    bonus      the target's token after all K were accepted

Coupled verification (Daliri, Musco, Suresh 2024): the target draws its own token at every position with noise keyed by
the position, and a draft token is accepted iff it is that token. What is emitted is what the target alone would have
drawn, whoever drafted.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.batch import Batch
from specdec.proposers.base import Proposal
from specdec.request import TokenLogprob
from specdec.sampler import Sampler, SamplingRow
from specdec.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one target pass gave one sequence."""

    token_ids: list[int]
    """The accepted tokens, then the recovered or bonus token; empty while the prompt is not yet computed."""
    num_accepted: int
    num_drafted: int
    logprobs: list[TokenLogprob]
    """One a token, where the request asks for them."""


class CoupledVerifier:
    """One rule for every proposer: the target's own draws decide."""

    def __init__(self, sampler: Sampler, tokenizer: Tokenizer) -> None:
        self._sampler = sampler
        self._pieces = tokenizer.pieces(skip_special_tokens=False)

    def verify(
        self,
        logits: Tensor,
        mask_rows: AbstractSequence[AbstractSequence[int | None]],
        batch: Batch,
        proposals: AbstractSequence[Proposal],
    ) -> list[Outcome]:
        """logits fp32 [R, V], overwritten; R counts, per sequence, one row a draft token and one more.

        `mask_rows` holds, for each sequence, the mask row of each of its rows. Returns one outcome a sequence.
        """
        rows: list[SamplingRow] = []
        first_rows = []
        for scheduled, proposal, masks in zip(batch.scheduled, proposals, mask_rows, strict=True):
            first_rows.append(len(rows))
            for i, mask in enumerate(masks):
                rows.append(SamplingRow(scheduled.sequence, proposal.token_ids[:i], mask))
        raw = logits.clone() if any(row.sequence.params.logprobs is not None for row in rows) else None
        drawn = self._sampler.sample(logits, rows)
        outcomes = []
        for scheduled, proposal, masks, first in zip(batch.scheduled, proposals, mask_rows, first_rows, strict=True):
            own = drawn[first : first + len(masks)]
            num_accepted = 0
            while num_accepted < len(proposal.token_ids) and own[num_accepted] == proposal.token_ids[num_accepted]:
                num_accepted += 1
            token_ids = own[: num_accepted + 1]
            num_top = scheduled.sequence.params.logprobs
            logprobs = []
            if num_top is not None and raw is not None:
                logprobs = [self._logprob(raw[first + i], token_id, num_top) for i, token_id in enumerate(token_ids)]
            outcomes.append(Outcome(token_ids, num_accepted, len(proposal.token_ids), logprobs))
        return outcomes

    def _logprob(self, logits: Tensor, token_id: int, num_top: int) -> TokenLogprob:
        logprobs = torch.log_softmax(logits, dim=-1)
        top = logprobs.topk(num_top)
        return self._token_logprob(
            token_id,
            float(logprobs[token_id]),
            tuple(
                self._token_logprob(top_id, value)
                for top_id, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ),
        )

    def _token_logprob(self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        token_bytes = self._pieces[token_id]
        return TokenLogprob(
            token_id=token_id,
            token=token_bytes.decode(errors="replace"),
            token_bytes=token_bytes,
            logprob=logprob,
            top=top,
        )
