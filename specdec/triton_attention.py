"""TritonAttention: a step's keys and values into the pool and its queries over it, by the kernels: the GPU path.

T packed tokens, B sequences, M blocks of the longest of them, S tokens a block, H_q query heads, H key-value heads, D
head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

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
    """[B, M]"""
    query_starts: NDArray[np.int32]
    """[B + 1]"""
    context_lens: NDArray[np.int32]
    """[B]"""

    @classmethod
    def of(cls, spans: Sequence[Span], block_size: int) -> HostPlan:
        num_sequences = len(spans)
        lengths = np.fromiter((len(span.token_ids) for span in spans), np.int32, num_sequences)
        contexts = np.fromiter((span.context_len for span in spans), np.int32, num_sequences)
        starts = np.zeros(num_sequences + 1, dtype=np.int32)
        np.cumsum(lengths, out=starts[1:])
        widths = -(-contexts // block_size)
        tables = np.zeros((num_sequences, int(widths.max(initial=1))), dtype=np.int32)
        for row, span, width in zip(tables, spans, widths.tolist(), strict=True):
            row[:width] = span.block_table[:width]
        sequences = np.repeat(np.arange(num_sequences), lengths)
        positions = np.arange(starts[-1], dtype=np.int64) + (contexts - starts[1:])[sequences]
        slots = tables[sequences, positions // block_size] * np.int64(block_size) + positions % block_size
        return cls(positions, slots, tables, starts, contexts)

    def filled(self, num_tokens: int, num_sequences: int) -> HostPlan:
        """With tokens that are nobody's and written nowhere, and sequences without any; the tables stay as they are."""
        return HostPlan(
            positions=_filled(self.positions, num_tokens, 0),
            slot_mapping=_filled(self.slot_mapping, num_tokens, NO_SLOT),
            block_tables=self.block_tables,
            query_starts=_filled(self.query_starts, num_sequences + 1, int(self.query_starts[-1])),
            context_lens=_filled(self.context_lens, num_sequences, 0),
        )


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
            max_context_len=int(host.context_lens.max(initial=0)),
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


def _filled(array: NDArray[Any], size: int, number: int) -> NDArray[Any]:
    filled = np.full(size, number, dtype=array.dtype)
    filled[: len(array)] = array
    return filled
