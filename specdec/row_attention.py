"""RowAttention: each query by itself over its blocks, in a kernel of our own for a CPU's vector units.

    output[t, h] = sum over j of exp(s[j] - max s) * value[j] / sum over j of exp(s[j] - max s),
    s[j] = scale * query[t, h] . key[j]        for all positions j up to row t's own

in fp32 and rounded once; no sum depends on what other rows there are, so a row's output is the same in any batch, bit
for bit. Blocks are read where they are: nothing is gathered and no mask is made.

T packed tokens, H_q query heads, H key-value heads, D head size, S tokens a block.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from specdec.attention import Span
from specdec.attention_code import MAX_ITEM_ROWS, attention_code, scratch_floats
from specdec.machine_code import MachineCode, Scratch, is_available
from specdec.processor import max_lanes
from specdec.query_code import padded

_MAX_ITEM_SCORES: Final = 2**17
"""That a thread holds, half a MiB: of long contexts fewer rows go together, of very long ones each by itself."""
_ITEMS_PER_THREAD: Final = 4
"""At least: fewer would leave one thread waiting for the other."""

_scratch = Scratch()


def row_attention_reference(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The specification: one query [H_q, D] over its keys and values [L, H, D] -> [H_q, D], in double precision."""
    num_groups = query.shape[0] // keys.shape[1]
    keys, values = (part.double().repeat_interleave(num_groups, dim=1) for part in (keys, values))
    scores = torch.einsum("hd,lhd->hl", query.double(), keys) * query.shape[1] ** -0.5
    return torch.einsum("hl,lhd->hd", scores.softmax(dim=1), values)


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Where each row's context is, and which rows are worked out together."""

    tables: Tensor
    """int64: the block tables of all sequences, one behind the other"""
    row_tables: Tensor
    """int64 [T]: where in `tables` a row's begins"""
    positions: Tensor
    """int64 [T]"""
    first_rows: Tensor
    """int64: the first row of each share of a sequence's rows, and T"""
    num_groups: int
    block_size: int
    max_context: int
    max_share_rows: int


class RowAttention:
    """An AttentionBackend for processors with AVX2, caches of any dtype that a CPU's model has, and any head size.

    In one run on a Zen 3 server, SmolLM2-135M in bfloat16 and two threads, a layer's attention took 48, 138 and 1,063
    us for 1, 17 and 300 queries of 300 tokens, torch's own 144, 277 and 3,612; at 2,000 tokens 206 us for one query
    and 20.0 ms for 512, and 437 us and 33.3 ms. On an Ice Lake server, with AVX-512: 69, 217 and 1,786 us, and 281, 334
    and 3,925; 257 us and 25.7 ms, and 400 us and 40.6 ms.
    """

    def __init__(self) -> None:
        self._lanes = max_lanes()

    @staticmethod
    def runs_here() -> bool:
        return is_available()

    def compile(self, keys: Tensor) -> None:
        """Make the code for a cache like keys [N, S, H, D] now, in half a second, and not in the first pass."""
        _machine_code(keys.shape[3], keys.dtype, self._lanes)

    def plan(self, spans: Sequence[Span], *, block_size: int, num_groups: int, dtype: torch.dtype) -> RowPlan:
        del dtype
        tables: list[int] = []
        row_tables: list[int] = []
        positions: list[int] = []
        first_rows: list[int] = []
        max_share_rows = 0
        for span in spans:
            share_rows = max(1, min(MAX_ITEM_ROWS, _MAX_ITEM_SCORES // (num_groups * span.context_len)))
            max_share_rows = max(max_share_rows, min(share_rows, len(span.token_ids)))
            first_rows += range(len(positions), len(positions) + len(span.token_ids), share_rows)
            row_tables += [len(tables)] * len(span.token_ids)
            positions += range(span.start_position, span.context_len)
            num_blocks = -(-span.context_len // block_size)
            assert len(span.block_table) >= num_blocks, "a block for each token"
            tables += span.block_table[:num_blocks]
        first_rows.append(len(positions))
        return RowPlan(
            _integers(tables),
            _integers(row_tables),
            _integers(positions),
            _integers(first_rows),
            num_groups,
            block_size,
            max(span.context_len for span in spans),
            max_share_rows,
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: tuple[Tensor, Tensor],
        plan: RowPlan,
        *scales: Tensor,
    ) -> Tensor:
        """As AttentionBackend says."""
        assert not scales, "its caches hold numbers as they are"
        num_rows, num_heads, head_size = query.shape
        keys, values = cache
        assert keys.stride() == values.stride(), "as the arena has them"
        assert keys.stride()[2:] == (head_size, 1), "a token's heads lie together"
        assert {part.dtype for part in (key, value, keys, values)} == {query.dtype}
        assert num_rows == plan.positions.shape[0]
        assert num_heads == keys.shape[2] * plan.num_groups
        query, key, value = (_with_heads_together(part) for part in (query, key, value))
        output = torch.empty(num_rows, num_heads, head_size, dtype=query.dtype, device=query.device)
        size = query.itemsize
        (scale,) = struct.unpack("i", struct.pack("f", head_size**-0.5))
        num_threads = torch.get_num_threads()
        num_shares = plan.first_rows.shape[0] - 1
        # Heads that share keys go together, unless that left threads without work.
        is_plenty = num_shares * num_heads >= _ITEMS_PER_THREAD * num_threads * plan.num_groups
        item_heads = plan.num_groups if is_plenty else 1
        # Whole registers, so that no query and no thread's memory begins between two lines of the cache.
        scores_stride = padded(plan.max_context, self._lanes) + self._lanes
        num_queries = plan.max_share_rows * item_heads
        scratch_stride = scratch_floats(head_size, num_queries, scores_stride, plan.block_size, self._lanes)
        job = (
            *(0, 0, query.data_ptr(), query.stride(0) * size, key.data_ptr(), key.stride(0) * size),
            *(value.data_ptr(), value.stride(0) * size, keys.data_ptr(), values.data_ptr()),
            *(keys.stride(0) * size, keys.stride(1) * size, output.data_ptr(), num_heads * head_size * size),
            *(scale, _scratch.of(num_threads * scratch_stride)),
            *(plan.tables.data_ptr(), plan.row_tables.data_ptr(), plan.positions.data_ptr(), num_rows),
            *(plan.block_size, num_heads, plan.num_groups, plan.first_rows.data_ptr()),
            *(num_shares * num_heads // item_heads, item_heads, scores_stride, scratch_stride),
        )
        code = _machine_code(head_size, query.dtype, self._lanes)
        code.run("store", job, num_threads=1)
        code.run("attend", job, num_threads=num_threads)
        return output


def _integers(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _with_heads_together(rows: Tensor) -> Tensor:
    """rows [T, N, D], the same with a row's numbers one behind the other."""
    return rows if rows.stride()[1:] == (rows.shape[2], 1) else rows.contiguous()


@functools.cache
def _machine_code(head_size: int, dtype: torch.dtype, lanes: int) -> MachineCode:
    return MachineCode(attention_code(head_size, dtype, lanes), "store", "attend")
