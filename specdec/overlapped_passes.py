"""OverlappedPasses: a step's pass of the target and its verification, and the next step's pass begun meanwhile.

Once a step's tokens are drawn the device would stand still until the host had read them, appended and sent them, and
said what comes next. But where nothing can be drafted, what comes next is known: the same sequences with one token
more, which the device has. So that pass is launched behind this step's sampling, on ids that have not left the device,
and the host does all the rest while it runs. It is back in time with the masks for the next sampling if that takes it
no longer than the pass.

The host may find afterwards that an answer has ended, or was aborted: that row is left out. If anybody else is to run,
or something was drafted after all, the pass is done again. Either way nothing is undone in the cache:

- done again, it writes the same keys and values into the same slots, which nobody has read in between;
- what it writes for an answer that has ended lies behind that answer's last computed token, so in no block that the
  prefix cache shares or will find, for these are full of computed tokens; and whoever is given the block later writes
  it, before he reads it, in a pass that the device takes after this one.

R rows of logits, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from specdec.attention import Span
from specdec.batch import Batch
from specdec.device_tensors import on_device
from specdec.model_runner import ModelRunner
from specdec.proposers.base import Proposal
from specdec.scheduler import Scheduler
from specdec.sequence import Sequence
from specdec.target_pass import RowMasks, find_fault_of_verifying, target_spans
from specdec.verifier import DraftVerifier, Outcome


@dataclass(frozen=True, slots=True)
class _PassAhead:
    """One that is under way."""

    spans: AbstractSequence[Span]
    """One token each, whose id the device knows."""
    block_ids: AbstractSequence[int]
    """Where each token's key and value go."""
    logits: Tensor
    """fp32 [R, V]"""

    def rows_of(self, spans: AbstractSequence[Span], block_size: int) -> list[int] | None:
        """Those that a pass over the spans would have; None if it would have another."""
        # A block table is one sequence's own, and another list once that has given its blocks back.
        places = {id(span.block_table): row for row, span in enumerate(self.spans)}
        rows: list[int] = []
        for span in spans:
            row, position = places.get(id(span.block_table)), span.start_position
            if row is None or len(span.token_ids) != 1 or position != self.spans[row].start_position:
                return None
            if span.block_table[position // block_size] != self.block_ids[row]:
                return None
            rows.append(row)
        return rows


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
            if self._overlaps and pending.emitted_ids is not None:
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

    def _launch_next(self, batch: Batch, proposals: AbstractSequence[Proposal], emitted_ids: Tensor) -> None:
        """emitted_ids int64 [R] on the device: all that is not known here."""
        if any(each.token_ids for each in proposals) or any(self._may_draft(each.sequence) for each in batch.scheduled):
            return
        going = self._scheduler.reserve_ahead(batch)
        if not going:
            return
        if len(going) < len(batch.scheduled):
            (rows,) = on_device(self._runner.device, np.int64, going)
            emitted_ids = emitted_ids.index_select(0, rows)
        sequences = [batch.scheduled[i].sequence for i in going]
        spans = [Span((0,), each.num_tokens, each.block_table, num_logits=1) for each in sequences]
        block_ids = [span.block_table[span.start_position // self._block_size] for span in spans]
        # Behind the sampling, which has read the logits that these overwrite.
        logits = self._runner.forward_drawn(spans, emitted_ids, self._runner.logits)
        self._ahead = _PassAhead(spans, block_ids, logits)
        self.num_launched += 1

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
        if rows == list(range(len(logits))):
            return logits
        (chosen,) = on_device(self._runner.device, np.int64, rows)
        # In their place: a step's logits are where every step's are.
        return logits[: len(rows)].copy_(logits.index_select(0, chosen))

    def _drop(self) -> None:
        if self._ahead is not None:
            self._ahead = None
            self.num_dropped += 1
            self._is_behind = True
