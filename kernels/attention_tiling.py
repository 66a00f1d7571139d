"""AttentionTiling: how the work of paged_attention is cut into programs, and how a program goes about it.

T packed queries, H_q query heads over H KV heads, G = H_q / H, D head size.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import torch

_MIN_TILE_ROWS: Final = 16
_MIN_TILE_KEYS: Final = 16
"""Fewer are not a matrix product that the hardware has. For fp32 it has none: the product is one of registers, which
larger tiles run out of (6 KB a thread spilled for sm_90 at 64 rows and 32 keys of 128)."""
_MAX_TILE_ROWS: Final = 128
_MAX_TILE_KEYS: Final = 64
_TILE_BYTES: Final = 2**15
"""Of a tile's queries; its keys take half, its values as much again, or twice that. With two stages these are kept
once: the next ones are loaded when the last have been multiplied, and other programs work meanwhile."""
_FEW_ROWS: Final = 32
"""So many rows, those of a few drafts, take twice the keys: at 64 contexts of 4,096 tokens 265 us on an H200, not 355.
"""
_FP8_STAGES: Final = 3
"""For the next ones to be on their way while these become numbers, and few rows take twice the keys as well: 64 tokens
after 4,096 take 195 us on an H200, and with 64 keys 264."""
_PROGRAMS_EACH: Final = 2
"""Of a processor, into as many of which few contexts are split; twice as many of the least rows: 16 tokens after 1,100
take 18.1 us on an H200, with heads of 64, and 19.8 with as many; 16 drafts of 4 42 us, and 47 with twice as many."""
MERGED_AT_ONCE: Final = 32
"""Splits whose results are on their way together where they are merged. One token after 4,096 took 18 us in 33 splits
of an H200, and 22 in 64."""
_MIN_SPLIT_KEYS: Final = 64
"""Of less work than this, or a tile, merging is too large a part. A kernel is compiled for each number there is."""

NUMBERS_OF_WARPS: Final = (1, 2, 4, 8, 16, 32)


class AttentionTiling(NamedTuple):
    """Results of one tiling are the same bits in any batch, unless max_splits is given."""

    tile_rows: int
    """Queries times G in a tile: a power of two, 16 or more, and no less than G."""
    tile_keys: int
    """Keys looked at in one go: a power of two, 16 or more."""
    split_keys: int | None = None
    """Keys for which one program is responsible, a multiple of tile_keys; None is all."""
    max_splits: int | None = None
    """Into how many splits a context is cut at most: in a longer one each has more keys than split_keys. The work is
    then spread over as many programs in every context, of which a grid for all of them needs no more; None is no bound.
    """
    num_stages: int = 2
    """In how many stages a tile of keys and values is dealt with. With two a tile is loaded when the last one has been
    multiplied, while other programs work; with three or four its block ids come earlier, and with five it does itself,
    in shared memory of its own, which pays where there is room for no other program."""
    num_warps: int | None = None
    """Of a program: a power of two, up to 32; None is 4: on an H200 8,192 tokens of a Llama 3 prompt, in tiles of 128
    rows, take 1.54 ms with 4 and 1.74 with 8."""


def choose_tiling(
    query: torch.Tensor,
    *,
    num_kv_heads: int,
    num_sequences: int,
    max_num_queries: int,
    max_context_len: int,
    is_fp8: bool = False,
) -> AttentionTiling:
    """For query [T, H_q, D]: tiles as large as the queries fill, split where they alone would not occupy the chip.

    is_fp8: that is what keys and values are kept in.
    """
    num_tokens, num_heads, head_size = query.shape
    num_groups = num_heads // num_kv_heads
    row_bytes = max(16, power_of_2_from(head_size)) * query.dtype.itemsize
    most_rows = min(_MAX_TILE_ROWS, _TILE_BYTES // row_bytes)
    if query.dtype == torch.float32:
        most_rows = _MIN_TILE_ROWS
    least_rows = max(_MIN_TILE_ROWS, power_of_2_from(num_groups))
    tile_rows = max(least_rows, min(most_rows, power_of_2_from(max_num_queries * num_groups)))
    most_keys = _MIN_TILE_KEYS if query.dtype == torch.float32 else _MAX_TILE_KEYS
    tile_keys = max(_MIN_TILE_KEYS, min(most_keys, _TILE_BYTES // 2 // row_bytes))
    num_stages = _FP8_STAGES if is_fp8 else 2
    if query.dtype != torch.float32 and (tile_rows == _FEW_ROWS or (is_fp8 and tile_rows < _FEW_ROWS)):
        tile_keys = max(tile_keys, min(2 * most_keys, _TILE_BYTES // row_bytes))
    tile_queries = tile_rows // num_groups
    num_tiles = min(
        num_tokens // tile_queries + num_sequences, -(-max_num_queries // tile_queries) * num_sequences, num_tokens
    )
    num_programs, num_unsplit = _PROGRAMS_EACH * _num_processors(query.device), num_tiles * num_kv_heads
    num_splits = num_programs // num_unsplit
    if tile_rows == _MIN_TILE_ROWS:
        num_splits = max(num_splits, min(2 * num_programs // num_unsplit, MERGED_AT_ONCE))
    if num_splits > MERGED_AT_ONCE:
        num_splits -= num_splits % MERGED_AT_ONCE
    split_keys = max(_MIN_SPLIT_KEYS, tile_keys)
    if num_splits < 2 or max_context_len < 2 * split_keys:
        return AttentionTiling(tile_rows, tile_keys, num_stages=num_stages)
    return AttentionTiling(
        tile_rows, tile_keys, split_keys, min(num_splits, -(-max_context_len // split_keys)), num_stages=num_stages
    )


def check_tiling(tiling: AttentionTiling, num_groups: int) -> None:
    """Raises ValueError for numbers that are none of a tiling, at G query heads a KV head."""
    for name, number, least in (
        ("tile_rows", tiling.tile_rows, max(_MIN_TILE_ROWS, num_groups)),
        ("tile_keys", tiling.tile_keys, _MIN_TILE_KEYS),
    ):
        if number < least or number != power_of_2_from(number):
            raise ValueError(f"{name} is {number}; it must be a power of two, {least} or more")
    if tiling.split_keys is not None and (tiling.split_keys < 1 or tiling.split_keys % tiling.tile_keys):
        raise ValueError(f"split_keys is {tiling.split_keys}; it must be a multiple of tile_keys, {tiling.tile_keys}")
    if tiling.max_splits is not None and (tiling.split_keys is None or tiling.max_splits < 1):
        raise ValueError(f"max_splits is {tiling.max_splits}; it must be 1 or more, and goes with split_keys")
    if tiling.num_stages < 1:
        raise ValueError(f"num_stages is {tiling.num_stages}; it must be 1 or more")
    if tiling.num_warps is not None and tiling.num_warps not in NUMBERS_OF_WARPS:
        raise ValueError(f"num_warps is {tiling.num_warps}; it must be a power of two, up to 32, or None")


def power_of_2_from(number: int) -> int:
    """The least that is no less than a number above 0."""
    return 1 << (number - 1).bit_length()


@functools.cache
def _num_processors(device: torch.device) -> int:
    """Of a GPU; one for the interpreter, which has no use for splits."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
