"""DraftLengths: how many draft tokens to verify, by goodput: expected tokens over expected time (Liu et al. 2024).

A draft token pays while the chance that it is accepted, with all before it, buys more tokens a second than the step
gives without it. Chances come from AcceptanceEstimates, times from VerificationTime. Neither looks at the token itself,
only at who drafted it, so that where a draft is cut says nothing about the token that is cut off.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence
from typing import Final
from weakref import WeakKeyDictionary

from specdec.batch import Batch
from specdec.faults import attributed_to
from specdec.proposers.acceptance import AcceptanceEstimates
from specdec.proposers.base import Draft, Proposal, Source
from specdec.sequence import Sequence
from specdec.step_time import StepTime
from specdec.verification_time import VerificationTime

_HYSTERESIS: Final = 0.03
"""By how much more drafting must pay to begin, after a step without."""
_MAX_PAUSE: Final = 4
"""Steps without a look, once that many looks in a row found nothing that paid."""
_DRAFT_MODEL: Final = Source("draft_model")


class _Pause:
    """For how many steps nothing is looked for, and how many of them are left."""

    __slots__ = ("length", "num_left")

    def __init__(self) -> None:
        self.length = 0
        self.num_left = 0


class DraftLengths:
    """Chooses for all sequences of a step together. A sequence whose plan fixes its length gets that."""

    def __init__(self, target_time: StepTime, draft_time: StepTime | None) -> None:
        self.estimates = AcceptanceEstimates()
        self._time = VerificationTime(target_time)
        self._draft_time = draft_time
        self._has_drafted = False
        self._pauses: WeakKeyDictionary[Sequence, _Pause] = WeakKeyDictionary()

    def is_worth_a_look(self, draft: Draft) -> bool:
        """Whether to look for a guess at all: not in every step, where one after the other did not pay."""
        pause = self._pauses.get(draft.sequence)
        if pause is None or pause.num_left == 0:
            return True
        pause.num_left -= 1
        return False

    def is_pausing(self, sequence: Sequence) -> bool:
        """Whether `is_worth_a_look` is going to say no the next time."""
        pause = self._pauses.get(sequence)
        return pause is not None and pause.num_left > 0

    def chance_of_all(self, draft: Draft) -> float:
        """That every token of the draft is accepted."""
        chances = self._chances(draft)
        return chances[-1] if chances else 1.0

    def paying(self, batch: Batch, drafts: AbstractSequence[Draft]) -> list[int]:
        """As far as each of the drafts pays."""
        num_tokens = [self.num_kept(draft) for draft in drafts]
        offers: list[tuple[float, int]] = []
        for index, draft in enumerate(drafts):
            offers += [(chance, index) for chance in self._chances(draft)[num_tokens[index] :]]
        if offers:
            # A chance is never above the one before it in its draft: sorted, each draft is taken from its front.
            offers.sort(key=lambda offer: -offer[0])
            for _, index in offers[: self._num_paying(batch, drafts, num_tokens, [chance for chance, _ in offers])]:
                num_tokens[index] += 1
        return num_tokens

    def cut(
        self, batch: Batch, drafts: AbstractSequence[Draft], num_tokens: AbstractSequence[int] | None = None
    ) -> list[Proposal]:
        """The drafts, each as far as it pays, or so far."""
        if num_tokens is None:
            num_tokens = self.paying(batch, drafts)
        self._has_drafted = any(num_tokens)
        for draft, count in zip(drafts, num_tokens, strict=True):
            if count < len(draft.token_ids):
                self.skip(draft, draft.sources[count])
            if count:
                self._pauses.pop(draft.sequence, None)
            elif draft.token_ids:
                pause = self._pauses.setdefault(draft.sequence, _Pause())
                pause.length = min(pause.length + 1, _MAX_PAUSE)
                pause.num_left = pause.length
        return [draft.cut(count) for draft, count in zip(drafts, num_tokens, strict=True)]

    def skip(self, draft: Draft, source: Source) -> None:
        """This source had a token to offer next, or would have, which does not pay."""
        with attributed_to(draft.sequence, "draft"):
            self.estimates.skip(draft.sequence, source)

    @staticmethod
    def num_kept(draft: Draft) -> int:
        """Tokens that are verified whether they pay or not.

        What a token drawn from a distribution led to may say whether it pays; to drop it for that would bend the law.
        """
        if _is_fixed(draft):
            return len(draft.token_ids)
        return max((i for i, drawn_from in enumerate(draft.distributions, 1) if drawn_from is not None), default=0)

    def worth_drafting(self, batch: Batch, drafts: AbstractSequence[Draft]) -> list[Draft]:
        """Those of the drafts that one more pass of the draft model is for; none where it would not pay."""
        assert self._draft_time is not None, "only with a draft model"
        chosen = [draft for draft in drafts if _is_fixed(draft)]
        chances = [(self._chance_of_next(draft), draft) for draft in drafts if not _is_fixed(draft)]
        if not chances:
            return chosen
        chances.sort(key=lambda offer: -offer[0])
        # What it takes to have drafts at all is weighed in `paying`, with all tokens that there are to be.
        num_tokens, num_drafted = _num_base_tokens(batch), max(1, sum(len(draft.token_ids) for draft in drafts))
        step = self._time.step(num_tokens)
        seconds = step.seconds(num_drafted)
        expected = _num_emitting(batch) + sum(sum(self._chances(draft)) for draft in drafts)
        gain, best, num_best = 0.0, 0.0, 0
        for i, (chance, _) in enumerate(chances, 1):
            gain += chance
            cost = step.seconds(num_drafted + i) - seconds
            cost += self._draft_time.seconds(len(chosen) + i) if not chosen else 0.0
            rate = gain / max(cost, 1e-9)
            if rate > expected / seconds and gain - cost * expected / seconds > best:
                best, num_best = gain - cost * expected / seconds, i
        for _, draft in chances[num_best:]:
            # Only a model that drafts nothing at all is untried: behind its own tokens it has been, in this step.
            if _DRAFT_MODEL not in draft.sources:
                self.skip(draft, _DRAFT_MODEL)
        return chosen + [draft for _, draft in chances[:num_best]]

    def num_in_a_row(self, batch: Batch, drafts: AbstractSequence[Draft], limits: AbstractSequence[int]) -> list[int]:
        """For drafts that one more pass is for, how many passes in a row are, up to each one's limit of 1 or more.

        As if `worth_drafting` were asked before each pass, with all tokens before it the draft model's.
        """
        if all(map(_is_fixed, drafts)):
            return list(limits)
        counts = [1] * len(drafts)
        going = [i for i, limit in enumerate(limits) if limit > 1]
        while going:
            ahead = {i: with_model_tokens(drafts[i], counts[i]) for i in going}
            chosen = {id(draft) for draft in self.worth_drafting(batch, list(ahead.values()))}
            paying = [i for i, draft in ahead.items() if id(draft) in chosen]
            for i in paying:
                counts[i] += 1
            going = [i for i in paying if counts[i] < limits[i]]
        return counts

    def observe(self, batch: Batch, proposals: Iterable[Proposal], seconds: float) -> None:
        """What a pass of the target with everything after it took."""
        num_drafted = sum(len(proposal.token_ids) for proposal in proposals)
        self._time.observe(_num_base_tokens(batch), num_drafted, seconds)

    def observe_draft_pass(self, num_tokens: int, seconds: float) -> None:
        """What a pass of the draft model took."""
        if self._draft_time is not None:
            self._draft_time.observe(num_tokens, seconds)

    def _num_paying(
        self, batch: Batch, drafts: AbstractSequence[Draft], fixed: AbstractSequence[int], chances: list[float]
    ) -> int:
        """How many of the offers, likeliest first, give the most tokens a second."""
        step, num_fixed = self._time.step(_num_base_tokens(batch)), sum(fixed)
        expected = float(_num_emitting(batch))
        for draft, count in zip(drafts, fixed, strict=True):
            expected += sum(self._chances(draft)[:count])
        best = expected / step.seconds(num_fixed)
        if not self._has_drafted:
            best *= 1.0 + _HYSTERESIS
        num_best = 0
        for i, chance in enumerate(chances, 1):
            if expected + chance * (len(chances) + 1 - i) <= best * step.plain:
                # Nor could all that are left raise it, were they had for nothing.
                break
            expected += chance
            goodput = expected / step.seconds(num_fixed + i)
            if goodput > best:
                best, num_best = goodput, i
        return num_best

    def _chances(self, draft: Draft) -> list[float]:
        """For each token, that it and all before it are accepted."""
        chances: list[float] = []
        chance, last, probability = 1.0, None, 1.0
        with attributed_to(draft.sequence, "draft"):
            for source in draft.sources:
                if source != last:
                    probability = self.estimates.probability(draft.sequence, source)
                    last = source
                chance *= probability
                chances.append(chance)
        return chances

    def _chance_of_next(self, draft: Draft) -> float:
        before = self._chances(draft)
        with attributed_to(draft.sequence, "draft"):
            own = self.estimates.probability(draft.sequence, _DRAFT_MODEL)
        return own * before[-1] if before else own


def with_model_tokens(draft: Draft, num_tokens: int, source: Source = _DRAFT_MODEL) -> Draft:
    """The draft and so many tokens more, of which only the source is known."""
    if not num_tokens:
        return draft
    return Draft(
        draft.sequence,
        draft.max_tokens,
        draft.state,
        [*draft.token_ids, *[0] * num_tokens],
        [*draft.sources, *[source] * num_tokens],
        [*draft.distributions, *[None] * num_tokens],
    )


def _is_fixed(draft: Draft) -> bool:
    return draft.sequence.plan.num_tokens is not None


def _num_base_tokens(batch: Batch) -> int:
    return sum(scheduled.num_tokens for scheduled in batch.scheduled)


def _num_emitting(batch: Batch) -> int:
    return sum(scheduled.reaches_end for scheduled in batch.scheduled)
