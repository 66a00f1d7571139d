"""The op that follows a pass as an engine has it, captured_sampling: masks, drawing and verification in one replay.

R rows of logits, V vocabulary, B sequences.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from specdec.backend import KernelBackend
from specdec.captured_sampling import CapturedSampling, DrawnStep, SamplingKind, SentStep
from specdec.device_tensors import Parts
from specdec.evals.bench_device import Launch
from specdec.evals.bench_kernel_cell import KernelCell, KernelOp, KernelSetting
from specdec.evals.bench_kernel_logits import LogitsStep, batches_of, cell_of
from specdec.evals.bench_kernel_sampling import after_pass_work, check_after_pass, masks_of
from specdec.graph_buckets import SamplingBucket, sampling_buckets
from specdec.request import SamplingParams
from specdec.row_group import RowBatch, RowGroup
from specdec.sequence import Sequence
from specdec.speculative import MAX_DRAFT_TOKENS
from specdec.tokenizer import Detokenizer

_KIND: Final = SamplingKind(truncates=False, is_masked=True)


class _Silent(Detokenizer):
    """Of tokens without text."""

    def __init__(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _CapturedStep:
    """A step whose numbers lie where a graph reads them, and that graph."""

    captured: CapturedSampling
    sent: SentStep
    mask_rows: Tensor
    """int32 [R, W]"""

    @classmethod
    def of(cls, step: LogitsStep, bucket: SamplingBucket) -> _CapturedStep:
        """Captured as an engine does; on a CPU, a replay runs the same work."""
        num_rows, vocab_size = step.logits.shape
        # What fills the bucket up is nobody's.
        logits = torch.full((bucket.num_rows, vocab_size), math.nan, device=step.logits.device)
        logits[:num_rows] = step.logits
        capture = KernelBackend(logits.device).graphs()()
        captured = CapturedSampling(logits, [bucket], capture, num_token_ids=vocab_size)
        captured.capture(bucket, _KIND, step.mask_rows)
        sent = captured.send(logits, _row_batch(step), _parts(step))
        assert sent is not None, "the bucket holds the step"
        assert sent.kind == _KIND
        return cls(captured, sent, step.mask_rows)

    def replay(self) -> DrawnStep:
        return self.captured.replay(self.sent, self.mask_rows)


def _row_batch(step: LogitsStep) -> RowBatch:
    sequence = Sequence(
        request_id="",
        choice_index=0,
        params=SamplingParams(),
        seed=0,
        max_tokens=step.max_num_rows,
        eos_token_ids=frozenset(),
        num_prompt_tokens=1,
        token_ids=[0],
        detokenizer=_Silent(),
    )
    group = RowGroup(sequence, [0] * (step.max_num_rows - 1), [0] * step.max_num_rows)
    return RowBatch([group] * (step.row_starts.shape[0] - 1))


def _parts(step: LogitsStep) -> Parts:
    """By the names that the graph has for them."""
    masks = masks_of(step)
    return {
        "keys": (np.int64, step.keys.flatten().cpu().numpy()),
        "temperatures": (np.float32, step.temperatures.cpu().numpy()),
        "draft_ids": (np.int64, step.draft_ids.cpu().numpy()),
        "row_starts": (np.int32, step.row_starts.cpu().numpy()),
        "mask_row_ids": (np.int64, masks["mask_row_ids"].cpu().numpy()),
        "is_constrained": (np.bool_, masks["is_constrained"].cpu().numpy()),
    }


def _buckets(num_sequences: int) -> list[SamplingBucket]:
    """Of an engine for so many, the smallest first."""
    return sampling_buckets(max_sequences=num_sequences, max_rows=num_sequences * (1 + MAX_DRAFT_TOKENS))[::-1]


def _bucket_of(num_sequences: int, num_rows: int) -> SamplingBucket | None:
    """The one that it replays; None where it launches the kernels of so many rows one by one."""
    return next((bucket for bucket in _buckets(num_sequences) if bucket.num_rows >= num_rows), None)


def _check_captured(setting: KernelSetting) -> str | None:
    def after_pass(step: LogitsStep) -> tuple[Tensor, Tensor, Tensor]:
        num_sequences = step.row_starts.shape[0] - 1
        bucket = _bucket_of(num_sequences, step.num_rows)
        assert bucket is not None, "it is a small one"
        drawn = _CapturedStep.of(step, bucket).replay()
        rows = slice(step.num_rows)
        return drawn.target_ids[rows], drawn.num_accepted[:num_sequences], drawn.output_ids[rows]

    return check_after_pass(setting, after_pass)


def _captured_cells(setting: KernelSetting) -> list[KernelCell]:
    cells = []
    for batch, num_rows in batches_of(setting):
        bucket = _bucket_of(batch, num_rows)

        def prepare(batch: int, bucket: SamplingBucket | None = bucket) -> Callable[[], object]:
            assert bucket is not None, "where there is none, nothing is timed"
            return _CapturedStep.of(LogitsStep.of(setting, batch, setting.vocab_size), bucket).replay

        # What has to be moved is the step's own, whatever fills it up.
        work = after_pass_work(setting, batch, num_rows)
        what = "" if bucket is None else f"a graph of {bucket.num_rows}"
        cell = cell_of(setting, prepare, batch, work, what, Launch.AS_IT_IS)
        if bucket is None:
            most = _buckets(batch)[-1].num_rows
            cell = dataclasses.replace(cell, obstacle=f"an engine captures steps of up to {most} rows")
        cells.append(cell)
    return cells


CAPTURED_OPS: Final = (KernelOp("captured_sampling", _check_captured, _captured_cells, None),)
