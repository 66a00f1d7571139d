"""RoPE (RoFormer, Su et al. 2021) in the half-split layout: rotate each head by its token's position, in place.

    heads[t, h] = heads[t, h] * cos[p] + roll(heads[t, h], D / 2) * signed_sin[p]        with p = positions[t]

T packed tokens, H heads, of queries and keys alike, D head size, P positions of the tables. Element d of a head is
paired with d + D / 2; the halves of a row of cos are equal, those of signed_sin are -sin and sin. Computed in fp32
and rounded once.
"""

from __future__ import annotations

from typing import Final

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton

_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
_TILE_ELEMENTS: Final = 1024
"""Of the first halves of the heads that one program rotates."""


def rope_reference(heads: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> None:
    """The specification, and the CPU path; arguments as in rope."""
    rolled = heads.float().roll(heads.shape[2] // 2, dims=2)
    heads.copy_(heads.float() * cos[positions].float() + rolled * signed_sin[positions].float())


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def _rope_kernel(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        heads_ptr,
        positions_ptr,
        cos_ptr,
        signed_sin_ptr,
        token_stride,
        num_heads,
        HALF_SIZE: tl.constexpr,
        TILE_HEADS: tl.constexpr,
        TILE: tl.constexpr,
    ):
        """One program rotates some heads of one token; of the tables it reads the half that says all."""
        token = tl.program_id(0).to(tl.int64)
        head = tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)
        element = tl.arange(0, TILE)
        is_element = element < HALF_SIZE
        inside = (head < num_heads)[:, None] & is_element[None, :]
        table_row = tl.load(positions_ptr + token).to(tl.int64) * (2 * HALF_SIZE)
        cos = tl.load(cos_ptr + table_row + element, mask=is_element, other=0.0).to(tl.float32)
        sin = tl.load(signed_sin_ptr + table_row + HALF_SIZE + element, mask=is_element, other=0.0).to(tl.float32)
        first_ptr = heads_ptr + token * token_stride + (head * (2 * HALF_SIZE))[:, None] + element[None, :]
        first = tl.load(first_ptr, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(first_ptr + HALF_SIZE, mask=inside, other=0.0).to(tl.float32)
        new_first = first * cos[None, :] - second * sin[None, :]
        new_second = second * cos[None, :] + first * sin[None, :]
        tl.store(first_ptr, new_first.to(heads_ptr.dtype.element_ty), mask=inside)
        tl.store(first_ptr + HALF_SIZE, new_second.to(heads_ptr.dtype.element_ty), mask=inside)


def rope(heads: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> None:
    """Rotate heads by their tokens' positions, in place.

    heads: [T, H, D] float32, float16 or bfloat16, heads and elements contiguous, any stride from token to token (the
    query and key heads of one QKV product qualify, both at once). positions: [T] int64, inside the tables, which is
    the caller's to know. cos, signed_sin: [P, 1, D], contiguous, of the heads' dtype or float32. Raises ValueError
    for other shapes, dtypes, devices or strides.
    """
    _check(heads, positions, cos, signed_sin)
    num_tokens, num_heads, head_size = heads.shape
    if heads.numel() == 0:
        return
    if not runs_in_triton(heads):
        rope_reference(heads, positions, cos, signed_sin)
        return
    tile = triton.next_power_of_2(head_size // 2)
    tile_heads = min(triton.next_power_of_2(num_heads), max(1, _TILE_ELEMENTS // tile))
    with torch.cuda.device_of(heads):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _rope_kernel[(num_tokens, triton.cdiv(num_heads, tile_heads))](
            heads,
            positions,
            cos,
            signed_sin,
            heads.stride(0),
            num_heads,
            HALF_SIZE=head_size // 2,
            TILE_HEADS=tile_heads,
            TILE=tile,
        )


def _check(heads: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> None:
    if heads.ndim != 3 or heads.dtype not in _DTYPES or heads.shape[2] % 2:
        raise ValueError(
            f"heads must be [T, H, D] float32, float16 or bfloat16 with an even D; "
            f"they are {list(heads.shape)} {heads.dtype}"
        )
    if positions.shape != heads.shape[:1] or positions.dtype != torch.int64:
        raise ValueError(
            f"positions must be [{heads.shape[0]}] int64; they are {list(positions.shape)} {positions.dtype}"
        )
    if cos.ndim != 3 or cos.shape[1:] != (1, heads.shape[2]) or signed_sin.shape != cos.shape:
        raise ValueError(
            f"cos and signed_sin must share one [P, 1, {heads.shape[2]}]; "
            f"they are {list(cos.shape)} and {list(signed_sin.shape)}"
        )
    if cos.dtype not in {heads.dtype, torch.float32} or signed_sin.dtype != cos.dtype:
        raise ValueError(
            f"cos and signed_sin must both be {heads.dtype} as heads or float32; "
            f"they are {cos.dtype} and {signed_sin.dtype}"
        )
    for name, tensor in {"positions": positions, "cos": cos, "signed_sin": signed_sin}.items():
        if tensor.device != heads.device:
            raise ValueError(f"{name} is on {tensor.device}, heads on {heads.device}; they must be on one device")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous; its strides are {tensor.stride()}")
    if heads.shape[0] > 0 and not heads[0].is_contiguous():
        raise ValueError(f"heads must be contiguous beyond their first axis; their strides are {heads.stride()}")
