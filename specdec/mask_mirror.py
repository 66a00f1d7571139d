"""MaskMirror: the rows of a mask table that were asked for, on the device.

N rows, W words a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from specdec.device_tensors import Parts, named_on_device
from specdec.grammars import MaskTable

_MIN_ROWS: Final = 4096
"""From the start: 25 MB of 49,152 tokens, 78 MB of 151,936. 64 answers under as many schemas come to 1,500 rows, and
growing costs graphs."""


class MaskMirror:
    """A row has the table's id here too; it is copied when it is first asked for, and again once it was overwritten."""

    def __init__(self, table: MaskTable, device: torch.device) -> None:
        self._table = table
        self._device = device
        self._stamps: dict[int, int] = {}
        """Of each row as it was copied."""
        self._unwritten: dict[int, int] = {}
        """The stamps of rows that were found stale, until they are written."""
        num_rows = min(_MIN_ROWS, table.rows.shape[0])
        self.memory = torch.empty(num_rows, table.rows.shape[1], dtype=torch.int32, device=device)
        """int32 [N, W]: of any content where no row was asked for."""

    def rows(self, row_ids: Iterable[int]) -> Tensor:
        """int32 [N, W], in which these rows are as the table has them now."""
        self.write(named_on_device(self._device, self.parts(row_ids)))
        return self.memory

    def parts(self, row_ids: Iterable[int]) -> Parts:
        """What `write` needs for these rows: nothing, where all of them are here."""
        stamps, own = self._table.stamps, self._stamps
        stale = [row_id for row_id in set(row_ids) if own.get(row_id) != stamps[row_id]]
        self._unwritten = {row_id: stamps[row_id] for row_id in stale}
        if not stale:
            return {}
        words = self._table.rows[stale].view(np.int32)
        return {"stale_rows": (np.int64, stale), "stale_words": (np.int32, words.ravel())}

    def write(self, given: Mapping[str, Tensor]) -> None:
        """Copy the rows that `parts` found stale."""
        if "stale_rows" in given:
            self._reserve(max(self._unwritten) + 1)
            self.memory.index_copy_(0, given["stale_rows"], given["stale_words"].view(-1, self.memory.shape[1]))
            self._stamps |= self._unwritten

    def _reserve(self, num_rows: int) -> None:
        num_before = self.memory.shape[0]
        if num_rows > num_before:
            num_after = min(max(num_rows, 2 * num_before), self._table.rows.shape[0])
            larger = torch.empty(num_after, self.memory.shape[1], dtype=torch.int32, device=self._device)
            larger[:num_before] = self.memory
            self.memory = larger
