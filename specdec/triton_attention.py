"""TritonAttention: a step's keys and values into the pool and its queries over it, by the kernels: the GPU path.

T packed tokens, B sequences, M blocks of the longest of them, S tokens a block, H_q query heads, H key-value heads, D
head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from specdec.attention import Span
from specdec.device_tensors import on_device
from specdec.kernels.attention_tiling import AttentionTiling, power_of_2_from
from specdec.kernels.kv_store import kv_store
from specdec.kernels.paged_attention import paged_attention

_INVARIANT_TILE: Final = 16
"""Rows and keys: the least, so that a single query wastes little."""
_INVARIANT_SPLIT_KEYS: Final = 256


@dataclass(frozen=True, slots=True)
class TritonPlan:
    """On the device."""

    slot_mapping: Tensor
    """int64 [T]"""
    block_tables: Tensor
    """int32 [B, M]"""
    query_starts: Tensor
    """int32 [B + 1]"""
    context_lens: Tensor
    """int32 [B]"""
    max_num_queries: int
    max_context_len: int
    tiling: AttentionTiling | None
    """None is whatever is fastest."""


class TritonAttention:
    """One kernel for prompts, decoding and verification, in the arena as it lies."""

    def __init__(self, device: torch.device, *, row_invariant: bool = False) -> None:
        """row_invariant: one tiling for all steps, so that a query's result depends on that query alone."""
        self._device = device
        self._row_invariant = row_invariant

    def plan(self, spans: Sequence[Span], *, block_size: int, num_groups: int, dtype: torch.dtype) -> TritonPlan:
        del dtype
        lengths = [len(span.token_ids) for span in spans]
        widths = [-(-span.context_len // block_size) for span in spans]
        num_sequences, num_tokens, width = len(spans), sum(lengths), max(widths, default=1)
        slots = np.empty(num_tokens, dtype=np.int64)
        tables = np.zeros((num_sequences, width), dtype=np.int32)
        starts = np.zeros(num_sequences + 1, dtype=np.int32)
        contexts = np.zeros(num_sequences, dtype=np.int32)
        starts[1:] = np.cumsum(lengths)
        for i, span in enumerate(spans):
            tables[i, : widths[i]] = span.block_table[: widths[i]]
            contexts[i] = span.context_len
            positions = np.arange(span.start_position, span.context_len)
            slots[starts[i] : starts[i + 1]] = tables[i, positions // block_size] * np.int64(block_size) + (
                positions % block_size
            )
        # Two copies, however many sequences there are.
        (slot_mapping,) = on_device(self._device, np.int64, slots)
        own_tables, own_starts, own_contexts = on_device(self._device, np.int32, tables.ravel(), starts, contexts)
        tiling = None
        if self._row_invariant:
            tile_rows = max(_INVARIANT_TILE, power_of_2_from(num_groups))
            tiling = AttentionTiling(tile_rows, _INVARIANT_TILE, _INVARIANT_SPLIT_KEYS)
        return TritonPlan(
            slot_mapping=slot_mapping,
            block_tables=own_tables.view(num_sequences, width),
            query_starts=own_starts,
            context_lens=own_contexts,
            max_num_queries=max(lengths, default=0),
            max_context_len=int(contexts.max(initial=0)),
            tiling=tiling,
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: tuple[Tensor, Tensor],
        plan: TritonPlan,
        *scales: Tensor,
    ) -> Tensor:
        key_cache, value_cache = cache
        key_scale, value_scale = scales or (None, None)
        kv_store(key, value, key_cache, value_cache, plan.slot_mapping, key_scale=key_scale, value_scale=value_scale)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        paged_attention(
            query,
            key_cache,
            value_cache,
            plan.block_tables,
            plan.query_starts,
            plan.context_lens,
            output,
            max_num_queries=plan.max_num_queries,
            max_context_len=plan.max_context_len,
            scale=query.shape[2] ** -0.5,
            key_scale=key_scale,
            value_scale=value_scale,
            tiling=plan.tiling,
        )
        return output
