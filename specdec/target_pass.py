"""The parts of one target pass: the tokens that it computes, the masks of its rows, and whose fault it is if they fail.

R rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from functools import partial

from torch import Tensor

from specdec.attention import Span
from specdec.batch import Batch
from specdec.faults import attributed_to, find_fault
from specdec.grammars import DraftWalk, draft_rows
from specdec.proposers.base import Proposal
from specdec.sequence import Sequence
from specdec.verifier import DraftVerifier, Outcome

RowMasks = AbstractSequence[int | None]
"""For each of one sequence's rows of logits its row of the mask table; None where it is free."""


def target_spans(batch: Batch, proposals: AbstractSequence[Proposal], vocab_size: int) -> list[Span]:
    """Each sequence's share, then its drafts. Raises SequenceFaultError for a draft that the pass cannot take."""
    spans = []
    for scheduled, proposal in zip(batch.scheduled, proposals, strict=True):
        sequence, draft_ids = scheduled.sequence, proposal.token_ids
        if draft_ids:
            with attributed_to(sequence, "draft"):
                # The pass fails for all with an id that is none, and past the slots it writes into others' blocks.
                assert len(draft_ids) <= scheduled.num_draft_slots, "a draft fits its slots"
                assert all(0 <= token_id < vocab_size for token_id in draft_ids), "a draft is made of tokens"
        start = sequence.num_computed_tokens
        spans.append(
            Span(
                [*sequence.token_ids[start : start + scheduled.num_tokens], *draft_ids],
                start,
                sequence.block_table,
                num_logits=len(draft_ids) + 1 if scheduled.reaches_end else 0,
            )
        )
    return spans


def masks_of_rows(batch: Batch, proposals: AbstractSequence[Proposal]) -> list[RowMasks]:
    """For each sequence the mask of each of its rows of logits: one a draft token and one more.

    Raises SequenceFaultError where one sequence's grammar fails.
    """
    walking: list[Sequence] = []
    walks: list[DraftWalk] = []
    for scheduled, proposal in zip(batch.scheduled, proposals, strict=True):
        sequence = scheduled.sequence
        if scheduled.reaches_end and sequence.grammar is not None:
            assert sequence.grammar_state is not None, "a constrained sequence has a state"
            walking.append(sequence)
            walks.append(DraftWalk(sequence.grammar, sequence.grammar_state, proposal.token_ids))
    try:
        walked = iter(draft_rows(walks))
    except Exception:
        find_fault("mask", ((each, partial(draft_rows, [walk])) for each, walk in zip(walking, walks, strict=True)))
        raise
    masks: list[RowMasks] = []
    for scheduled, proposal in zip(batch.scheduled, proposals, strict=True):
        if not scheduled.reaches_end:
            masks.append([])
        elif scheduled.sequence.grammar is None:
            masks.append([None] * (len(proposal.token_ids) + 1))
        else:
            masks.append(next(walked))
    return masks


def find_fault_of_verifying(
    verifier: DraftVerifier,
    logits: Tensor,
    masks: AbstractSequence[RowMasks],
    batch: Batch,
    proposals: AbstractSequence[Proposal],
) -> None:
    """Verify each sequence by itself; raises SequenceFaultError for the first that fails so. logits fp32 [R, V]."""
    trials: list[tuple[Sequence, partial[list[Outcome]]]] = []
    for scheduled, own_masks, proposal in zip(batch.scheduled, masks, proposals, strict=True):
        rows, logits = logits[: len(own_masks)], logits[len(own_masks) :]
        work = partial(verifier.verify, rows, [own_masks], Batch([scheduled]), [proposal])
        trials.append((scheduled.sequence, work))
    find_fault("sample", trials)
