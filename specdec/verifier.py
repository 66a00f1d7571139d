"""Drafts against the target: some accepted, then exactly one more token.

Terms, for one sequence and one target pass over K draft tokens:
    accepted   a draft token that is kept; so are all before it
    rejected   the first draft token that is not
    discarded  the draft tokens after that
    recovered  the token in a rejected one's place
    bonus      the target's token after all K were accepted

Three kinds of verification, chosen by each sequence's plan, all of which emit by the target's law:

Coupled (Daliri, Musco, Suresh 2024): the target draws its own token at every position with noise keyed by the position,
and a draft token is accepted iff it is that token. What is emitted is what the target alone would have drawn, whoever
drafted. So it is at temperature 0, where there is only one token to draw, whatever the plan.

A token of the synthetic proposer is accepted with the rate of its position, whatever the target draws: what is emitted
is then no model's, and allowed by the grammar all the same.

Rejection and block (acceptance_rules.py) hold the probabilities of target and draft against each other. Without a draft
they draw the token that the target alone would have.

B sequences, V vocabulary (the logits' width).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from specdec.acceptance_rules import RULES, DraftRow, accepts_whole_draft, residual
from specdec.batch import Batch
from specdec.noise import Stream, uniform
from specdec.proposers.base import DraftDistribution, Proposal
from specdec.request import TokenLogprob
from specdec.sampler import Sampler, SamplingRow, chunks, distributions, draw, draw_from
from specdec.speculative import SYNTHETIC


class Outcome(NamedTuple):
    """What one target pass gave one sequence."""

    token_ids: list[int]
    """The accepted tokens, then the recovered or bonus token; empty while the prompt is not yet computed."""
    num_accepted: int
    num_drafted: int
    logprobs: list[TokenLogprob]
    """One a token, where the request asks for them."""


@dataclass(frozen=True, slots=True)
class PendingOutcomes:
    """What one target pass gives its sequences, which may not be known to the host yet."""

    wait: Callable[[], list[Outcome]]
    """One a sequence, once all that leads to them is done, and without waiting for what the device was asked for after
    it; to be called once."""
    emitted_ids: Tensor | None = None
    """int64 [R] on the device, without waiting: of each sequence's rows the first have its tokens. None where the host
    knows them no later."""


@dataclass(slots=True)
class Walk:
    """One sequence's draft under way through its rows (acceptance_rules.py)."""

    proposal: Proposal
    rows: AbstractSequence[SamplingRow]
    """One a draft token and one more."""
    first_row: int
    """Of `rows` among the pass's logits."""
    num_accepted: int = 0
    recovered_id: int | None = None
    """None while the token after the accepted ones is the target's own, not drawn from a residual."""
    weight: float = 1.0

    @property
    def num_drafted(self) -> int:
        return len(self.proposal.token_ids)

    @property
    def goes_by_rule(self) -> bool:
        """Whether it is walked by probabilities, and not by the tokens that the target draws."""
        return bool(self.rows) and self.rows[0].draws_by_distribution and not self.is_synthetic

    def given(self, rates: AbstractSequence[float]) -> list[int]:
        """Which draft tokens are those of the synthetic proposer's that these rates accept."""
        if not self.is_synthetic:
            return []
        accept = uniform(self.rows[0].noise_key(Stream.ACCEPT))
        return [
            i
            for i, (source, rate) in enumerate(zip(self.proposal.sources, rates, strict=False))
            if source.proposer == SYNTHETIC and accept < rate
        ]

    @property
    def is_synthetic(self) -> bool:
        return SYNTHETIC in self.rows[0].sequence.plan.methods


class DraftVerifier(Protocol):
    """Holds every sequence's draft against the target, by the rule of its plan."""

    def verify(
        self,
        logits: Tensor,
        mask_rows: AbstractSequence[AbstractSequence[int | None]],
        batch: Batch,
        proposals: AbstractSequence[Proposal],
    ) -> list[Outcome]:
        """logits fp32 [R, V], overwritten; R counts, per sequence, one row a draft token and one more.

        `mask_rows` holds, for each sequence, the mask row of each of its rows; rows after a token that the grammar
        forbids may have any. Returns one outcome a sequence.
        """
        ...

    def launch(
        self,
        logits: Tensor,
        mask_rows: AbstractSequence[AbstractSequence[int | None]],
        batch: Batch,
        proposals: AbstractSequence[Proposal],
    ) -> PendingOutcomes:
        """As `verify`, without waiting: the logits may be overwritten by what the device is asked for from now on."""
        ...


class Verifier:
    """The CPU path, and the definition of the other (device_verifier.py)."""

    def __init__(
        self,
        sampler: Sampler,
        pieces: AbstractSequence[bytes],
        *,
        synthetic_acceptance_rates: AbstractSequence[float] = (),
    ) -> None:
        """`pieces` is what each token id adds to a text, special tokens included."""
        self._sampler = sampler
        self._synthetic_rates = synthetic_acceptance_rates
        self._pieces = pieces

    def verify(
        self,
        logits: Tensor,
        mask_rows: AbstractSequence[AbstractSequence[int | None]],
        batch: Batch,
        proposals: AbstractSequence[Proposal],
    ) -> list[Outcome]:
        rows, walks = walks_of(mask_rows, batch, proposals)
        raw = logits.clone() if any(row.sequence.params.logprobs is not None for row in rows) else None
        self._sampler.shape(logits, rows)
        by_rule = [walk for walk in walks if walk.num_drafted > 0 and walk.goes_by_rule]
        _walk_by_rule(logits, by_rule)
        drawn = draw(logits, rows, _rows_to_draw(walks))
        return [self._outcome(walk, drawn, raw) for walk in walks]

    def launch(
        self,
        logits: Tensor,
        mask_rows: AbstractSequence[AbstractSequence[int | None]],
        batch: Batch,
        proposals: AbstractSequence[Proposal],
    ) -> PendingOutcomes:
        outcomes = self.verify(logits, mask_rows, batch, proposals)
        return PendingOutcomes(lambda: outcomes)

    def _outcome(self, walk: Walk, drawn: Mapping[int, int], raw: Tensor | None) -> Outcome:
        """raw fp32 [R, V], the logits as they came."""
        if not walk.rows:
            return Outcome([], 0, 0, [])
        draft_ids = walk.proposal.token_ids
        if not walk.goes_by_rule:
            given = walk.given(self._synthetic_rates)
            while walk.num_accepted < walk.num_drafted and (
                drawn[walk.first_row + walk.num_accepted] == draft_ids[walk.num_accepted] or walk.num_accepted in given
            ):
                walk.num_accepted += 1
        last_id = walk.recovered_id
        if last_id is None:
            last_id = drawn[walk.first_row + walk.num_accepted]
        token_ids = [*draft_ids[: walk.num_accepted], last_id]
        num_top = walk.rows[0].sequence.params.logprobs
        logprobs = []
        if num_top is not None and raw is not None:
            logprobs = [self._logprob(raw[walk.first_row + i], each, num_top) for i, each in enumerate(token_ids)]
        return Outcome(token_ids, walk.num_accepted, walk.num_drafted, logprobs)

    def _logprob(self, logits: Tensor, token_id: int, num_top: int) -> TokenLogprob:
        logprobs = torch.log_softmax(logits, dim=-1)
        # Rows beyond the tokenizer's ids, which pad the vocabulary, are no tokens.
        top = logprobs[: len(self._pieces)].topk(num_top)
        return token_logprob(
            self._pieces,
            token_id,
            float(logprobs[token_id]),
            tuple(
                token_logprob(self._pieces, top_id, value)
                for top_id, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ),
        )


def walks_of(
    mask_rows: AbstractSequence[AbstractSequence[int | None]], batch: Batch, proposals: AbstractSequence[Proposal]
) -> tuple[list[SamplingRow], list[Walk]]:
    """The rows of a pass, and each sequence's draft at its beginning; arguments as in `verify`."""
    rows: list[SamplingRow] = []
    walks: list[Walk] = []
    for scheduled, proposal, masks in zip(batch.scheduled, proposals, mask_rows, strict=True):
        own = [SamplingRow(scheduled.sequence, proposal.token_ids[:i], mask) for i, mask in enumerate(masks)]
        walks.append(Walk(proposal, own, len(rows)))
        rows += own
    return rows, walks


def token_logprob(
    pieces: AbstractSequence[bytes], token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    """`pieces` is what each token id adds to a text."""
    token_bytes = pieces[token_id]
    return TokenLogprob(
        token_id=token_id,
        token=token_bytes.decode(errors="replace"),
        token_bytes=token_bytes,
        logprob=logprob,
        top=top,
    )


def _rows_to_draw(walks: AbstractSequence[Walk]) -> list[int]:
    """The rows at which the target draws a token of its own."""
    row_ids: list[int] = []
    for walk in walks:
        if not walk.rows:
            continue
        if not walk.goes_by_rule:
            row_ids += range(walk.first_row, walk.first_row + len(walk.rows))
        elif walk.recovered_id is None:
            row_ids.append(walk.first_row + walk.num_accepted)
    return row_ids


def _walk_by_rule(shaped: Tensor, walks: AbstractSequence[Walk]) -> None:
    """Take all walks to their ends, row by row, all sequences at once: shaped logits fp32 [R, V].

    Probabilities are worked out for no row that a walk does not come to.
    """
    num_preceding = 0
    while walks:
        for walk in walks:
            if walk.num_drafted == num_preceding:
                accept = uniform(walk.rows[num_preceding].noise_key(Stream.ACCEPT))
                if accepts_whole_draft(walk.weight, accept):
                    walk.num_accepted, walk.recovered_id = num_preceding, None
        walks = [walk for walk in walks if walk.num_drafted > num_preceding]
        for own in chunks(walks, shaped.shape[1]):
            _step_by_rule(shaped, own, num_preceding)
        walks = [walk for walk in walks if walk.weight > 0.0]
        num_preceding += 1


def _step_by_rule(shaped: Tensor, walks: AbstractSequence[Walk], num_preceding: int) -> None:
    """One row of each walk, the one after `num_preceding` draft tokens: shaped logits fp32 [R, V]."""
    rows = [walk.rows[num_preceding] for walk in walks]
    target_probs = distributions(shaped[[walk.first_row + num_preceding for walk in walks]], rows)
    draft_probs = _draft_probs(walks, num_preceding, shaped.shape[1])
    weights = torch.tensor([walk.weight for walk in walks], dtype=torch.float64)
    residuals = residual(target_probs, draft_probs, weights[:, None])
    draft_ids = torch.tensor([walk.proposal.token_ids[num_preceding] for walk in walks])[:, None]
    figures = zip(
        residuals.sum(dim=1).tolist(),
        target_probs.gather(1, draft_ids).squeeze(1).tolist(),
        draft_probs.gather(1, draft_ids).squeeze(1).tolist(),
        strict=True,
    )
    leaving: list[int] = []
    for i, (walk, row, (mass, target_prob, draft_prob)) in enumerate(zip(walks, rows, figures, strict=True)):
        accept = uniform(row.noise_key(Stream.ACCEPT))
        rule = RULES[row.sequence.plan.verification]
        step = rule(DraftRow(walk.weight, mass, target_prob, draft_prob, accept))
        walk.weight = step.weight
        if step.leaves:
            leaving.append(i)
    if leaving:
        uniforms = [uniform(rows[i].noise_key(Stream.RECOVERED)) for i in leaving]
        for i, token_id in zip(leaving, draw_from(residuals[leaving], uniforms), strict=True):
            walks[i].num_accepted, walks[i].recovered_id = num_preceding, token_id


def _draft_probs(walks: AbstractSequence[Walk], num_preceding: int, vocab_size: int) -> Tensor:
    """What each walk's next draft token was drawn from: fp64 [B, V]."""
    draft_probs = torch.zeros(len(walks), vocab_size, dtype=torch.float64)
    certain: list[int] = []
    drawn: list[int] = []
    known: list[DraftDistribution] = []
    for i, walk in enumerate(walks):
        distribution = walk.proposal.distributions[num_preceding] if walk.proposal.distributions else None
        if distribution is None:
            certain.append(i)
        else:
            drawn.append(i)
            known.append(distribution)
    if certain:
        draft_probs[certain, [walks[i].proposal.token_ids[num_preceding] for i in certain]] = 1.0
    if drawn:
        sizes = torch.tensor([len(each.token_ids) for each in known])
        row_ids = torch.tensor(drawn).repeat_interleave(sizes)
        token_ids = torch.cat([each.token_ids for each in known])
        draft_probs[row_ids, token_ids] = torch.cat([each.probs for each in known])
    return draft_probs
