"""Batch: what one engine step runs."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """One sequence's share of a step; its blocks already hold all the slots named here."""

    sequence: Sequence
    num_tokens: int
    """Verified tokens that the target computes: a chunk of the prompt, or the last token."""
    num_draft_slots: int
    """At most this many draft tokens may follow them."""
    num_draft_model_tokens: int
    """Verified tokens that the draft model may compute in this step, to catch up with the target."""

    @property
    def reaches_end(self) -> bool:
        """Whether this step computes the last known token, so that a new one is drawn."""
        return self.sequence.num_computed_tokens + self.num_tokens == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    scheduled: list[ScheduledSequence]

    def __bool__(self) -> bool:
        return bool(self.scheduled)
