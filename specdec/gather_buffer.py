"""GatherBuffer: the memory of one layer's gathered blocks after another's.

N blocks of the pool, M gathered ones, S tokens a block, H key-value heads, D head size.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_GROWTH_BYTES: Final = 4 * 2**20
"""By which it grows."""
_MAX_BYTES: Final = 64 * 2**20
"""Beyond, blocks are gathered in memory of their own, which nobody keeps. 64 sequences of 2700 tokens of
SmolLM2-135M are as many."""


class GatherBuffer:
    """Of one owner, who has done with the blocks of a layer before the next.

    Each layer of each pass gathers megabytes, of another size in every pass. In memory of their own these lie between
    whatever else there is, and what the process holds grows for many minutes. So it does with the largest pass so far,
    4 MB at a time, where the memory that most will need is not reserved.
    """

    __slots__ = ("_memory",)

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Of the memory that is kept."""
        return 0 if self._memory is None else self._memory.nbytes

    def reserve(self, num_bytes: int, device: torch.device) -> None:
        """Take so much memory now, pages and all, or as much as is kept; not when a pass first needs it."""
        self._take(min(num_bytes, _MAX_BYTES), device)
        if self._memory is not None:
            self._memory.zero_()

    def gather(self, pool: Tensor, block_ids: Tensor) -> Tensor:
        """pool [N, S, H, D], block_ids int64 [M] -> [M, S, H, D], in the place of what was returned before."""
        num_values = block_ids.shape[0] * pool[0].numel()
        num_bytes = num_values * pool.itemsize
        if num_bytes > _MAX_BYTES:
            return pool.index_select(0, block_ids)
        self._take(num_bytes, pool.device)
        assert self._memory is not None, "there are blocks to gather"
        gathered = self._memory[:num_bytes].view(pool.dtype).view(block_ids.shape[0], *pool.shape[1:])
        return torch.index_select(pool, 0, block_ids, out=gathered)

    def _take(self, num_bytes: int, device: torch.device) -> None:
        if num_bytes > self.num_bytes:
            self._memory = None
            num_kept = -(-num_bytes // _GROWTH_BYTES) * _GROWTH_BYTES
            self._memory = torch.empty(num_kept, dtype=torch.uint8, device=device)
