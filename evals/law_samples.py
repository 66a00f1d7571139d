"""Samples of a cell: many texts at once, drafted and verified by the engine's own sampler and verifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specdec.batch import Batch, ScheduledSequence
from specdec.evals.law_cell import Cell
from specdec.evals.law_lengths import PayingProposer
from specdec.evals.law_world import World
from specdec.noise import Stream, noise_key
from specdec.proposers.base import DraftDistribution, Proposal
from specdec.sampler import SamplingRow
from specdec.sequence import Sequence
from specdec.verifier import Verifier

_BATCH = 2000
_LEARNING_BATCH = 400
"""Where lengths are chosen by what became of drafts before: what is learnt of a batch tells in the next."""


@dataclass(slots=True)
class Samples:
    """How often each text came out, and what became of the drafts."""

    counts: NDArray[np.int64]
    num_drafted: int = 0
    num_accepted: int = 0


class _SharedNoiseRow(SamplingRow):
    """Draws drafts with the noise that recovered tokens are drawn with."""

    __slots__ = ()

    def noise_key(self, stream: Stream) -> tuple[int, int]:
        return SamplingRow.noise_key(self, Stream.RECOVERED if stream is Stream.DRAFT else stream)


class _OverlappingNoiseRow(SamplingRow):
    """Draws drafts with noise that knows the position and not the draft."""

    __slots__ = ()

    def noise_key(self, stream: Stream) -> tuple[int, int]:
        return noise_key(self.sequence.seed, self.sequence.choice_index, self.position, stream)


_DRAFT_ROWS: dict[str | None, type[SamplingRow]] = {
    "draft and recovered draws share noise": _SharedNoiseRow,
    "overlapping drafts share noise": _OverlappingNoiseRow,
}


def draw_samples(cell: Cell, world: World, *, num_samples: int, seed: int, on_batch: Callable[[int], None]) -> Samples:
    """One sample a seed, from `seed` on; `on_batch` hears of the samples drawn so far."""
    samples = Samples(np.zeros(world.num_samples_possible, np.int64))
    verifier = Verifier(world.sampler, [b""] * (cell.vocab_size + 1))
    proposer = PayingProposer(cell, world) if cell.drafted_by == "pay" else None
    batch_size = _BATCH if proposer is None else _LEARNING_BATCH
    for start in range(0, num_samples, batch_size):
        sequences = [world.sequence(seed + i) for i in range(start, min(start + batch_size, num_samples))]
        running = sequences
        while running:
            _step(cell, world, verifier, proposer, running, samples)
            running = [sequence for sequence in running if sequence.num_remaining_tokens > 0]
        texts = [world.text(sequence) for sequence in sequences]
        samples.counts += np.bincount(texts, minlength=len(samples.counts))
        on_batch(start + len(sequences))
    return samples


def _step(
    cell: Cell,
    world: World,
    verifier: Verifier,
    proposer: PayingProposer | None,
    sequences: list[Sequence],
    samples: Samples,
) -> None:
    """Some tokens more for each sequence, as a step of the engine gives them."""
    if proposer is None:
        drafts = _drafts(cell, world, sequences)
        proposals = [Proposal(draft.token_ids, (), draft.distributions) for draft in drafts]
        texts = [draft.texts for draft in drafts]
    else:
        proposals = proposer.propose(sequences)
        texts = [_texts(world, *each) for each in zip(sequences, proposals, strict=True)]
    mask_rows = [[world.mask_rows[text] for text in own] for own in texts]
    batch = Batch([ScheduledSequence(sequence, 1, 0, 0) for sequence in sequences])
    logits = world.target_logits[[text for own in texts for text in own]]
    outcomes = verifier.verify(logits, mask_rows, batch, proposals)
    if proposer is not None:
        proposer.learn(sequences, proposals, outcomes)
    for sequence, outcome in zip(sequences, outcomes, strict=True):
        sequence.token_ids += outcome.token_ids
        samples.num_drafted += outcome.num_drafted
        samples.num_accepted += outcome.num_accepted


def _texts(world: World, sequence: Sequence, proposal: Proposal) -> list[int]:
    """Numbers of the text before each draft token and after the last."""
    texts = [world.text(sequence)]
    for token_id in proposal.token_ids:
        texts.append(world.next_text(texts[-1], token_id))
    return texts


@dataclass(slots=True)
class _Draft:
    sequence: Sequence
    num_slots: int
    texts: list[int]
    """Numbers of the text before each draft token and after the last; a forbidden token adds none of its own."""
    token_ids: list[int] = field(default_factory=list)
    distributions: list[DraftDistribution | None] = field(default_factory=list)


def _drafts(cell: Cell, world: World, sequences: list[Sequence]) -> list[_Draft]:
    """A step gives one token more than it drafts, so that the last token of a text is never drafted."""
    num_slots = 0 if cell.drafted_by == "nobody" else cell.num_drafts
    drafts = [
        _Draft(sequence, min(num_slots, sequence.num_remaining_tokens - 1), [world.text(sequence)])
        for sequence in sequences
    ]
    row_type = _DRAFT_ROWS.get(cell.fault, SamplingRow)
    drafting = [draft for draft in drafts if draft.num_slots > 0]
    while drafting:
        rows = [
            row_type(
                draft.sequence, tuple(draft.token_ids), world.mask_rows[draft.texts[-1]] if cell.mask_drafts else None
            )
            for draft in drafting
        ]
        logits = world.draft_logits[[draft.texts[-1] for draft in drafting]]
        if cell.drafted_by == "chain" and not drafting[0].token_ids:
            found = logits[:, : cell.vocab_size].argmax(dim=1).tolist()
            drawn: list[tuple[int, DraftDistribution | None]] = [(token_id, None) for token_id in found]
        else:
            drawn = world.sampler.sample_drafts(logits, rows)
        drafting = [
            draft
            for draft, (token_id, distribution) in zip(drafting, drawn, strict=True)
            if _goes_on(cell, world, draft, token_id, distribution)
        ]
    return drafts


def _goes_on(cell: Cell, world: World, draft: _Draft, token_id: int, distribution: DraftDistribution | None) -> bool:
    """Add a token to a draft; False where nothing can follow it."""
    is_allowed = world.allows(draft.texts[-1], token_id)
    if not is_allowed and cell.fault == "forbidden drafts dropped":
        return False
    draft.token_ids.append(token_id)
    draft.distributions.append(distribution)
    draft.texts.append(world.next_text(draft.texts[-1], token_id) if is_allowed else draft.texts[-1])
    return is_allowed and len(draft.token_ids) < draft.num_slots
