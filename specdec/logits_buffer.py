"""LogitsBuffer: the memory of one pass's logits after another's.

R logits rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS_AT_ONCE = 64
"""By which it grows."""


class LogitsBuffer:
    """Of one owner, who has done with the logits of a pass before the next.

    They are the largest tensors of a step by far. An allocator would put them elsewhere each time, between whatever
    else there is, and the memory that a process has touched would grow for many minutes.
    """

    __slots__ = ("_device", "_memory")

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: Tensor | None = None

    def reserve(self, num_rows: int, vocab_size: int) -> None:
        """Take the memory of so many rows now, pages and all, and not when a pass first has as many."""
        self.rows(num_rows, vocab_size).zero_()

    def rows(self, num_rows: int, vocab_size: int) -> Tensor:
        """fp32 [R, V], of any content; in the place of what was returned before."""
        memory = self._memory
        if memory is None or memory.shape[0] < num_rows or memory.shape[1] != vocab_size:
            self._memory = None
            num_kept = -(-num_rows // _ROWS_AT_ONCE) * _ROWS_AT_ONCE
            # A pass runs in inference mode and `reserve` may not: it could not write what a pass had taken there.
            with torch.inference_mode(mode=False):
                self._memory = memory = torch.empty(num_kept, vocab_size, dtype=torch.float32, device=self._device)
        return memory[:num_rows]
