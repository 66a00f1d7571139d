"""The ops on the paged cache: kv_store and paged_attention.

T packed tokens, B sequences, S tokens a block, H_q query heads, H key-value heads, D head size. Two layers share the
arena, of which one is used: blocks lie apart, as they do in the engine's, and in random order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from specdec.attention import SlotIndex, Span
from specdec.backend import CpuBackend
from specdec.evals.bench_kernel_cell import (
    TOLERANCE,
    KernelCell,
    KernelOp,
    KernelSetting,
    difference,
    first_difference,
)
from specdec.evals.bench_work import Attended, Work, attention_work
from specdec.kernels.attention_tiling import choose_tiling
from specdec.kernels.kv_store import kv_store, kv_store_reference
from specdec.kernels.paged_attention import paged_attention, paged_attention_reference
from specdec.kv_cache import KVShape, allocate_arena

_BLOCK_SIZE: Final = 16
_NUM_LAYERS: Final = 2
_CHECKED: Final = (
    (Attended(1, 1), Attended(1, 17), Attended(1, 300)),
    (Attended(5, 5), Attended(5, 40), Attended(3, 530)),
    (Attended(50, 70), Attended(1, 33)),
)
"""Decoding, verification, and a prompt beside a token."""


class _Programs(NamedTuple):
    """How paged_attention's go about their tiles; None is as in the engine."""

    num_stages: int | None
    num_warps: int | None

    def __str__(self) -> str:
        parts = ((self.num_stages, "stages"), (self.num_warps, "warps"))
        return "".join(f", {number} {what}" for number, what in parts if number is not None)

    @classmethod
    def of(cls, setting: KernelSetting) -> list[_Programs]:
        """Each kind that is to be compared."""
        return [cls(*each) for each in itertools.product(setting.num_stages or (None,), setting.num_warps or (None,))]


@dataclass(frozen=True, slots=True)
class _Step:
    """The tensors of one step of one layer."""

    spans: list[Span]
    query: Tensor
    key: Tensor
    value: Tensor
    cache: tuple[Tensor, Tensor]
    key_scale: Tensor | None
    """fp32 [H]; None but for a cache of fp8."""
    value_scale: Tensor | None
    """Likewise."""
    slot_mapping: Tensor
    """int64 [T]"""
    block_tables: Tensor
    """int32 [B, M]"""
    query_starts: Tensor
    """int32 [B + 1]"""
    context_lens: Tensor
    """int32 [B]"""

    @classmethod
    def of(cls, setting: KernelSetting, sequences: Sequence[Attended], cache_dtype: torch.dtype) -> _Step:
        shape, device = setting.shape, setting.device
        widths = [-(-each.context_len // _BLOCK_SIZE) for each in sequences]
        blocks = torch.randperm(sum(widths), generator=torch.Generator().manual_seed(0))
        tables = torch.zeros(len(sequences), max(widths), dtype=torch.int32)
        spans, slots = [], []
        for i, (each, own) in enumerate(zip(sequences, torch.split(blocks, widths), strict=True)):
            tables[i, : widths[i]] = own
            start = each.context_len - each.num_queries
            spans.append(Span([0] * each.num_queries, start, own.tolist(), num_logits=1))
            positions = torch.arange(start, each.context_len)
            slots.append(own[positions // _BLOCK_SIZE] * _BLOCK_SIZE + positions % _BLOCK_SIZE)
        kv_shape = KVShape(_NUM_LAYERS, shape.num_key_value_heads, shape.head_dim, cache_dtype)
        arena = allocate_arena([kv_shape], num_blocks=sum(widths), block_size=_BLOCK_SIZE, device=device)[0]
        for i, part in enumerate(arena.layers[-1]):
            generator = torch.Generator(device).manual_seed(10 + i)
            if _is_fp8(cache_dtype):
                # Nothing draws in fp8.
                part.copy_(torch.randn(part.shape, generator=generator, dtype=setting.dtype, device=device))
            else:
                part.normal_(generator=generator)
        num_tokens = sum(each.num_queries for each in sequences)
        num_heads = shape.num_attention_heads + 2 * shape.num_key_value_heads
        heads = setting.random(num_tokens, num_heads, shape.head_dim)
        counts = [shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads]
        query, key, value = torch.split(heads, counts, dim=1)
        lengths = torch.tensor([each.num_queries for each in sequences])
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return cls(
            spans=spans,
            query=query,
            key=key,
            value=value,
            cache=arena.layers[-1],
            key_scale=_scales(setting, 0) if _is_fp8(cache_dtype) else None,
            value_scale=_scales(setting, 1) if _is_fp8(cache_dtype) else None,
            slot_mapping=torch.cat(slots).to(device),
            block_tables=tables.to(device),
            query_starts=starts.to(device, torch.int32),
            context_lens=torch.tensor([each.context_len for each in sequences], dtype=torch.int32, device=device),
        )

    def attend(self, setting: KernelSetting, programs: _Programs) -> Callable[[], Tensor]:
        """The call that is timed; on a CPU it also stores the new keys and values, as the engine's backend does."""
        output = torch.full_like(self.query, math.nan, memory_format=torch.contiguous_format)
        if not setting.bench.is_gpu:
            backend = CpuBackend(setting.device).attention(exact=False)
            num_groups = self.query.shape[1] // self.key.shape[1]
            plan = backend.plan(self.spans, block_size=_BLOCK_SIZE, num_groups=num_groups, dtype=setting.dtype)
            return lambda: backend.forward(self.query, self.key, self.value, self.cache, plan)
        max_num_queries = max(len(span.token_ids) for span in self.spans)
        max_context_len = max(span.context_len for span in self.spans)
        tiling = choose_tiling(
            self.query,
            num_kv_heads=self.key.shape[1],
            num_sequences=len(self.spans),
            max_num_queries=max_num_queries,
            max_context_len=max_context_len,
            is_fp8=self.key_scale is not None,
        )
        if programs.num_stages is not None:
            tiling = tiling._replace(num_stages=programs.num_stages)
        if programs.num_warps is not None:
            tiling = tiling._replace(num_warps=programs.num_warps)

        def call() -> Tensor:
            paged_attention(
                self.query,
                *self.cache,
                self.block_tables,
                self.query_starts,
                self.context_lens,
                output,
                max_num_queries=max_num_queries,
                max_context_len=max_context_len,
                scale=self.query.shape[2] ** -0.5,
                key_scale=self.key_scale,
                value_scale=self.value_scale,
                tiling=tiling,
            )
            return output

        return call

    def store(self, setting: KernelSetting) -> Callable[[], None]:
        if setting.bench.is_gpu:
            return lambda: kv_store(
                self.key,
                self.value,
                *self.cache,
                self.slot_mapping,
                key_scale=self.key_scale,
                value_scale=self.value_scale,
            )
        slots = SlotIndex.of(self.spans, _BLOCK_SIZE)
        return lambda: slots.store(self.key, self.value, self.cache)

    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self.cache)


def _check_attention(setting: KernelSetting) -> str | None:
    found = []
    for cache_dtype, sequences in itertools.product(setting.cache_dtypes, _CHECKED):
        step = _Step.of(setting, sequences, cache_dtype)
        # What the step's own tokens have in the cache is theirs, whoever stores it.
        kv_store_reference(
            step.key, step.value, *step.cache, step.slot_mapping, key_scale=step.key_scale, value_scale=step.value_scale
        )
        expected = torch.full_like(step.query, math.nan, memory_format=torch.contiguous_format)
        paged_attention_reference(
            step.query,
            *step.cache,
            step.block_tables,
            step.query_starts,
            step.context_lens,
            expected,
            scale=step.query.shape[2] ** -0.5,
            key_scale=step.key_scale,
            value_scale=step.value_scale,
        )
        what = ", ".join(f"{each.num_queries} of {each.context_len}" for each in sequences) + _suffix(cache_dtype)
        for programs in _Programs.of(setting):
            attended = step.attend(setting, programs)()
            found.append(difference(f"queries {what}{programs}", attended, expected, TOLERANCE[setting.dtype]))
    return first_difference(found)


def _attention_cells(setting: KernelSetting) -> list[KernelCell]:
    steps = {
        f"{name} {num_queries}, batch {batch}, context {context}": [Attended(num_queries, context)] * batch
        for num_queries, name in ((1, "decode"), (setting.num_drafts + 1, "verify"))
        for batch in setting.batches
        for context in setting.contexts
    }
    steps[f"prompt of {setting.num_prompt_tokens}"] = [Attended(setting.num_prompt_tokens, setting.num_prompt_tokens)]
    return [
        _attention_cell(setting, label, sequences, cache_dtype, programs)
        for cache_dtype in setting.cache_dtypes
        for label, sequences in steps.items()
        for programs in _Programs.of(setting)
    ]


def _attention_cell(
    setting: KernelSetting, label: str, sequences: list[Attended], cache_dtype: torch.dtype, programs: _Programs
) -> KernelCell:
    work = attention_work(setting.shape, setting.dtype.itemsize, sequences, kv_itemsize=cache_dtype.itemsize)
    # Two layers; a CPU gathers one of them once more; queries are drawn in fp32, and what becomes fp8 in 16 bits.
    num_allocated = (6 if _is_fp8(cache_dtype) else 4) * work.num_bytes
    return KernelCell(
        f"{label}{_suffix(cache_dtype)}{programs}",
        work,
        num_allocated,
        lambda: _Step.of(setting, sequences, cache_dtype).attend(setting, programs),
    )


def _check_store(setting: KernelSetting) -> str | None:
    found = []
    for cache_dtype, sequences in itertools.product(setting.cache_dtypes, _CHECKED):
        step = _Step.of(setting, sequences, cache_dtype)
        expected = [part.clone() for part in step.cache]
        kv_store_reference(
            step.key,
            step.value,
            expected[0],
            expected[1],
            step.slot_mapping,
            key_scale=step.key_scale,
            value_scale=step.value_scale,
        )
        step.store(setting)()
        for name, actual, due in zip(("keys", "values"), step.cache, expected, strict=True):
            found.append(difference(f"{name} of {step.key.shape[0]} tokens{_suffix(cache_dtype)}", actual, due))
    return first_difference(found)


def _store_cells(setting: KernelSetting) -> list[KernelCell]:
    shape = setting.shape
    cells = []
    for cache_dtype, num_tokens in itertools.product(setting.cache_dtypes, setting.row_counts()):
        # Keys and values, read and written.
        num_elements = 2 * num_tokens * shape.num_key_value_heads * shape.head_dim
        work = Work(num_elements * (setting.dtype.itemsize + cache_dtype.itemsize) + 8 * num_tokens)
        sequences = [Attended(1, _BLOCK_SIZE * (1 + i % 4)) for i in range(num_tokens)]
        num_allocated = work.num_bytes * _BLOCK_SIZE * _NUM_LAYERS * 4

        def prepare(
            sequences: list[Attended] = sequences, cache_dtype: torch.dtype = cache_dtype
        ) -> Callable[[], None]:
            return _Step.of(setting, sequences, cache_dtype).store(setting)

        cells.append(KernelCell(f"tokens {num_tokens}{_suffix(cache_dtype)}", work, num_allocated, prepare))
    return cells


def _is_fp8(dtype: torch.dtype) -> bool:
    return dtype.itemsize == 1


def _suffix(cache_dtype: torch.dtype) -> str:
    return ", fp8" if _is_fp8(cache_dtype) else ""


def _scales(setting: KernelSetting, index: int) -> Tensor:
    """Of another size for each head."""
    num_heads = setting.shape.num_key_value_heads
    return torch.linspace(0.5 + index, 1.5 + index, num_heads, dtype=torch.float32, device=setting.device)


CACHE_OPS = (
    KernelOp(
        "paged_attention",
        _check_attention,
        _attention_cells,
        "the engine's attention, which also stores the new keys and values",
    ),
    KernelOp("kv_store", _check_store, _store_cells, "SlotIndex.store"),
)
