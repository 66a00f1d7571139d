"""KV store: write the keys and values of a step's tokens into their slots of the paged cache.

    key_cache[slot // block_size, slot % block_size]   = key[t]      with slot = slot_mapping[t]
    value_cache[slot // block_size, slot % block_size] = value[t]

T packed tokens, H KV heads, D head size. The caches are strided views into one arena that other layers, and
the draft model, share: the step from one block to the next is arbitrary, the tokens inside a block are
contiguous. Slots of one call are distinct and inside the cache: the block pool guarantees both.
"""

from __future__ import annotations

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton


def kv_store_reference(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """The specification, and the CPU path; arguments as in kv_store."""
    block_size = key_cache.shape[1]
    block_ids, offsets = slot_mapping // block_size, slot_mapping % block_size
    key_cache[block_ids, offsets] = key
    value_cache[block_ids, offsets] = value


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def _kv_store_kernel(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        key_ptr,
        value_ptr,
        key_cache_ptr,
        value_cache_ptr,
        slot_mapping_ptr,
        key_token_stride,
        value_token_stride,
        key_block_stride,
        value_block_stride,
        block_size,
        TOKEN_SIZE: tl.constexpr,
        TILE: tl.constexpr,
    ):
        """One program copies one token's H * D keys and values."""
        token = tl.program_id(0).to(tl.int64)
        slot = tl.load(slot_mapping_ptr + token).to(tl.int64)
        block_id, offset = slot // block_size, slot % block_size
        element = tl.arange(0, TILE)
        inside = element < TOKEN_SIZE

        key = tl.load(key_ptr + token * key_token_stride + element, mask=inside)
        key_slot = key_cache_ptr + block_id * key_block_stride + offset * TOKEN_SIZE
        tl.store(key_slot + element, key, mask=inside)

        value = tl.load(value_ptr + token * value_token_stride + element, mask=inside)
        value_slot = value_cache_ptr + block_id * value_block_stride + offset * TOKEN_SIZE
        tl.store(value_slot + element, value, mask=inside)


def kv_store(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Write key and value into the slots of the caches, in place.

    key, value: [T, H, D], heads and elements contiguous, any stride from token to token (views of one QKV
    product qualify). key_cache, value_cache: [num_blocks, block_size, H, D] of the same dtype, any stride
    from block to block. slot_mapping: [T] int64. Raises ValueError when shapes, dtypes, devices or strides
    are others.
    """
    _check(key, value, key_cache, value_cache, slot_mapping)
    num_tokens, num_heads, head_size = key.shape
    if num_tokens == 0:
        return
    if not runs_in_triton(key):
        kv_store_reference(key, value, key_cache, value_cache, slot_mapping)
        return
    token_size = num_heads * head_size
    with torch.cuda.device_of(key):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _kv_store_kernel[(num_tokens,)](
            key,
            value,
            key_cache,
            value_cache,
            slot_mapping,
            key.stride(0),
            value.stride(0),
            key_cache.stride(0),
            value_cache.stride(0),
            key_cache.shape[1],
            TOKEN_SIZE=token_size,
            TILE=triton.next_power_of_2(token_size),
        )


def _check(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    if key.ndim != 3 or value.shape != key.shape:
        raise ValueError(f"key and value must share one [T, H, D]; they are {_shape(key)} and {_shape(value)}")
    if key_cache.ndim != 4 or key_cache.shape[2:] != key.shape[1:] or value_cache.shape != key_cache.shape:
        raise ValueError(
            f"the caches must share one [num_blocks, block_size, {key.shape[1]}, {key.shape[2]}]; "
            f"they are {_shape(key_cache)} and {_shape(value_cache)}"
        )
    if slot_mapping.shape != key.shape[:1] or slot_mapping.dtype != torch.int64:
        raise ValueError(
            f"slot_mapping must be [{key.shape[0]}] int64; it is {_shape(slot_mapping)} {slot_mapping.dtype}"
        )
    tensors = {"value": value, "key_cache": key_cache, "value_cache": value_cache}
    for name, tensor in tensors.items():
        if tensor.dtype != key.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, key is {key.dtype}; they must be one dtype")
    for name, tensor in {**tensors, "slot_mapping": slot_mapping}.items():
        if tensor.device != key.device:
            raise ValueError(f"{name} is on {tensor.device}, key on {key.device}; they must be on one device")
    for name, tensor in {"key": key, **tensors}.items():
        if not _contiguous_from_axis_1(tensor):
            raise ValueError(f"{name} must be contiguous beyond its first axis; its strides are {tensor.stride()}")
    if slot_mapping.numel() > 1 and slot_mapping.stride(0) != 1:
        raise ValueError(f"slot_mapping must be contiguous; its stride is {slot_mapping.stride(0)}")


def _contiguous_from_axis_1(tensor: torch.Tensor) -> bool:
    return tensor.shape[0] == 0 or tensor[0].is_contiguous()


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape)
