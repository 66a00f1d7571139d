"""ChainProposer: one draft by many. What is had for nothing comes first, and the draft model fills what is left.

For each sequence all drafters are asked, and again after every guess that the grammar took something of: a forced run
may follow an n-gram, and an n-gram a forced run. What the grammar forces comes first, then the guess that is likeliest
to be right by what became of its kind before. Where none has an idea, the draft model draws a token, or several in a
row, and behind each of them they are asked again; in free text on a GPU in the next step only, so that the target's
pass can be launched before the host knows what was drawn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as AbstractSequence
from functools import partial
from typing import Final

from specdec.batch import Batch, ScheduledSequence
from specdec.faults import SequenceFaultError, attributed_to
from specdec.proposers.base import BeginPass, Draft, Drafter, DrawnAhead, Guess, Proposal, Source
from specdec.proposers.draft_model import SOURCE as DRAFT_MODEL
from specdec.proposers.draft_model import DraftModel, Drawn, source_of
from specdec.proposers.draft_passes import DrawnStretch, FollowedTokens
from specdec.proposers.drafter_time import DrafterTime
from specdec.proposers.grammar import GrammarDrafter
from specdec.proposers.length import DraftLengths, with_model_tokens
from specdec.proposers.stretch_lengths import StretchLengths
from specdec.sequence import Sequence, SequenceStatus
from specdec.speculative import SYNTHETIC
from specdec.verifier import Outcome

_MAX_LAG: Final = 64
"""Tokens that the draft model may be behind before it catches up though nothing is drafted with it."""
_MAX_FIRST_TOKENS: Final = 2
"""A sequence's in the first of several passes in a row: behind a draft that was accepted whole it has two to feed."""
_LEAST_CHANCE: Final = 0.02
"""That all tokens of a draft are accepted: below it nothing is looked for that might follow. Where every token costs
next to nothing to verify a few would have paid, by less than their share of this."""
_NO_STRETCH: Final = DrawnStretch([])


class ChainProposer:
    """Drafts with those drafters, and that model, that each sequence's plan names."""

    def __init__(
        self, drafters: AbstractSequence[Drafter], draft_model: DraftModel | None, lengths: DraftLengths
    ) -> None:
        """The drafters in the order in which they are asked."""
        self.num_drafts_cut_by_grammar = 0
        """Guesses that ended because the grammar forbade their next token."""
        self._drafters = drafters
        self._draft_model = draft_model
        self._lengths = lengths
        self._stretches = StretchLengths()
        self._time = DrafterTime()

    @property
    def followed(self) -> FollowedTokens:
        """Tokens of the draft model, by what came of following them without the host."""
        return FollowedTokens() if self._draft_model is None else self._draft_model.followed

    @property
    def num_graphs(self) -> int:
        """Sizes and kinds of the draft model's loop that are replayed."""
        return 0 if self._draft_model is None else self._draft_model.num_graphs

    def may_draft(self, sequence: Sequence) -> bool:
        """Whether the step after this one may have a draft for the sequence, whatever token this one brings."""
        if not sequence.can_be_drafted_for(frozenset()):
            return False
        return sequence.plan.has_draft_model or not self._lengths.is_pausing(sequence)

    def propose(self, batch: Batch, begin_pass: BeginPass | None = None) -> list[Proposal]:
        """One proposal a scheduled sequence, of at most its num_draft_slots tokens.

        Whether to draft on depends on tokens drawn before, never on the one that is then discarded. `begin_pass` is
        called, once at most, where the device draws the rest of all drafts, before that is waited for.
        """
        drafts = [Draft.of(scheduled.sequence, scheduled.num_draft_slots) for scheduled in batch.scheduled]
        for draft in drafts:
            with attributed_to(draft.sequence, "draft"):
                if self._lengths.is_worth_a_look(draft):
                    self._fill(draft)
        num_tokens = None
        if self._draft_model is not None:
            num_tokens = self._draft_with_model(self._draft_model, batch, drafts, begin_pass)
        return self._lengths.cut(batch, drafts, num_tokens)

    def learn(
        self, batch: Batch, proposals: AbstractSequence[Proposal], outcomes: AbstractSequence[Outcome], seconds: float
    ) -> list[SequenceFaultError]:
        """What became of the proposals, and how long the step took after they were made.

        Returns what failed, of sequences that nothing more is to be drafted for.
        """
        faults = []
        self._lengths.observe(batch, proposals, seconds)
        num_emitted = sum(len(outcome.token_ids) for outcome in outcomes)
        seconds_per_token = seconds / max(1, num_emitted)
        for scheduled, proposal, outcome in zip(batch.scheduled, proposals, outcomes, strict=True):
            try:
                with attributed_to(scheduled.sequence, "learn"):
                    self._learn(scheduled.sequence, proposal, outcome, seconds_per_token)
            except SequenceFaultError as fault:
                faults.append(fault)
        if num_emitted:
            self._time.settle(seconds_per_token)
        return faults

    def _learn(self, sequence: Sequence, proposal: Proposal, outcome: Outcome, seconds_per_token: float) -> None:
        if proposal.token_ids:
            self._lengths.estimates.observe(sequence, proposal.sources, outcome.num_accepted)
            for source in proposal.sources[: outcome.num_accepted]:
                self._time.save(source.proposer, 1, seconds_per_token)
        if sequence.status is SequenceStatus.FINISHED:
            for drafter in self._drafters:
                drafter.finished(sequence)

    def _fill(self, draft: Draft) -> None:
        """Draft what needs no model."""
        drafters = self._drafters_for(draft.sequence)
        while drafters and not draft.is_full and self._may_pay(draft) and self._add_best(draft, drafters):
            pass

    def _drafters_for(self, sequence: Sequence) -> list[Drafter]:
        """Those that may have an idea. The synthetic one leaves the drafting to a model where there is one, unasked."""
        plan = sequence.plan
        return [
            drafter
            for drafter in self._drafters
            if drafter.name in plan.methods
            and not (plan.has_draft_model and drafter.name == SYNTHETIC)
            and (plan.num_tokens is not None or self._time.is_worth_asking(drafter.name))
        ]

    def _may_pay(self, draft: Draft) -> bool:
        """Whether one more token could be worth its verification; where the length is fixed that is not asked."""
        return draft.sequence.plan.num_tokens is not None or self._lengths.chance_of_all(draft) >= _LEAST_CHANCE

    def _add_best(self, draft: Draft, drafters: AbstractSequence[Drafter]) -> bool:
        """Whether a drafter had an idea of which the grammar takes at least the first token.

        What the grammar forces comes first, then the guess that is likeliest to be right.
        """
        offers: list[tuple[float, Drafter, Guess]] = []
        for drafter in drafters:
            begin = time.perf_counter()
            guess = drafter.guess(draft)
            self._time.spend(drafter.name, time.perf_counter() - begin)
            if drafter.name == GrammarDrafter.name:
                if self._add(draft, drafter, guess):
                    return True
            elif guess.token_ids and not (guess.yields_to_model and draft.sequence.plan.has_draft_model):
                chance = self._lengths.estimates.probability(draft.sequence, Source(drafter.name, guess.confidence))
                offers.append((chance, drafter, guess))
        # Stable: of guesses that are as likely the first drafter's.
        offers.sort(key=lambda offer: -offer[0])
        return any(self._add(draft, drafter, guess) for _, drafter, guess in offers)

    def _add(self, draft: Draft, drafter: Drafter, guess: Guess) -> bool:
        """Whether the grammar takes at least the guess's first token."""
        source = Source(drafter.name, guess.confidence)
        num_before = len(draft.token_ids)
        for token_id in guess.token_ids:
            if draft.is_full:
                break
            if not draft.push(token_id, source):
                self.num_drafts_cut_by_grammar += 1
                break
        return len(draft.token_ids) > num_before

    def _draft_with_model(
        self, model: DraftModel, batch: Batch, drafts: AbstractSequence[Draft], begin_pass: BeginPass | None
    ) -> list[int] | None:
        """How many tokens of each draft are to be verified, where that had to be said already."""
        able: list[Draft] = []
        lagging: list[ScheduledSequence] = []
        for scheduled, draft in zip(batch.scheduled, drafts, strict=True):
            sequence = scheduled.sequence
            if DRAFT_MODEL.proposer not in sequence.plan.methods:
                continue
            if model.can_draft(scheduled):
                able.append(draft)
            elif _lags(scheduled):
                lagging.append(scheduled)
        while True:
            drafting = self._lengths.worth_drafting(batch, [draft for draft in able if not draft.is_full])
            if not drafting and not lagging:
                return None
            if begin_pass is not None and self._draws_the_rest(model, drafting):
                return self._draw_behind(model, batch, drafts, drafting, lagging, begin_pass)
            self._draw(model, drafting, self._in_a_row(model, batch, drafting), lagging)
            lagging = []

    def _draw(
        self,
        model: DraftModel,
        drafts: AbstractSequence[Draft],
        wanted: AbstractSequence[int],
        lagging: AbstractSequence[ScheduledSequence],
    ) -> None:
        """So many tokens for each, with what others know behind each token."""
        begin = time.perf_counter()
        drawn = model.draw(drafts, wanted, lagging)
        self._observe_passes(drawn, len(drafts), time.perf_counter() - begin)
        for draft, num_tokens, (tokens, is_lost) in zip(drafts, wanted, drawn.stretches, strict=True):
            fill = self._fill
            if model.max_tokens(draft.sequence) > 1:
                lost_at = len(draft.token_ids) + len(tokens) if is_lost else None
                fill = partial(self._fill_and_observe, lost_at=lost_at)
            with attributed_to(draft.sequence, "draft"):
                model.take(draft, num_tokens, tokens, fill)

    def _draws_the_rest(self, model: DraftModel, drafts: AbstractSequence[Draft]) -> bool:
        """Whether the model may draw what is left of all these without anyone asked in between.

        In free text that is worth more than what others would have known there, which they still know in the next step.
        Under a grammar they know more than the model, and a stretch may end where the device does not know the mask.
        """
        return bool(drafts) and all(
            draft.sequence.grammar is None and model.max_tokens(draft.sequence) > 1 for draft in drafts
        )

    def _draw_behind(
        self,
        model: DraftModel,
        batch: Batch,
        drafts: AbstractSequence[Draft],
        drafting: AbstractSequence[Draft],
        lagging: AbstractSequence[ScheduledSequence],
        begin_pass: BeginPass,
    ) -> list[int]:
        """Draw as far as it pays for those that are drafting, and have the target's pass begun behind that."""
        limits = [min(draft.num_free, model.max_tokens(draft.sequence)) for draft in drafting]
        counts = self._lengths.num_in_a_row(batch, drafting, limits)
        wanted = {id(draft): count for draft, count in zip(drafting, counts, strict=True)}
        grown = [with_model_tokens(each, wanted.get(id(each), 0), source_of(each.sequence)) for each in drafts]
        num_tokens = self._lengths.paying(batch, grown)
        for draft, paying in zip(drafts, num_tokens, strict=True):
            count = max(0, paying - len(draft.token_ids))
            if count < wanted.get(id(draft), 0):
                # What is not drawn cannot be cut, and counts as cut all the same.
                self._lengths.skip(draft, source_of(draft.sequence))
                wanted[id(draft)] = count
        drawn_for = [draft for draft in drafting if wanted[id(draft)]]
        if not drawn_for:
            if lagging:
                self._draw(model, [], [], lagging)
            return num_tokens
        begin = time.perf_counter()
        drawing = model.launch(drawn_for, [wanted[id(draft)] for draft in drawn_for], lagging)
        assert drawing is not None, "several tokens may be drawn in a row for each"
        places = {id(draft): own for draft, own in zip(drawn_for, drawing.places, strict=True)}
        known_ids = [draft.token_ids[:count] for draft, count in zip(drafts, num_tokens, strict=True)]
        arrived = begin_pass(
            batch, DrawnAhead(known_ids, [places.get(id(draft), ()) for draft in drafts], drawing.drawn_ids)
        )
        # Then the clock tells how long the launches took.
        has_waited = not drawing.has_arrived()
        drawn = drawing.wait()
        stretches = {id(draft): stretch for draft, stretch in zip(drawn_for, drawn.stretches, strict=True)}
        arrived([[token_id for token_id, _ in stretches.get(id(draft), _NO_STRETCH).tokens] for draft in drafts])
        if has_waited:
            self._observe_passes(drawn, len(drawn_for), time.perf_counter() - begin)
        for draft in drawn_for:
            with attributed_to(draft.sequence, "draft"):
                model.take(draft, wanted[id(draft)], stretches[id(draft)].tokens, _nobody)
        return num_tokens

    def _observe_passes(self, drawn: Drawn, num_drafts: int, seconds: float) -> None:
        """What the draft model's passes for so many drafts took together."""
        first, *others = drawn.pass_tokens
        # Those behind the pass over a prompt took less than their share.
        if not others or first <= _MAX_FIRST_TOKENS * num_drafts:
            for num_tokens in drawn.pass_tokens:
                self._lengths.observe_draft_pass(num_tokens, seconds / len(drawn.pass_tokens))

    def _in_a_row(self, model: DraftModel, batch: Batch, drafts: AbstractSequence[Draft]) -> list[int]:
        """For each draft how many tokens the model is to draw before anyone is asked."""
        limits = []
        for draft in drafts:
            limit = min(draft.num_free, model.max_tokens(draft.sequence))
            limits.append(min(limit, self._stretches.num_tokens(draft.sequence)) if limit > 1 else 1)
        return self._lengths.num_in_a_row(batch, drafts, limits)

    def _fill_and_observe(self, draft: Draft, *, lost_at: int | None) -> None:
        """Behind a token of the model; `lost_at` tokens is where it could not have drawn another by itself."""
        num_before = len(draft.token_ids)
        self._fill(draft)
        if len(draft.token_ids) > num_before or num_before == lost_at:
            self._stretches.observe(draft.sequence, went_on=False)
        elif not draft.is_full:
            self._stretches.observe(draft.sequence, went_on=True)


def _nobody(draft: Draft) -> None:
    """Is asked."""


def _lags(scheduled: ScheduledSequence) -> bool:
    """Whether the draft model is fed though nothing is drafted: with a prompt, or because it is far behind."""
    sequence = scheduled.sequence
    lag = sequence.num_computed_tokens + scheduled.num_tokens - sequence.num_draft_computed_tokens
    if scheduled.num_draft_model_tokens == 0 or lag == 0:
        return False
    return not sequence.is_prefilled or lag > min(_MAX_LAG, scheduled.num_draft_model_tokens)
