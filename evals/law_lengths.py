"""PayingProposer: the engine's own chain and choice of lengths over a World, by clocks that make pay depend on luck.

Half of the tokens that the draft draws lead to others that are all but certain, which a drafter guesses for nothing.
With those the draft is worth several tokens, without them not one; a step with drafts takes longer than one without,
and hardly longer with many draft tokens than with one. Whoever cuts off a drawn token that led to no guess bends the
law of rejection and block verification.

Where a step with drafts takes so little longer that any drawn token pays, or so much that no draft does, nothing is cut
for what it led to. Between these there is a factor of two or three, so that samples take turns with clocks which are
about that far apart.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import Final

from specdec.batch import Batch, ScheduledSequence
from specdec.evals.law_cell import Cell
from specdec.evals.law_world import World
from specdec.proposers.base import NO_GUESS, Draft, Guess, Proposal
from specdec.proposers.chain import ChainProposer
from specdec.proposers.draft_model import DraftModel, Drawn
from specdec.proposers.draft_passes import DrawnStretch
from specdec.proposers.length import DraftLengths
from specdec.sampler import SamplingRow
from specdec.sequence import Sequence
from specdec.step_time import StepTime
from specdec.verifier import Outcome

_PLAIN_SECONDS: Final = 1.0
DRAFTING_SECONDS = (1.75, 2.75, 5.0)
"""Of a step with drafts, clock by clock."""
_SECONDS_PER_DRAFT_TOKEN: Final = 0.05
_DRAFT_MODEL_SECONDS: Final = 0.05
_SURE: Final = 8
"""The drafter's class of confidence, of the highest prior."""


class PayingProposer:
    """Drafts for many samples at once, each of which is chosen a length as if it ran alone."""

    def __init__(self, cell: Cell, world: World) -> None:
        kind = _CuttingLengths if cell.fault == "drawn drafts cut for what they led to" else _Lengths
        self._cell = cell
        self._clocks = [
            (seconds, ChainProposer([_Drafter(world)], _TableModel(world), kind())) for seconds in DRAFTING_SECONDS
        ]

    def propose(self, sequences: AbstractSequence[Sequence]) -> list[Proposal]:
        """One proposal a sequence."""
        proposals: dict[Sequence, Proposal] = {}
        for i, (_, chain) in enumerate(self._clocks):
            own = [sequence for sequence in sequences if sequence.seed % len(self._clocks) == i]
            batch = Batch([self._scheduled(sequence) for sequence in own])
            proposals |= zip(own, chain.propose(batch), strict=True)
        return [proposals[sequence] for sequence in sequences]

    def learn(
        self,
        sequences: AbstractSequence[Sequence],
        proposals: AbstractSequence[Proposal],
        outcomes: AbstractSequence[Outcome],
    ) -> None:
        """What became of the proposals; before the sequences have the new tokens."""
        for sequence, proposal, outcome in zip(sequences, proposals, outcomes, strict=True):
            if sequence.num_remaining_tokens <= self._cell.num_drafts:
                # Towards their ends texts have no room for drafts that pay; what is known of those is not to fade.
                continue
            drafting_seconds, chain = self._clocks[sequence.seed % len(self._clocks)]
            num_drafted = len(proposal.token_ids)
            seconds = drafting_seconds + _SECONDS_PER_DRAFT_TOKEN * num_drafted if num_drafted else _PLAIN_SECONDS
            chain.learn(Batch([self._scheduled(sequence)]), [proposal], [outcome], seconds)

    def _scheduled(self, sequence: Sequence) -> ScheduledSequence:
        sequence.num_computed_tokens = sequence.num_tokens - 1
        return ScheduledSequence(sequence, 1, min(self._cell.num_drafts, sequence.num_remaining_tokens - 1), 0)


class _Lengths(DraftLengths):
    """Chooses for one sequence after the other, by the cell's clock."""

    def __init__(self) -> None:
        flat = [(1, _PLAIN_SECONDS), (64, _PLAIN_SECONDS)]
        super().__init__(StepTime(flat), StepTime([(n, _DRAFT_MODEL_SECONDS) for n, _ in flat]))

    def cut(
        self, batch: Batch, drafts: AbstractSequence[Draft], num_tokens: AbstractSequence[int] | None = None
    ) -> list[Proposal]:
        assert num_tokens is None, "nothing is launched ahead here"
        return [
            proposal
            for scheduled, draft in zip(batch.scheduled, drafts, strict=True)
            for proposal in super(_Lengths, self).cut(Batch([scheduled]), [draft])
        ]

    def worth_drafting(self, batch: Batch, drafts: AbstractSequence[Draft]) -> list[Draft]:
        # One drawn token a draft: what a second one may be worth would blur what the first one led to.
        drafts = [draft for draft in drafts if not any(draft.distributions)]
        scheduled = {each.sequence: each for each in batch.scheduled}
        return [
            chosen
            for draft in drafts
            for chosen in super(_Lengths, self).worth_drafting(Batch([scheduled[draft.sequence]]), [draft])
        ]

    def observe_draft_pass(self, num_tokens: int, seconds: float) -> None:
        """Nothing: the pass of a table takes what the cell says."""


class _CuttingLengths(_Lengths):
    """Takes a drawn token for one that was found, and cuts it off where it does not pay."""

    @staticmethod
    def num_kept(draft: Draft) -> int:
        del draft
        return 0


class _Drafter:
    """Guesses what is all but certain."""

    name = "ngram"

    def __init__(self, world: World) -> None:
        self._world = world

    def guess(self, draft: Draft) -> Guess:
        text = self._world.text_of(draft)
        token_ids: list[int] = []
        while len(token_ids) < draft.num_free and self._world.num_sure[text]:
            token_ids.append(self._world.likeliest(text))
            text = self._world.next_text(text, token_ids[-1])
        return Guess(token_ids, _SURE) if token_ids else NO_GUESS

    def finished(self, sequence: Sequence) -> None:
        pass


class _TableModel(DraftModel):
    """A draft model that is a table: it has no KV to fall behind with."""

    def __init__(self, world: World) -> None:
        self._world = world

    @staticmethod
    def can_draft(scheduled: ScheduledSequence) -> bool:
        return scheduled.num_draft_slots > 0

    def max_tokens(self, sequence: Sequence) -> int:
        del sequence
        return 1

    def draw(
        self,
        drafts: AbstractSequence[Draft],
        num_tokens: AbstractSequence[int],
        lagging: AbstractSequence[ScheduledSequence] = (),
    ) -> Drawn:
        assert not lagging, "a table lags behind nothing"
        assert set(num_tokens) <= {1}, "it was said to draw one at a time"
        rows = [SamplingRow(draft.sequence, tuple(draft.token_ids), None) for draft in drafts]
        logits = self._world.draft_logits[[self._world.text_of(draft) for draft in drafts]]
        drawn = [DrawnStretch([each]) for each in self._world.sampler.sample_drafts(logits, rows)]
        return Drawn(drawn, [len(drafts)])
