"""Proposer: guesses the next tokens of each sequence; a wrong guess costs time, never the answer."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Protocol

from specdec.batch import Batch


@dataclass(frozen=True, slots=True)
class Proposal:
    """Draft tokens for one sequence, each allowed by its grammar after those before it."""

    token_ids: AbstractSequence[int] = ()


class Proposer(Protocol):
    """Drafts for every sequence of a batch."""

    name: str
    num_drafts_cut_by_grammar: int
    """Draft runs ended because the grammar forbade the next token."""

    def propose(self, batch: Batch) -> list[Proposal]:
        """One proposal a scheduled sequence, of at most its num_draft_slots tokens.

        Whether to draft on may depend on tokens drawn before, never on the one that is then discarded.
        """
        ...


NO_PROPOSAL = Proposal()


class NoProposer:
    """Plain decoding."""

    name = "none"
    num_drafts_cut_by_grammar = 0

    def propose(self, batch: Batch) -> list[Proposal]:
        return [NO_PROPOSAL] * len(batch.scheduled)
