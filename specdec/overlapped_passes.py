"""OverlappedPasses: a step's pass of the target and its verification, and the next step's pass begun meanwhile.

Once a step's tokens are drawn the device would stand still until the host had read them, appended and sent them, and
said what comes next. But where nothing can be drafted, what comes next is known: the same sequences, each with one
token more, which the device has, or with its prompt's next chunk, which the host has (next_share.py). So that pass is
launched behind this step's sampling, on ids of which those just drawn have not left the device, and the host does all
the rest while it runs. It is back in time with the masks for the next sampling if that takes it no longer than a pass.

A draft model's tokens are such ids too: where the device draws the rest of all drafts, the step's own pass is launched
behind that, before the host waits for them. They may turn out to be fewer; their first rows are used then.

The host may find afterwards that an answer has ended, or was aborted: its rows are left out. If anybody else is to run,
or something was drafted after all, the pass is done again. Either way nothing is undone in the cache:

- done again, it writes the same keys and values into the same slots, which nobody has read in between, or other drafts'
  behind the last computed token;
- what it writes for one that is gone, or for a draft that is not wanted, lies behind its last computed token (a chunk's
  tokens count as computed once the step that takes the pass is committed), so in no block that the prefix cache shares
  or will find, for these are full of computed tokens; and whoever is given the block later writes it, before he reads
  it, in a pass that the device takes after this one.

R rows of logits, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Final

import numpy as np
from torch import Tensor

from specdec.attention import Span
from specdec.batch import Batch
from specdec.device_tensors import on_device
from specdec.model_runner import ModelRunner
from specdec.next_share import NextShare
from specdec.proposers.base import BeginPass, DraftsArrived, DrawnAhead, Proposal
from specdec.scheduler import Scheduler
from specdec.sequence import Sequence
from specdec.target_pass import RowMasks, find_fault_of_verifying, target_spans
from specdec.verifier import DraftVerifier, Outcome

_MOVED_ROWS: Final = 64
"""Of logits, by one copy."""


@dataclass(frozen=True, slots=True)
class _SpanAhead:
    """One sequence's part of a pass that is under way."""

    span: Span
    num_known: int
    """Of its tokens the first ones; those behind them the device drew, whatever the span says."""
    num_drafts: int
    """Of its tokens the last ones, of which fewer may be wanted."""
    block_ids: AbstractSequence[int]
    """Where its keys and values go."""
    rows: range
    """Of the pass's logits those of its tokens."""

    def is_over(self, span: Span, block_size: int) -> bool:
        """Whether it computes what a span of the same block table would, and at most drafts behind that."""
        own = self.span
        num_lacking = len(own.token_ids) - len(span.token_ids)
        num_compared = min(self.num_known, len(span.token_ids))
        written = _written_blocks(span, block_size)
        return (
            own.start_position == span.start_position
            and 0 <= num_lacking <= self.num_drafts
            and own.num_logits - num_lacking == span.num_logits
            and own.token_ids[:num_compared] == span.token_ids[:num_compared]
            and self.block_ids[: len(written)] == written
        )

    def of_drafts(self, token_ids: AbstractSequence[int]) -> _SpanAhead:
        """Now that the host knows these of its drafts, the first ones."""
        span, start = self.span, len(self.span.token_ids) - self.num_drafts
        end = start + len(token_ids)
        own = [*span.token_ids[:start], *token_ids, *span.token_ids[end:]]
        known = Span(own, span.start_position, span.block_table, span.num_logits)
        return _SpanAhead(known, end, self.num_drafts, self.block_ids, self.rows)


@dataclass(frozen=True, slots=True)
class _PassAhead:
    spans: AbstractSequence[_SpanAhead]
    logits: Tensor
    """fp32 [R, V]"""

    def rows_of(self, spans: AbstractSequence[Span], block_size: int) -> list[int] | None:
        """Those that a pass over the spans would have; None if it would have another."""
        # A block table is one sequence's own, and another list once that has given its blocks back.
        by_table = {id(each.span.block_table): each for each in self.spans}
        rows: list[int] = []
        for span in spans:
            ahead = by_table.get(id(span.block_table))
            if ahead is None or not ahead.is_over(span, block_size):
                return None
            rows += ahead.rows[: span.num_logits]
        return rows


def _written_blocks(span: Span, block_size: int) -> AbstractSequence[int]:
    return span.block_table[span.start_position // block_size : -(-span.context_len // block_size)]


class OverlappedPasses:
    """The target's, one a step; the next is launched ahead where that is sure to be of use."""

    def __init__(
        self,
        runner: ModelRunner,
        verifier: DraftVerifier,
        scheduler: Scheduler,
        *,
        may_draft: Callable[[Sequence], bool],
        vocab_size: int,
        block_size: int,
        overlaps: bool,
    ) -> None:
        """`may_draft` says whether the next step may have a draft for a sequence; without `overlaps` none is ahead."""
        self.num_launched = 0
        """Passes launched before the host knew all their tokens; of these the next two."""
        self.num_used = 0
        self.num_dropped = 0
        self._runner = runner
        self._verifier = verifier
        self._scheduler = scheduler
        self._may_draft = may_draft
        self._vocab_size = vocab_size
        self._block_size = block_size
        self._overlaps = overlaps
        self._ahead: _PassAhead | None = None
        self._begun: Batch | None = None
        """Whose the pass under way is, where it was launched behind the drafts of its own step."""
        self._began = 0.0
        """When the device turned to the step's pass, as far as the host knows."""
        self._is_behind = False
        """Whether the device may still be at a pass that came to nothing."""

    @property
    def begin_pass(self) -> BeginPass | None:
        """What a proposer is given; None where passes do not overlap."""
        return self._begin if self._overlaps else None

    def _begin(self, batch: Batch, drawn: DrawnAhead) -> DraftsArrived:
        """Launch a step's pass behind the draft model's, which `forward` is to take."""
        # Another's, of a step that failed, or which was launched where nobody was to draft.
        self._drop()
        known = target_spans(batch, [Proposal(token_ids) for token_ids in drawn.known_ids], self._vocab_size)
        spans = [_with_drawn(span, len(places)) for span, places in zip(known, drawn.places, strict=True)]
        ends = accumulate(len(span.token_ids) for span in spans)
        drawn_at = [at for end, places in zip(ends, drawn.places, strict=True) for at in range(end - len(places), end)]
        assert drawn_at, "else there is nothing to wait for"
        chosen, own = on_device(self._runner.device, np.int64, list(chain.from_iterable(drawn.places)), drawn_at)
        drawn_ids = drawn.drawn_ids.index_select(0, chosen)
        logits = self._runner.forward_drawn(spans, drawn_ids, self._runner.logits, own)
        nums_drafts = [len(places) for places in drawn.places]
        nums_known = [len(span.token_ids) for span in known]
        self._keep(spans, nums_known, nums_drafts, logits)
        self._begun = batch
        return self._drafts_arrived

    def _drafts_arrived(self, token_ids: AbstractSequence[AbstractSequence[int]]) -> None:
        ahead = self._ahead
        assert ahead is not None, "it was launched behind them"
        # What came before belongs to the draft model's passes.
        self._began, self._is_behind = time.perf_counter(), False
        spans = [each.of_drafts(own) for each, own in zip(ahead.spans, token_ids, strict=True)]
        self._ahead = replace(ahead, spans=spans)

    def forward(self, batch: Batch, proposals: AbstractSequence[Proposal]) -> Tensor:
        """Logits fp32 [R, V] of a step, which `verify` is to have before the next. Raises SequenceFaultError."""
        spans = target_spans(batch, proposals, self._vocab_size)
        if self._begun is not None and self._begun is not batch:
            # Of a step that failed, perhaps before it knew what was drawn.
            self._drop()
        logits = self._taken(spans)
        if logits is not None:
            return logits
        if self._is_behind:
            # It would have to be waited for in any case, and is not to count for this step.
            self._runner.wait()
            self._is_behind = False
        self._began = time.perf_counter()
        return self._runner.forward(spans, self._runner.logits)

    def verify(
        self, logits: Tensor, masks: AbstractSequence[RowMasks], batch: Batch, proposals: AbstractSequence[Proposal]
    ) -> list[Outcome]:
        """logits fp32 [R, V], overwritten, also by those of the next pass. Raises SequenceFaultError."""
        try:
            pending = self._verifier.launch(logits, masks, batch, proposals)
            if self._overlaps:
                self._launch_next(batch, proposals, pending.emitted_ids)
            return pending.wait()
        except Exception:
            self._drop()
            logits = self._runner.forward(target_spans(batch, proposals, self._vocab_size), self._runner.logits)
            find_fault_of_verifying(self._verifier, logits, masks, batch, proposals)
            raise

    def seconds(self) -> float:
        """How long a step took from its pass on; to be asked at the end of every step that was not given up.

        The device turned to a pass launched ahead when it was through with the step before: at about that step's end,
        from which on it counts, with whatever the caller has done since. To one behind drafts it turned when they were
        drawn.
        """
        ended = time.perf_counter()
        seconds, self._began = ended - self._began, ended
        return seconds

    def _launch_next(self, batch: Batch, proposals: AbstractSequence[Proposal], emitted_ids: Tensor | None) -> None:
        """emitted_ids int64 [R] on the device, all that is not known here; None where the step draws nothing."""
        if any(each.token_ids for each in proposals):
            return
        shares = self._scheduler.next_shares(batch)
        if any(each.reaches_end and self._may_draft(each.sequence) for each in shares):
            return
        if not self._scheduler.reserve_ahead(shares):
            return
        spans = [_span_of(share) for share in shares]
        # Behind the sampling, which has read the logits that these overwrite.
        logits = self._forward_ahead(spans, [share.drawn_row for share in shares], emitted_ids)
        nums_known = [
            len(span.token_ids) if share.drawn_row is None else 0 for span, share in zip(spans, shares, strict=True)
        ]
        self._keep(spans, nums_known, [0] * len(spans), logits)

    def _keep(
        self,
        spans: AbstractSequence[Span],
        nums_known: AbstractSequence[int],
        nums_drafts: AbstractSequence[int],
        logits: Tensor,
    ) -> None:
        """A pass under way, and of each span's tokens the first that are known and the last that are drafts.

        logits fp32 [R, V]
        """
        ends = accumulate(span.num_logits for span in spans)
        self._ahead = _PassAhead(
            [
                _SpanAhead(
                    span,
                    num_known,
                    num_drafts,
                    _written_blocks(span, self._block_size),
                    range(end - span.num_logits, end),
                )
                for span, num_known, num_drafts, end in zip(spans, nums_known, nums_drafts, ends, strict=True)
            ],
            logits,
        )
        self.num_launched += 1

    def _forward_ahead(
        self, spans: AbstractSequence[Span], drawn_rows: AbstractSequence[int | None], emitted_ids: Tensor | None
    ) -> Tensor:
        """Logits fp32 [R', V] of the spans, of which some are of the one token of a row of emitted_ids, int64 [R]."""
        runner, rows = self._runner, [row for row in drawn_rows if row is not None]
        if not rows:
            return runner.forward(spans, runner.logits)
        assert emitted_ids is not None, "a row gives a token"
        if len(rows) < len(spans):
            starts = accumulate((len(span.token_ids) for span in spans), initial=0)
            drawn_at = [start for start, row in zip(starts, drawn_rows, strict=False) if row is not None]
            chosen, places = on_device(runner.device, np.int64, rows, drawn_at)
            return runner.forward_drawn(spans, emitted_ids.index_select(0, chosen), runner.logits, places)
        if rows != list(range(len(emitted_ids))):
            (chosen,) = on_device(runner.device, np.int64, rows)
            emitted_ids = emitted_ids.index_select(0, chosen)
        return runner.forward_drawn(spans, emitted_ids, runner.logits)

    def _taken(self, spans: AbstractSequence[Span]) -> Tensor | None:
        """Logits fp32 [R, V] of the spans, of the pass under way; None where there is none of them."""
        if self._ahead is None:
            return None
        rows, logits = self._ahead.rows_of(spans, self._block_size), self._ahead.logits
        if rows is None:
            self._drop()
            return None
        self._ahead = self._begun = None
        self.num_used += 1
        self._bring_forward(logits, rows)
        return logits[: len(rows)]

    def _bring_forward(self, logits: Tensor, rows: AbstractSequence[int]) -> None:
        """These rows of logits fp32 [R, V], ascending, to the front: a step's are where every step's are."""
        num_there = next((i for i, row in enumerate(rows) if row != i), len(rows))
        if num_there == len(rows):
            return
        (chosen,) = on_device(self._runner.device, np.int64, rows)
        # No row is written before it was read, and a copy of all would be memory that nobody has set aside.
        for start in range(num_there, len(rows), _MOVED_ROWS):
            some = chosen[start : start + _MOVED_ROWS]
            logits[start : start + len(some)] = logits.index_select(0, some)

    def _drop(self) -> None:
        if self._ahead is not None:
            self._ahead = self._begun = None
            self.num_dropped += 1
            self._is_behind = True


def _with_drawn(span: Span, num_drawn: int) -> Span:
    """With so many tokens more, of which nothing is known yet, and their rows."""
    if not num_drawn:
        return span
    assert span.num_logits, "where something is drafted, the last token's logits are wanted"
    token_ids = [*span.token_ids, *[0] * num_drawn]
    return Span(token_ids, span.start_position, span.block_table, num_logits=span.num_logits + num_drawn)


def _span_of(share: NextShare) -> Span:
    sequence, start = share.sequence, share.start_position
    # Of a token that was drawn nothing is known yet.
    token_ids = [0] if share.drawn_row is not None else sequence.token_ids[start : start + share.num_tokens]
    return Span(token_ids, start, sequence.block_table, num_logits=int(share.reaches_end))
