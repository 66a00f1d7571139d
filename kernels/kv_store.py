"""KV store: write the keys and values of a step's tokens into their slots of the paged cache.

    key_cache[slot // block_size, slot % block_size]   = key[t]      with slot = slot_mapping[t]
    value_cache[slot // block_size, slot % block_size] = value[t]

T packed tokens, H KV heads, D head size. The caches are strided views into one arena that other layers, and
the draft model, share: the step from one block to the next is arbitrary, the tokens inside a block are
contiguous. Slots of one call are distinct and inside the cache: the block pool guarantees both. A token whose slot is
below 0 is nobody's and written nowhere: it only fills up the step of a captured graph.

A cache of fp8 holds key[t, h] / key_scale[h] and value[t, h] / value_scale[h], to the nearest, ties to even; what is
larger than any finite number of the format becomes its largest, a NaN stays one. The kernel makes the format's bits
from those of fp32, so that they are the same on devices that cannot convert to it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton


class _Fp8Format(NamedTuple):
    num_mantissa_bits: int
    exponent_bias: int


_FP8_FORMATS: Final = {torch.float8_e4m3fn: _Fp8Format(3, 7), torch.float8_e5m2: _Fp8Format(2, 15)}


def kv_store_reference(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
) -> None:
    """The specification, and the CPU path; arguments as in kv_store."""
    block_size = key_cache.shape[1]
    is_kept = slot_mapping >= 0
    if not is_kept.all():
        key, value, slot_mapping = key[is_kept], value[is_kept], slot_mapping[is_kept]
    block_ids, offsets = slot_mapping // block_size, slot_mapping % block_size
    for tensor, cache, scale in ((key, key_cache, key_scale), (value, value_cache, value_scale)):
        if scale is None:
            cache[block_ids, offsets] = tensor
        else:
            largest = torch.finfo(cache.dtype).max
            scaled = (tensor.float() / scale[:, None]).clamp(-largest, largest).to(cache.dtype)
            # Places are assigned as bytes: torch has no indexed assignment of fp8.
            cache.view(torch.uint8)[block_ids, offsets] = scaled.view(torch.uint8)


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def _fp8_bits(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        number, MANTISSA_BITS: tl.constexpr, EXPONENT_BIAS: tl.constexpr, LARGEST: tl.constexpr
    ):
        """fp32 to the bits of an fp8 format, as uint8."""
        bits = number.to(tl.int32, bitcast=True)
        magnitude = tl.abs(number)
        magnitude = tl.where(magnitude < LARGEST, magnitude, LARGEST)
        own = magnitude.to(tl.int32, bitcast=True)
        DROPPED: tl.constexpr = 23 - MANTISSA_BITS
        # Half a unit less one, and one more where the last kept bit is odd: ties go to even.
        normal = ((own + (1 << (DROPPED - 1)) - 1 + ((own >> DROPPED) & 1)) >> DROPPED) - (
            (127 - EXPONENT_BIAS) << MANTISSA_BITS
        )
        # Below the least normal number a unit is fixed; the sum with a number of that unit rounds to it.
        OFFSET: tl.constexpr = 2.0 ** (24 - EXPONENT_BIAS - MANTISSA_BITS)
        OFFSET_BITS: tl.constexpr = (151 - EXPONENT_BIAS - MANTISSA_BITS) << 23
        subnormal = (magnitude + OFFSET).to(tl.int32, bitcast=True) - OFFSET_BITS
        LEAST_NORMAL: tl.constexpr = 2.0 ** (1 - EXPONENT_BIAS)
        code = tl.where(magnitude < LEAST_NORMAL, subnormal, normal)
        code = tl.where(number == number, code, 0x7F)  # noqa: PLR0124  # a NaN is not itself
        return (code | ((bits >> 24) & 0x80)).to(tl.uint8)

    @triton.jit  # type: ignore[untyped-decorator]
    def _kv_store_kernel(  # type: ignore[no-untyped-def]
        key_ptr,
        value_ptr,
        key_cache_ptr,
        value_cache_ptr,
        slot_mapping_ptr,
        key_scale_ptr,
        value_scale_ptr,
        key_token_stride,
        value_token_stride,
        key_block_stride,
        value_block_stride,
        block_size,
        TOKEN_SIZE: tl.constexpr,
        HEAD_SIZE: tl.constexpr,
        TILE: tl.constexpr,
        IS_FP8: tl.constexpr,
        MANTISSA_BITS: tl.constexpr,
        EXPONENT_BIAS: tl.constexpr,
        LARGEST: tl.constexpr,
    ):
        """One program copies one token's H * D keys and values."""
        token = tl.program_id(0).to(tl.int64)
        slot = tl.load(slot_mapping_ptr + token).to(tl.int64)
        if slot < 0:
            return
        block_id, offset = slot // block_size, slot % block_size
        element = tl.arange(0, TILE)
        inside = element < TOKEN_SIZE

        # Both, before either is stored: the second would wait for the first.
        key = tl.load(key_ptr + token * key_token_stride + element, mask=inside)
        value = tl.load(value_ptr + token * value_token_stride + element, mask=inside)
        if IS_FP8:
            scale = tl.load(key_scale_ptr + element // HEAD_SIZE, mask=inside, other=1.0)
            key = _fp8_bits(tl.div_rn(key.to(tl.float32), scale), MANTISSA_BITS, EXPONENT_BIAS, LARGEST)
        key_slot = key_cache_ptr + block_id * key_block_stride + offset * TOKEN_SIZE
        tl.store(key_slot + element, key, mask=inside)

        if IS_FP8:
            scale = tl.load(value_scale_ptr + element // HEAD_SIZE, mask=inside, other=1.0)
            value = _fp8_bits(tl.div_rn(value.to(tl.float32), scale), MANTISSA_BITS, EXPONENT_BIAS, LARGEST)
        value_slot = value_cache_ptr + block_id * value_block_stride + offset * TOKEN_SIZE
        tl.store(value_slot + element, value, mask=inside)


def kv_store(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
) -> None:
    """Write key and value into the slots of the caches, in place.

    key, value: [T, H, D] float32, float16 or bfloat16 where the caches are fp8, heads and elements contiguous, any
    stride from token to token (views of one QKV product qualify). key_cache, value_cache: [num_blocks, block_size, H,
    D] of the same dtype, or of one fp8 dtype with scales, any stride from block to block. slot_mapping: [T] int64,
    below 0 for none. key_scale, value_scale: [H] float32, above 0, what a cached number of a head is to be multiplied
    by. Raises ValueError when shapes, dtypes, devices or strides are others.
    """
    _check(key, value, key_cache, value_cache, slot_mapping)
    _check_scales(key, key_cache, key_scale, value_scale)
    num_tokens, num_heads, head_size = key.shape
    if num_tokens == 0:
        return
    if not runs_in_triton(key):
        kv_store_reference(
            key, value, key_cache, value_cache, slot_mapping, key_scale=key_scale, value_scale=value_scale
        )
        return
    token_size = num_heads * head_size
    fp8_format = _FP8_FORMATS.get(key_cache.dtype)
    with torch.cuda.device_of(key):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _kv_store_kernel[(num_tokens,)](
            key,
            value,
            key_cache if fp8_format is None else key_cache.view(torch.uint8),
            value_cache if fp8_format is None else value_cache.view(torch.uint8),
            slot_mapping,
            key_scale,
            value_scale,
            key.stride(0),
            value.stride(0),
            key_cache.stride(0),
            value_cache.stride(0),
            key_cache.shape[1],
            TOKEN_SIZE=token_size,
            HEAD_SIZE=head_size,
            TILE=triton.next_power_of_2(token_size),
            IS_FP8=fp8_format is not None,
            MANTISSA_BITS=0 if fp8_format is None else fp8_format.num_mantissa_bits,
            EXPONENT_BIAS=0 if fp8_format is None else fp8_format.exponent_bias,
            LARGEST=0.0 if fp8_format is None else torch.finfo(key_cache.dtype).max,
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
    cache_dtype = key_cache.dtype if key_cache.dtype in _FP8_FORMATS else key.dtype
    for name, tensor in tensors.items():
        if tensor.dtype != (key.dtype if name == "value" else cache_dtype):
            raise ValueError(
                f"{name} is {tensor.dtype}, key is {key.dtype}; they must be one dtype, or both caches one of fp8"
            )
    for name, tensor in {**tensors, "slot_mapping": slot_mapping}.items():
        if tensor.device != key.device:
            raise ValueError(f"{name} is on {tensor.device}, key on {key.device}; they must be on one device")
    for name, tensor in {"key": key, **tensors}.items():
        if not _contiguous_from_axis_1(tensor):
            raise ValueError(f"{name} must be contiguous beyond its first axis; its strides are {tensor.stride()}")
    if slot_mapping.numel() > 1 and slot_mapping.stride(0) != 1:
        raise ValueError(f"slot_mapping must be contiguous; its stride is {slot_mapping.stride(0)}")


def _check_scales(
    key: torch.Tensor, key_cache: torch.Tensor, key_scale: torch.Tensor | None, value_scale: torch.Tensor | None
) -> None:
    is_fp8 = key_cache.dtype in _FP8_FORMATS
    if is_fp8 and key.dtype not in {torch.float32, torch.float16, torch.bfloat16}:
        raise ValueError(f"key must be float32, float16 or bfloat16 where the caches are fp8; it is {key.dtype}")
    for name, scale in {"key_scale": key_scale, "value_scale": value_scale}.items():
        if (scale is not None) != is_fp8:
            raise ValueError(f"{name} goes with caches of fp8, and they are {key_cache.dtype}; give both or neither")
        if scale is None:
            continue
        if scale.shape != key.shape[1:2] or scale.dtype != torch.float32 or not scale.is_contiguous():
            raise ValueError(
                f"{name} must be [{key.shape[1]}] float32, contiguous; it is {_shape(scale)} {scale.dtype}"
            )
        if scale.device != key.device:
            raise ValueError(f"{name} is on {scale.device}, key on {key.device}; they must be on one device")


def _contiguous_from_axis_1(tensor: torch.Tensor) -> bool:
    return tensor.shape[0] == 0 or tensor[0].is_contiguous()


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape)
