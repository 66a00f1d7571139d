"""The one arena: a block's bytes hold its tokens' keys and values for every layer of every model.

    arena  [num_blocks, bytes_per_block] uint8
    block  [target: layer, key|value, token, head, head size | draft: the same | padding]

Each model sees its own part as a strided view; one block id means the same tokens to all of them. N blocks, S tokens
a block, L layers, H key-value heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

_ALIGNMENT_BYTES = 64


class KVShape(msgspec.Struct, frozen=True):
    """What one model keeps for one token."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * self.dtype.itemsize


class KVCache:
    """One model's view of the arena: `layers[i]` is (keys, values), each [N, S, H, D], strided by whole blocks."""

    __slots__ = ("block_size", "layers")

    def __init__(self, layers: list[tuple[Tensor, Tensor]], block_size: int) -> None:
        self.layers = layers
        self.block_size = block_size


def bytes_per_block(shapes: Sequence[KVShape], block_size: int) -> int:
    """Bytes of one block that serves all the models."""
    return sum(_aligned(shape.bytes_per_token * block_size) for shape in shapes)


def allocate_arena(
    shapes: Sequence[KVShape], *, num_blocks: int, block_size: int, device: torch.device
) -> list[KVCache]:
    """One allocation, and a view of it for each model, in the order of `shapes`."""
    block_bytes = bytes_per_block(shapes, block_size)
    # Zeroed, not empty: a masked-out key of garbage could be a NaN, and NaN times a zero weight is a NaN.
    arena = torch.zeros(num_blocks * block_bytes, dtype=torch.uint8, device=device)
    caches = []
    offset_bytes = 0
    for shape in shapes:
        caches.append(_view(arena, shape, num_blocks, block_size, block_bytes, offset_bytes))
        offset_bytes += _aligned(shape.bytes_per_token * block_size)
    return caches


def _view(
    arena: Tensor, shape: KVShape, num_blocks: int, block_size: int, block_bytes: int, offset_bytes: int
) -> KVCache:
    itemsize = shape.dtype.itemsize
    token_stride = shape.num_kv_heads * shape.head_size
    part_stride = block_size * token_stride
    view = arena.view(shape.dtype).as_strided(
        (num_blocks, shape.num_layers, 2, block_size, shape.num_kv_heads, shape.head_size),
        (block_bytes // itemsize, 2 * part_stride, part_stride, token_stride, shape.head_size, 1),
        offset_bytes // itemsize,
    )
    return KVCache([(view[:, layer, 0], view[:, layer, 1]) for layer in range(shape.num_layers)], block_size)


def _aligned(num_bytes: int) -> int:
    return math.ceil(num_bytes / _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
