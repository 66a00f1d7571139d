"""RowGroup: rows of logits that one sequence has side by side; RowBatch: all of a pass, and numbers for each row.

R rows, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdec.device_tensors import Parts
from specdec.sampler import SamplingRow
from specdec.sequence import Sequence


class RowGroup(NamedTuple):
    """Where some rows of logits stand: each after one more of a sequence's draft tokens than the row before it."""

    sequence: Sequence
    draft_ids: AbstractSequence[int]
    """As many as precede the last row, at least."""
    mask_rows: AbstractSequence[int | None]
    """One a row: a row of the mask table, None only for a request without a constraint."""
    num_preceding: int = 0
    """Draft tokens before the first row."""

    @classmethod
    def of(cls, row: SamplingRow) -> RowGroup:
        return cls(row.sequence, row.preceding_draft_ids, (row.mask_row,), len(row.preceding_draft_ids))

    @property
    def num_drafts(self) -> int:
        """Draft tokens before the last row."""
        return self.num_preceding + len(self.mask_rows) - 1

    def rows(self) -> list[SamplingRow]:
        """One by one."""
        return [
            SamplingRow(self.sequence, self.draft_ids[: self.num_preceding + i], mask_row)
            for i, mask_row in enumerate(self.mask_rows)
        ]


@dataclass(slots=True)
class RowBatch:
    """The groups of a pass, one after the other."""

    groups: AbstractSequence[RowGroup]
    sizes: NDArray[np.int64] = field(init=False)
    """[G]"""
    starts: NDArray[np.int64] = field(init=False)
    """[G + 1]: each group's first row."""
    num_rows: int = field(init=False)
    max_num_rows: int = field(init=False)
    """Of a group."""

    def __post_init__(self) -> None:
        sizes = [len(group.mask_rows) for group in self.groups]
        starts = list(accumulate(sizes, initial=0))
        self.sizes, self.starts = np.array(sizes, np.int64), np.array(starts, np.int64)
        self.num_rows = starts[-1]
        self.max_num_rows = max(sizes, default=0)

    @property
    def is_single(self) -> bool:
        """Whether each group has one row, so that numbers of the groups are numbers of the rows."""
        return self.max_num_rows <= 1 and self.num_rows == len(self.groups)

    @property
    def max_num_preceding(self) -> int:
        """Draft tokens before any row."""
        return max(group.num_drafts for group in self.groups)

    def num_preceding(self) -> NDArray[np.int64]:
        """[R]: draft tokens before each row."""
        return self._ascending(self._of_groups("num_preceding"))

    def positions(self) -> NDArray[np.int64]:
        """[R]: of the token to draw at each row."""
        numbers = np.array([len(group.sequence.token_ids) + group.num_preceding for group in self.groups], np.int64)
        return numbers if self.is_single else self._ascending(numbers)

    def draft_starts(self) -> NDArray[np.int64]:
        """[R]: where the draft tokens of each row's group begin among those of all, `draft_parts`."""
        return np.repeat(_starts(self.sizes + self._of_groups("num_preceding"))[:-1], self.sizes)

    def group_ids(self) -> NDArray[np.int64]:
        """[R]: each row's group."""
        return np.repeat(np.arange(len(self.groups)), self.sizes)

    def mask_rows(self) -> list[int | None]:
        """One a row."""
        return list(chain.from_iterable(group.mask_rows for group in self.groups))

    def draft_parts(self) -> Parts:
        """`draft_ids`: those of each group, and 0 after them, where nothing is drafted."""
        if self.is_single and not any(group.num_preceding for group in self.groups):
            return {"draft_ids": (np.int64, np.zeros(self.num_rows, np.int64))}
        ids: list[int] = []
        for group in self.groups:
            ids += group.draft_ids[: group.num_drafts]
            ids.append(0)
        return {"draft_ids": (np.int64, ids)}

    def _of_groups(self, name: str) -> NDArray[np.int64]:
        return np.array([getattr(group, name) for group in self.groups], np.int64)

    def _ascending(self, firsts: NDArray[np.int64]) -> NDArray[np.int64]:
        """[R]: a group's number [G] at its first row, and 1 more at each row after that."""
        return np.arange(self.num_rows) + np.repeat(firsts - self.starts[:-1], self.sizes)


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    starts = np.zeros(len(sizes) + 1, np.int64)
    sizes.cumsum(out=starts[1:])
    return starts
