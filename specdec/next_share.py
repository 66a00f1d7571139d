"""NextShare: what a sequence runs in the step after this one, as far as it is known before this one's tokens are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from specdec.batch import Batch
from specdec.sequence import Sequence


@dataclass(frozen=True, slots=True)
class NextShare:
    """The one token that this step draws for the sequence, or tokens that are known: its prompt's next chunk."""

    sequence: Sequence
    start_position: int
    """Behind what this step computes."""
    num_tokens: int
    drawn_row: int | None
    """Of this step's rows of logits that from which the token is drawn; None where the tokens are known."""
    reaches_end: bool
    """Whether a token is drawn after them."""

    @property
    def num_new_tokens(self) -> int:
        """With those of this step, which do not count as computed yet."""
        return self.start_position + self.num_tokens - self.sequence.num_computed_tokens

    @property
    def is_in_step(self) -> bool:
        """Whether this step, too, computes something of the sequence."""
        return self.start_position > self.sequence.num_computed_tokens


def next_shares(running: Iterable[Sequence], batch: Batch, max_num_tokens: int) -> list[NextShare]:
    """What the next step gives the running sequences, as it shares its tokens out: the oldest first.

    It does if nobody comes, goes or is preempted, and nothing was drafted in this one, whose batch is given. Left out
    are those that end with this step's token; any other may yet end. None where a draft model has a part of the budget,
    which depends on how far it has come.
    """
    given = {id(each.sequence): each for each in batch.scheduled}
    drawn = [id(each.sequence) for each in batch.scheduled if each.reaches_end]
    rows = {sequence_id: row for row, sequence_id in enumerate(drawn)}
    shares: list[NextShare] = []
    for sequence in running:
        own, row = given.get(id(sequence)), rows.get(id(sequence))
        if row is not None and sequence.num_remaining_tokens == 1:
            continue
        if max_num_tokens == 0:
            break
        if sequence.plan.has_draft_model:
            return []
        start = sequence.num_computed_tokens + (0 if own is None else own.num_tokens)
        needed = sequence.num_tokens - start + (row is not None)
        num_tokens = min(needed, max_num_tokens)
        shares.append(NextShare(sequence, start, num_tokens, row, reaches_end=num_tokens == needed))
        max_num_tokens -= num_tokens
    return shares
