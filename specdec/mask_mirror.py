"""MaskMirror: the rows of a mask table that were asked for, on the device.

N rows, W words a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import torch
from torch import Tensor

from specdec.device_tensors import array_on_device, on_device
from specdec.grammars import MaskTable

_MIN_ROWS: Final = 1024
"""From the start: 5 MB of 49,152 tokens, 19 MB of 151,936."""


class MaskMirror:
    """A row has the table's id here too; it is copied when it is first asked for, and again once it was overwritten."""

    def __init__(self, table: MaskTable, device: torch.device) -> None:
        self._table = table
        self._device = device
        self._stamps: dict[int, int] = {}
        """Of each row as it was copied."""
        num_rows = min(_MIN_ROWS, table.rows.shape[0])
        self._rows = torch.empty(num_rows, table.rows.shape[1], dtype=torch.int32, device=device)

    def rows(self, row_ids: Iterable[int]) -> Tensor:
        """int32 [N, W], in which these rows are as the table has them now."""
        stamps = self._table.stamps
        stale = [row_id for row_id in dict.fromkeys(row_ids) if self._stamps.get(row_id) != stamps[row_id]]
        if stale:
            self._reserve(max(stale) + 1)
            words = array_on_device(self._device, self._table.rows[stale].view(np.int32))
            self._rows.index_copy_(0, on_device(self._device, np.int64, stale)[0], words)
            self._stamps.update((row_id, stamps[row_id]) for row_id in stale)
        return self._rows

    def _reserve(self, num_rows: int) -> None:
        num_before = self._rows.shape[0]
        if num_rows > num_before:
            num_after = min(max(num_rows, 2 * num_before), self._table.rows.shape[0])
            larger = torch.empty(num_after, self._rows.shape[1], dtype=torch.int32, device=self._device)
            larger[:num_before] = self._rows
            self._rows = larger
