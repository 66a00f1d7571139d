"""The points of a sweep over batches, contexts and drafts, and what each takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import msgspec
import torch

from specdec.evals.bench_device import BenchDevice
from specdec.evals.bench_engine_load import EngineLoad
from specdec.evals.bench_shapes import SHAPES
from specdec.evals.bench_work import embedding_bytes, kv_bytes_per_token, weight_bytes

Phase = Literal["decode", "prefill"]
PHASES: Final[tuple[Phase, ...]] = ("decode", "prefill")
BLOCK_SIZE: Final = 16


class EngineRun(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured."""

    shape: str
    draft_shape: str | None
    dtype: Literal["bfloat16", "float16", "float32"]
    kv_cache_dtype: Literal["auto", "fp8"]
    device: Literal["auto", "cpu", "cuda"]
    enforce_eager: bool = False
    async_scheduling: bool = True
    phases: tuple[Phase, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    nums_drafts: tuple[int, ...]
    acceptance_rates: tuple[float, ...]
    temperature: float
    num_steps: int
    """Of decoding, timed at each point."""
    repeats: int
    """Of each prompt."""
    max_num_batched_tokens: int
    seed: int


class LoadShape(msgspec.Struct, frozen=True, kw_only=True):
    """One point, and what it takes."""

    phase: Phase
    batch: int
    context: int
    num_drafts: int
    max_tokens: int

    @property
    def label(self) -> str:
        if self.phase == "prefill":
            return f"prompt of {self.context}"
        return f"decode, batch {self.batch}, context {self.context}, K={self.num_drafts}"

    @property
    def model_len(self) -> int:
        return self.context + self.max_tokens

    @property
    def num_blocks(self) -> int:
        return self.batch * -(-self.model_len // BLOCK_SIZE) + 1


def sweep(run: EngineRun, left_out: dict[str, str]) -> Iterator[LoadShape]:
    """The points whose sequences there are positions and memory for; the others go to `left_out`, with the reason."""
    shapes = [SHAPES[name] for name in (run.shape, run.draft_shape) if name is not None]
    itemsize = getattr(torch, run.dtype).itemsize
    kv_itemsize = 1 if run.kv_cache_dtype == "fp8" else itemsize
    has_gpu = run.device != "cpu" and torch.cuda.is_available()
    bench = BenchDevice(torch.device("cuda" if has_gpu else "cpu"))
    num_weight_bytes = sum(weight_bytes(shape, itemsize) + embedding_bytes(shape, itemsize) for shape in shapes)
    for load in _all(run):
        max_model_len = min(shape.max_position_embeddings for shape in shapes)
        num_kv_bytes = load.num_blocks * BLOCK_SIZE * sum(kv_bytes_per_token(shape, kv_itemsize) for shape in shapes)
        if load.model_len > max_model_len:
            left_out[load.label] = f"it takes {load.model_len} positions, and the models have {max_model_len}"
        elif not bench.has_room_for(num_weight_bytes + num_kv_bytes):
            gib = (num_weight_bytes + num_kv_bytes) / 2**30
            left_out[load.label] = f"weights, keys and values take {gib:.1f} GiB, more than is free"
        else:
            yield load


def _all(run: EngineRun) -> Iterator[LoadShape]:
    if "decode" in run.phases:
        for context in run.contexts:
            for batch in run.batches:
                for num_drafts in run.nums_drafts:
                    max_tokens = EngineLoad.max_tokens(
                        batch=batch,
                        context=context,
                        num_drafts=num_drafts,
                        num_steps=run.num_steps,
                        budget=run.max_num_batched_tokens,
                    )
                    yield LoadShape(
                        phase="decode", batch=batch, context=context, num_drafts=num_drafts, max_tokens=max_tokens
                    )
    if "prefill" in run.phases:
        for context in run.contexts:
            yield LoadShape(phase="prefill", batch=1, context=context, num_drafts=0, max_tokens=1)
