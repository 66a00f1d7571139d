"""DraftModel: a smaller model with the target's vocabulary drafts token by token, for all sequences at once.

It draws through the target's sampler, under the target's grammar mask, and keeps its KV in its own part of the target's
blocks. Its watermark may lag: it then feeds what it missed before it drafts.

Where it can draw several tokens in a row (DraftPasses), they are taken as if they had been drawn one by one: after each
the drafters that need no model are asked, and what they know goes before what the model drew there. So a draft is the
same however long the stretches are, and only passes are lost; but where the target's pass is launched behind a stretch
nobody is asked (chain.py).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from specdec.attention import Span
from specdec.batch import ScheduledSequence
from specdec.faults import attributed_to
from specdec.proposers.base import Draft, Source
from specdec.proposers.draft_passes import DraftPasses, DrawnStretch, DrawnToken, FollowedTokens, Stretch
from specdec.sampler import SamplingRow
from specdec.sequence import Sequence
from specdec.speculative import SYNTHETIC

SOURCE: Final = Source("draft_model")
_SYNTHETIC: Final = Source(SYNTHETIC)
"""Of its tokens where they are accepted at given rates (synthetic.py)."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a call drew."""

    stretches: list[DrawnStretch]
    """To follow each draft."""
    pass_tokens: list[int]
    """How many each pass computed."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a call is drawing where the model runs."""

    drawn_ids: Tensor
    """int64 [D] there"""
    places: AbstractSequence[AbstractSequence[int]]
    """For each draft, where its tokens are in drawn_ids."""
    has_arrived: Callable[[], bool]
    """Whether `wait` has nothing to wait for."""
    wait: Callable[[], Drawn]
    """Once, before the next call."""


class DraftModel:
    """Draws for drafts; what is drawn is then taken into them."""

    def __init__(self, passes: DraftPasses) -> None:
        self._passes = passes

    @property
    def followed(self) -> FollowedTokens:
        return self._passes.followed

    @property
    def num_graphs(self) -> int:
        return self._passes.num_graphs

    @staticmethod
    def can_draft(scheduled: ScheduledSequence) -> bool:
        """Whether its KV can reach the end of the verified tokens in this step."""
        sequence = scheduled.sequence
        lag = sequence.num_tokens - sequence.num_draft_computed_tokens
        return scheduled.num_draft_slots > 0 and lag <= scheduled.num_draft_model_tokens

    def max_tokens(self, sequence: Sequence) -> int:
        """That it can draw in a row for the sequence."""
        return self._passes.max_tokens(sequence)

    def draw(
        self,
        drafts: AbstractSequence[Draft],
        num_tokens: AbstractSequence[int],
        lagging: AbstractSequence[ScheduledSequence] = (),
    ) -> Drawn:
        """So many tokens to follow each draft, or fewer; sequences that lag are fed what this step lets them.

        The drafts' own watermarks move once they take their tokens.
        """
        stretches = self._stretches(drafts, num_tokens)
        silent = [_span_of_lag(scheduled) for scheduled in lagging]
        drawn = self._passes.draw(stretches, silent)
        _catch_up(lagging, silent)
        return Drawn(drawn, _pass_tokens(stretches, silent))

    def launch(
        self,
        drafts: AbstractSequence[Draft],
        num_tokens: AbstractSequence[int],
        lagging: AbstractSequence[ScheduledSequence] = (),
    ) -> Drawing | None:
        """The same without waiting for what is drawn; None, and nothing is drawn, where that cannot be."""
        stretches = self._stretches(drafts, num_tokens)
        silent = [_span_of_lag(scheduled) for scheduled in lagging]
        drawing = self._passes.launch(stretches, silent)
        if drawing is None:
            return None
        _catch_up(lagging, silent)

        def wait() -> Drawn:
            return Drawn(drawing.wait(), _pass_tokens(stretches, silent))

        return Drawing(drawing.drawn_ids, drawing.places, drawing.has_arrived, wait)

    def _stretches(self, drafts: AbstractSequence[Draft], num_tokens: AbstractSequence[int]) -> list[Stretch]:
        return [
            Stretch(draft, count, self._row(draft), _span_of_missing(draft))
            for draft, count in zip(drafts, num_tokens, strict=True)
        ]

    @staticmethod
    def take(draft: Draft, num_tokens: int, drawn: AbstractSequence[DrawnToken], fill: Callable[[Draft], None]) -> None:
        """Add what was drawn of num_tokens for this draft, and after each token what `fill` drafts for nothing.

        What does not hold behind that, or comes after the answer's end, is left out.
        """
        sequence, start = draft.sequence, len(draft.token_ids)
        source = source_of(sequence)
        token_ids = [token_id for token_id, _ in drawn]
        while (count := len(draft.token_ids) - start) < len(drawn):
            if count and (draft.is_full or draft.token_ids[start:] != token_ids[:count]):
                break
            draft.push_unmasked(token_ids[count], source, drawn[count][1])
            fill(draft)
        added = draft.token_ids[start:]
        num_same = next((i for i, each in enumerate(zip(added, token_ids, strict=False)) if each[0] != each[1]), None)
        if num_same is None:
            num_same = min(len(added), len(token_ids))
        # All that it drew was fed to it but the last token; the draft's last is fed in any case, for what follows it.
        fed = sequence.num_tokens + start + min(num_same, num_tokens - 1)
        sequence.num_draft_computed_tokens = min(fed, sequence.num_tokens + len(draft.token_ids) - 1)

    @staticmethod
    def _row(draft: Draft) -> SamplingRow:
        grammar = draft.sequence.grammar
        mask_row = None
        if grammar is not None and draft.sequence.plan.mask_drafts:
            assert draft.state is not None, "a full draft is not extended"
            with attributed_to(draft.sequence, "draft"):
                mask_row = grammar.mask_row(draft.state)
        return SamplingRow(draft.sequence, tuple(draft.token_ids), mask_row)


def source_of(sequence: Sequence) -> Source:
    """Whose the tokens that a draft model draws for the sequence are said to be."""
    return _SYNTHETIC if SYNTHETIC in sequence.plan.methods else SOURCE


def _catch_up(lagging: AbstractSequence[ScheduledSequence], silent: AbstractSequence[Span]) -> None:
    for scheduled, span in zip(lagging, silent, strict=True):
        scheduled.sequence.num_draft_computed_tokens += len(span.token_ids)


def _pass_tokens(stretches: AbstractSequence[Stretch], silent: AbstractSequence[Span]) -> list[int]:
    first = sum(len(span.token_ids) for span in (*(stretch.span for stretch in stretches), *silent))
    most = max((stretch.num_tokens for stretch in stretches), default=1)
    return [first, *(sum(stretch.num_tokens > i for stretch in stretches) for i in range(1, most))]


def _span_of_missing(draft: Draft) -> Span:
    """What the model has not computed of the text and the draft."""
    sequence = draft.sequence
    start = sequence.num_draft_computed_tokens
    num_drafted = max(0, start - sequence.num_tokens)
    token_ids = sequence.token_ids[start:] + draft.token_ids[num_drafted:]
    return Span(token_ids, start, sequence.block_table, num_logits=1)


def _span_of_lag(scheduled: ScheduledSequence) -> Span:
    sequence = scheduled.sequence
    start = sequence.num_draft_computed_tokens
    end = min(sequence.num_computed_tokens + scheduled.num_tokens, start + scheduled.num_draft_model_tokens)
    return Span(sequence.token_ids[start:end], start, sequence.block_table, num_logits=0)
