"""CapturedSampling: drawing a pass's tokens and coupled verification as graphs, one for each size and kind of a step.

They read the logits where a pass leaves them, what else the host knows of the rows from one place, and mask rows where
the mirror of the mask table has them. That moves when it grows: graphs that read from the old place are captured anew
when they are next needed. A step is filled up with rows that are nobody's, whose logits are not read, and sequences
without rows. Bias and penalties edit the logits before a replay, other rules than coupled go over its tokens after it.

R rows, B sequences: of a bucket. V vocabulary; N rows of the mask mirror, W words a row.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence as AbstractSequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specdec.device_tensors import Parts
from specdec.fixed_inputs import FixedInputs, InputPart, num_bytes_of
from specdec.graph_buckets import SamplingBucket
from specdec.graph_capture import GraphCapture, Work, first_cause
from specdec.kernels.sample import sample
from specdec.kernels.token_groups import NOBODY
from specdec.kernels.verify_coupled import verify_coupled
from specdec.row_group import RowBatch

_ROOM_FOR_OTHERS: Final = 2**16
"""Bytes, for what a step sends beside its graph's numbers: what its tokens changed in lists, new rows of masks."""

logger = logging.getLogger(__name__)


class SamplingKind(NamedTuple):
    """What a step's kernels are for; those that know of less are faster."""

    truncates: bool
    is_masked: bool


KINDS: Final = tuple(SamplingKind(truncates, is_masked) for truncates in (False, True) for is_masked in (False, True))


class SentStep(NamedTuple):
    """A step whose numbers are on their way to the device."""

    bucket: SamplingBucket
    kind: SamplingKind
    given: dict[str, Tensor]
    """What was sent that no graph reads, and the draft's tokens, int64 [R]."""


class DrawnStep(NamedTuple):
    """What a replay leaves, until the next one: what reads it was asked of the device before, and so is done before."""

    target_ids: Tensor
    """int64 [R]"""
    output_ids: Tensor
    """int64 [R], of any id behind a sequence's last token"""
    num_accepted: Tensor
    """int32 [B]"""
    joined: Tensor
    """uint8: the last two in one piece, which one copy brings to the host."""


class CapturedSampling:
    """Over one buffer's logits."""

    def __init__(
        self, logits: Tensor, buckets: AbstractSequence[SamplingBucket], graphs: GraphCapture, *, num_token_ids: int
    ) -> None:
        """Takes the memory of everything but the graphs. logits fp32 [R, V] of the largest bucket, held from now on.

        Ids at or above num_token_ids are padding of the embedding and can never be drawn.
        """
        self._logits = logits
        self._graphs = graphs
        self._num_token_ids = num_token_ids
        device = logits.device
        self._ascending = sorted(buckets)
        self._row_counts = [bucket.num_rows for bucket in self._ascending]
        parts = {(bucket, kind): _parts(bucket, kind) for bucket in buckets for kind in KINDS}
        self._inputs = FixedInputs(device, max(map(num_bytes_of, parts.values())) + _ROOM_FOR_OTHERS)
        self._layouts = {key: self._inputs.layout(own) for key, own in parts.items()}
        most_rows, most_sequences = self._row_counts[-1], max(bucket.num_sequences for bucket in buckets)
        # Every bucket's ids end, and its numbers of accepted ones begin, at one place. So what is left over of another
        # bucket's is an id as well: also behind a sequence's last token they are looked up among logits.
        middle = 8 * most_rows
        results = torch.zeros(middle + 4 * most_sequences, dtype=torch.uint8, device=device)
        target_ids = torch.zeros(most_rows, dtype=torch.int64, device=device)
        self._steps = {bucket: _drawn_step(bucket, target_ids, results, middle) for bucket in buckets}
        self._mask_rows: Tensor | None = None
        """int32 [N, W]: what the masked graphs read."""
        self._replays: dict[tuple[SamplingBucket, SamplingKind], Work] = {}
        self._is_refused = False
        """Whether the device refused a graph that had to be captured anew."""

    def __len__(self) -> int:
        return len(self._replays)

    def capture(self, bucket: SamplingBucket, kind: SamplingKind, mask_rows: Tensor) -> None:
        """Draw for nobody, and keep it; mask_rows int32 [N, W]. Raises RuntimeError where the device refuses."""
        nothing: Parts = {name: (part.dtype, []) for name, part in _parts(bucket, kind).items()}
        self._inputs.send(self._layouts[bucket, kind], nothing | {"row_starts": (np.int32, [0])})
        self._read_masks_of(mask_rows)
        self._replays[bucket, kind] = self._graphs.capture(self._work(bucket, kind))

    def send(self, logits: Tensor, rows: RowBatch, parts: Parts) -> SentStep | None:
        """Send a step's numbers, and whatever else is among the parts; None, and nothing is sent, where no graph fits.

        logits fp32 [R, V] or fewer rows.
        """
        index = bisect_left(self._row_counts, rows.num_rows)
        if index == len(self._ascending) or logits.data_ptr() != self._logits.data_ptr():
            return None
        bucket = self._ascending[index]
        if not bucket.holds(num_sequences=len(rows.groups), max_num_rows=rows.max_num_rows):
            return None
        kind = SamplingKind(truncates="top_k" in parts, is_masked="mask_row_ids" in parts)
        layout = self._layouts[bucket, kind]
        given = self._inputs.send(layout, parts)
        given["draft_ids"] = layout.tensors["draft_ids"]
        return SentStep(bucket, kind, given)

    def replay(self, step: SentStep, mask_rows: Tensor) -> DrawnStep:
        """Draw from the logits as they are now; mask_rows int32 [N, W], which have the rows that the step names."""
        if step.kind.is_masked:
            self._read_masks_of(mask_rows)
        replay = self._replays.get((step.bucket, step.kind))
        if replay is None:
            replay = self._captured_anew(step.bucket, step.kind)
        replay()
        return self._steps[step.bucket]

    def _read_masks_of(self, mask_rows: Tensor) -> None:
        """Let go of graphs that read masks elsewhere, where nobody writes any more, and whose memory is given back."""
        if mask_rows is self._mask_rows:
            return
        self._mask_rows = mask_rows
        stale = [key for key in self._replays if key[1].is_masked]
        if stale and mask_rows.is_cuda:
            # One of them may be under way.
            torch.cuda.synchronize(mask_rows.device)
        for key in stale:
            del self._replays[key]

    def _captured_anew(self, bucket: SamplingBucket, kind: SamplingKind) -> Work:
        """A replay; where the device refuses one, the log says why, and the kernels are launched one by one."""
        work = self._work(bucket, kind)
        if self._is_refused:
            return work
        try:
            replay = self._replays[bucket, kind] = self._graphs.capture(work)
        except RuntimeError as error:
            self._is_refused = True
            cause = first_cause(error)
            logger.warning(
                "sampling under masks is launched kernel by kernel from now on, which is slower: the mask table's "
                "mirror has grown, and a graph that reads it where it is now could not be captured (%s: %s)",
                type(cause).__name__,
                cause,
            )
            return work
        return replay

    def _work(self, bucket: SamplingBucket, kind: SamplingKind) -> Work:
        return partial(self._draw, bucket, kind, self._mask_rows if kind.is_masked else None)

    def _draw(self, bucket: SamplingBucket, kind: SamplingKind, mask_rows: Tensor | None) -> None:
        given, drawn = self._layouts[bucket, kind].tensors, self._steps[bucket]
        sample(
            self._logits[: bucket.num_rows],
            given["keys"].view(-1, 2),
            given["temperatures"],
            drawn.target_ids,
            num_token_ids=self._num_token_ids,
            top_k=given.get("top_k"),
            top_p=given.get("top_p"),
            min_p=given.get("min_p"),
            mask_rows=mask_rows,
            mask_row_ids=given.get("mask_row_ids"),
            is_constrained=given.get("is_constrained"),
        )
        verify_coupled(
            drawn.target_ids,
            given["draft_ids"],
            given["row_starts"],
            drawn.num_accepted,
            drawn.output_ids,
            max_num_rows=bucket.max_num_rows,
        )


def _parts(bucket: SamplingBucket, kind: SamplingKind) -> dict[str, InputPart]:
    """By the names that the sampler and the row batch have for them."""
    num_rows = bucket.num_rows
    parts = {
        "keys": InputPart(np.int64, 2 * num_rows),
        "temperatures": InputPart(np.float32, num_rows, fill=NOBODY),
        "draft_ids": InputPart(np.int64, num_rows),
        "row_starts": InputPart(np.int32, bucket.num_sequences + 1, fill=None),
    }
    if kind.truncates:
        parts["top_k"] = InputPart(np.int32, num_rows)
        parts["top_p"] = InputPart(np.float64, num_rows, fill=1.0)
        parts["min_p"] = InputPart(np.float64, num_rows)
    if kind.is_masked:
        # A row of nobody is as if it were not constrained, so that no mask is read for it either.
        parts["mask_row_ids"] = InputPart(np.int64, num_rows)
        parts["is_constrained"] = InputPart(np.bool_, num_rows)
    return parts


def _drawn_step(bucket: SamplingBucket, target_ids: Tensor, results: Tensor, middle: int) -> DrawnStep:
    """target_ids int64 and results uint8, of the largest bucket or more, with ids before the byte in the middle."""
    first, end = middle - 8 * bucket.num_rows, middle + 4 * bucket.num_sequences
    return DrawnStep(
        target_ids=target_ids[: bucket.num_rows],
        output_ids=results[first:middle].view(torch.int64),
        num_accepted=results[middle:end].view(torch.int32),
        joined=results[first:end],
    )
