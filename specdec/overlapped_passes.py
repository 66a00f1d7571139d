"""OverlappedPasses: a step's pass of the target and its verification, and the next step's pass begun meanwhile.

Once a step's tokens are drawn the device would stand still until the host had read them, appended and sent them, and
said what comes next. But where nothing can be drafted, what comes next is known: the same sequences, each with one
token more, which the device has, or with its prompt's next chunk, which the host has (next_share.py). So that pass is
launched behind this step's sampling, on ids of which those just drawn have not left the device, and the host does all
the rest while it runs. It is back in time with the masks for the next sampling if that takes it no longer than a pass.

The host may find afterwards that an answer has ended, or was aborted: its rows are left out. If anybody else is to run,
or something was drafted after all, the pass is done again. Either way nothing is undone in the cache:

- done again, it writes the same keys and values into the same slots, which nobody has read in between;
- what it writes for one that is gone lies behind its last computed token (a chunk's tokens count as computed once the
  step that takes the pass is committed), so in no block that the prefix cache shares or will find, for these are full
  of computed tokens; and whoever is given the block later writes it, before he reads it, in a pass that the device
  takes after this one.

R rows of logits, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from torch import Tensor

from specdec.attention import Span
from specdec.batch import Batch
from specdec.device_tensors import on_device
from specdec.model_runner import ModelRunner
from specdec.next_share import NextShare
from specdec.proposers.base import Proposal
from specdec.scheduler import Scheduler
from specdec.sequence import Sequence
from specdec.target_pass import RowMasks, find_fault_of_verifying, target_spans
from specdec.verifier import DraftVerifier, Outcome


@dataclass(frozen=True, slots=True)
class _SpanAhead:
    """One sequence's part of a pass that is under way."""

    span: Span
    is_drawn: bool
    """Whether it is over the one token that the device drew, whatever the span says."""
    block_ids: AbstractSequence[int]
    """Where its keys and values go."""
    rows: range
    """Of the pass's logits those of its tokens."""

    def is_over(self, span: Span, block_size: int) -> bool:
        """Whether it computes just what a span of the same block table would."""
        own = self.span
        return (
            own.start_position == span.start_position
            and len(own.token_ids) == len(span.token_ids)
            and own.num_logits == span.num_logits
            and (self.is_drawn or own.token_ids == span.token_ids)
            and self.block_ids == _written_blocks(span, block_size)
        )


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
            rows += ahead.rows
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
        """Passes launched ahead; of these the next two."""
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
        self._began = 0.0
        """When the device turned to the step's pass."""
        self._is_behind = False
        """Whether the device may still be at a pass that came to nothing."""

    def forward(self, batch: Batch, proposals: AbstractSequence[Proposal]) -> Tensor:
        """Logits fp32 [R, V] of a step, which `verify` is to have before the next. Raises SequenceFaultError."""
        spans = target_spans(batch, proposals, self._vocab_size)
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
        from which on it counts, with whatever the caller has done since.
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
        ends = accumulate(span.num_logits for span in spans)
        self._ahead = _PassAhead(
            [
                _SpanAhead(
                    span,
                    share.drawn_row is not None,
                    _written_blocks(span, self._block_size),
                    range(end - span.num_logits, end),
                )
                for share, span, end in zip(shares, spans, ends, strict=True)
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
        self._ahead = None
        self.num_used += 1
        if rows == list(range(len(rows))):
            return logits[: len(rows)]
        (chosen,) = on_device(self._runner.device, np.int64, rows)
        # In their place: a step's logits are where every step's are.
        return logits[: len(rows)].copy_(logits.index_select(0, chosen))

    def _drop(self) -> None:
        if self._ahead is not None:
            self._ahead = None
            self.num_dropped += 1
            self._is_behind = True


def _span_of(share: NextShare) -> Span:
    sequence, start = share.sequence, share.start_position
    # Of a token that was drawn nothing is known yet.
    token_ids = [0] if share.drawn_row is not None else sequence.token_ids[start : start + share.num_tokens]
    return Span(token_ids, start, sequence.block_table, num_logits=int(share.reaches_end))
