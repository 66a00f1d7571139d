"""QueryTiles: attention of one sequence's many queries, tile after tile; prompts in 16 bits on a CPU.

torch's fused kernel takes a third of a prompt's time there. Products that oneDNN computes in bfloat16 and sums in fp32
take two thirds of that, and their scores, which stay fp32, are as exact as the kernel's own: a prompt of 330 tokens of
SmolLM2-135M came in 137 ms, not 152, one of 460 in 194, not 231. Elsewhere no engine has them; their products are in
fp32 there.

Q queries, L keys up to the last of them, H_q query heads, H key-value heads, G = H_q / H, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from specdec.linear import PackedLinear

_MAX_QUERIES: Final = 96
"""Of a tile: more are no faster, as more scores are worked out in vain above the diagonal."""
_MAX_SCORES: Final = 2**16
"""Of a tile and head: with 9 heads 2.3 MiB in fp32, which caches hold and malloc does not map anew each time."""
_MIN_QUERIES: Final = 16


@dataclass(frozen=True, slots=True)
class _Tile:
    start: int
    stop: int
    num_keys: int
    """All up to the last query's own."""
    hidden: Tensor
    """bool [N * G, N] for N queries: which of the last N keys come after a query."""


class QueryTiles:
    """How one sequence's queries are parted; the same for all layers of a pass."""

    def __init__(self, *, num_queries: int, first_position: int, num_groups: int) -> None:
        """`first_position` is the first query's, num_groups is G."""
        size = min(_MAX_QUERIES, max(_MIN_QUERIES, _MAX_SCORES // (first_position + num_queries)))
        later = torch.ones(size, size, dtype=torch.bool).triu_(1)
        self._tiles: list[_Tile] = []
        for start in range(0, num_queries, size):
            stop = min(start + size, num_queries)
            hidden = later[: stop - start, : stop - start].repeat_interleave(num_groups, dim=0)
            self._tiles.append(_Tile(start, stop, first_position + stop, hidden))

    @staticmethod
    def supports(dtype: torch.dtype) -> bool:
        """Whether tiles are faster than the kernel with this build of torch and this processor."""
        return PackedLinear.supports(torch.empty(0, dtype=dtype))

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query [Q, H_q, D], keys and values [L or more, H, D] -> [Q, H_q, D]."""
        num_query_heads, head_size = query.shape[1:]
        num_heads = keys.shape[1]
        num_groups = num_query_heads // num_heads
        output = torch.empty_like(query)
        # [H, D, L] and [H, L, D]; in fp32 nothing of 16 bits is lost.
        float_keys, float_values = keys.float().permute(1, 2, 0), values.float().transpose(0, 1)
        with _products_in_bfloat16() if PackedLinear.supports(query) else nullcontext():
            for tile in self._tiles:
                num_queries = tile.stop - tile.start
                folded = (
                    query[tile.start : tile.stop]
                    .float()
                    .view(num_queries, num_heads, num_groups, head_size)
                    .permute(1, 0, 2, 3)
                    .reshape(num_heads, num_queries * num_groups, head_size)
                )
                scores = torch.bmm(folded, float_keys[:, :, : tile.num_keys]).mul_(head_size**-0.5)
                scores[:, :, tile.num_keys - num_queries :].masked_fill_(tile.hidden, -math.inf)
                attended = torch.bmm(scores.softmax(dim=-1), float_values[:, : tile.num_keys])
                output[tile.start : tile.stop] = (
                    attended.view(num_heads, num_queries, num_groups, head_size)
                    .permute(1, 0, 2, 3)
                    .reshape(num_queries, num_query_heads, head_size)
                )
        return output


@contextmanager
def _products_in_bfloat16() -> Iterator[None]:
    """Let oneDNN multiply fp32 matrices in bfloat16 and sum in fp32: torch's own setting, for all of the process."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # a class makes itself that module
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
