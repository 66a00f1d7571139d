"""Draft rows: a row of the target for each draft token and one more, sequence after sequence.

R rows, B sequences. Row i of a sequence stands after its first i draft tokens; `row_starts` says where its rows are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

_LEAST_TILE: Final = 128
"""Rows that there is room for at least: with less for short drafts a kernel would be compiled for each power of two."""


def tile_of_rows(max_num_rows: int) -> int:
    """A power of two of places, for the rows of any sequence."""
    return max(_LEAST_TILE, 1 << (max_num_rows - 1).bit_length())


def check_rows(
    row_starts: torch.Tensor,
    max_num_rows: int,
    *,
    of_rows: Mapping[str, torch.Tensor],
    of_sequences: Mapping[str, torch.Tensor],
    of_uniforms: Mapping[str, torch.Tensor] | None = None,
) -> int:
    """B. Raises ValueError unless all are contiguous, on one device and of the shapes and dtypes that they must be.

    row_starts is [B + 1] int32, each of of_rows [R] int64, of of_sequences [B] int32, of of_uniforms [R] float64.
    """
    if row_starts.ndim != 1 or row_starts.shape[0] < 1 or row_starts.dtype != torch.int32:
        raise ValueError(f"row_starts must be [B + 1] int32; it is {list(row_starts.shape)} {row_starts.dtype}")
    if max_num_rows < 1:
        raise ValueError(f"max_num_rows is {max_num_rows}; it must be 1 or more")
    num_rows = next(iter(of_rows.values())).shape[:1]
    expected = [
        *((name, tensor, num_rows, torch.int64) for name, tensor in of_rows.items()),
        *((name, tensor, (row_starts.shape[0] - 1,), torch.int32) for name, tensor in of_sequences.items()),
        *((name, tensor, num_rows, torch.float64) for name, tensor in (of_uniforms or {}).items()),
        ("row_starts", row_starts, row_starts.shape, torch.int32),
    ]
    for name, tensor, shape, dtype in expected:
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be {list(shape)} {dtype}, contiguous; "
                f"it is {list(tensor.shape)} {tensor.dtype}, strides {tensor.stride()}"
            )
        if tensor.device != row_starts.device:
            raise ValueError(
                f"{name} is on {tensor.device}, row_starts on {row_starts.device}; they must be on one device"
            )
    return row_starts.shape[0] - 1
