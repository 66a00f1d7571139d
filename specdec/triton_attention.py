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
from numpy.typing import NDArray
from torch import Tensor

from specdec.attention import Span
from specdec.device_tensors import together_on_device
from specdec.kernels.attention_tiling import AttentionTiling, power_of_2_from
from specdec.kernels.kv_store import kv_store
from specdec.kernels.paged_attention import paged_attention

_INVARIANT_TILE: Final = 16
"""Rows and keys: the least, so that a single query wastes little."""
_INVARIANT_SPLIT_KEYS: Final = 256
NO_SLOT: Final = -1
"""Of a token whose key and value nobody wants."""


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
    output: Tensor | None = None
    """[T, H_q, D], where all layers' queries are answered, one layer after the other; None is memory of each's own."""


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What a plan is made of, on the host."""

    positions: NDArray[np.int64]
    """[T]"""
    slot_mapping: NDArray[np.int64]
    """[T]"""
    block_tables: NDArray[np.int32]
    """[B, M], or as wide as asked for"""
    query_starts: NDArray[np.int32]
    """[B + 1]"""
    context_lens: NDArray[np.int32]
    """[B]"""
    max_context_len: int

    @classmethod
    def of(cls, spans: Sequence[Span], block_size: int, width: int = 1) -> HostPlan:
        """`width`: of the tables, if M is not more."""
        num_sequences = len(spans)
        lengths = [len(span.token_ids) for span in spans]
        contexts = [span.start_position + length for span, length in zip(spans, lengths, strict=True)]
        max_context_len = max(contexts, default=0)
        context_lens, starts = np.array(contexts, np.int32), np.zeros(num_sequences + 1, np.int32)
        np.array(lengths, np.int32).cumsum(out=starts[1:])
        tables = np.zeros((num_sequences, max(width, -(-max_context_len // block_size))), dtype=np.int32)
        for row, span, context in zip(tables, spans, contexts, strict=True):
            num_blocks = -(-context // block_size)
            row[:num_blocks] = span.block_table[:num_blocks]
        sequences = np.repeat(np.arange(num_sequences), lengths)
        positions = np.arange(starts[-1]) + (context_lens - starts[1:])[sequences]
        slots = tables[sequences, positions // block_size] * np.int64(block_size) + positions % block_size
        return cls(positions, slots, tables, starts, context_lens, max_context_len)


class TritonAttention:
    """One kernel for prompts, decoding and verification, in the arena as it lies."""

    def __init__(self, device: torch.device, *, row_invariant: bool = False) -> None:
        """row_invariant: one tiling for all steps, so that a query's result depends on that query alone."""
        self._device = device
        self._row_invariant = row_invariant

    def tiling(self, num_groups: int) -> AttentionTiling | None:
        """For all steps; None is whatever is fastest for one."""
        if not self._row_invariant:
            return None
        tile_rows = max(_INVARIANT_TILE, power_of_2_from(num_groups))
        return AttentionTiling(tile_rows, _INVARIANT_TILE, _INVARIANT_SPLIT_KEYS)

    def partial_bytes(self, num_heads: int, head_size: int, max_context_len: int) -> int:
        """What one token's partial results take where there are as many as the longest context has splits."""
        if not self._row_invariant:
            # So few splits that all tokens' results are about as many as the device has processors.
            return 0
        return 4 * num_heads * -(-max_context_len // _INVARIANT_SPLIT_KEYS) * (head_size + 2)

    def plan(self, spans: Sequence[Span], *, block_size: int, num_groups: int, dtype: torch.dtype) -> TritonPlan:
        del dtype
        host = HostPlan.of(spans, block_size)
        # One copy, however many sequences there are.
        slots, tables, starts, contexts = together_on_device(
            self._device,
            (np.int64, host.slot_mapping),
            (np.int32, host.block_tables.ravel()),
            (np.int32, host.query_starts),
            (np.int32, host.context_lens),
        )
        return TritonPlan(
            slot_mapping=slots,
            block_tables=tables.view(host.block_tables.shape),
            query_starts=starts,
            context_lens=contexts,
            max_num_queries=max((len(span.token_ids) for span in spans), default=0),
            max_context_len=host.max_context_len,
            tiling=self.tiling(num_groups),
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
        output = plan.output
        if output is None:
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
