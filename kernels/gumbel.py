"""Gumbel noise of a key, one number a token id, with the same bits on every device.

    gumbel = -log(-log(u))        with u = (hash(key, token_id) >> 9 + 1/2) / 2 ** 23

An integer hash gives 23 uniform bits. The logarithm is ours: exponent and mantissa by bit operations, a fixed fp32
polynomial, products and sums as separate operations. A kernel that calls `gumbel_of` is launched with
enable_fp_fusion=False, which keeps them so.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from specdec.kernels.dispatch import TRITON_RUNS_HERE

_MASK_32: Final = 0xFFFFFFFF

# Coefficients of log(1 + f), f in [sqrt(1/2) - 1, sqrt(2) - 1]: Cephes logf, Moshier 1992.
_LOG_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
# log(2), split so that the product of the first part with an exponent is exact in fp32.
_LOG_2_HIGH = 0.693359375
_LOG_2_LOW = -2.12194440e-4
_SQRT_2 = 1.41421356237

_LOG_2 = 0.6931471805599453
# log(2 ** 23) - log(x) for x by its bits, with the exponent's bias of 127, and more than fp32 rounds off.
_BOUND_CEILING = 150.0 * _LOG_2 + 2.0**-10
_BOUND_PER_BIT = _LOG_2 * 2.0**-23

GUMBEL_RANGE = 19.5
"""Above the difference of the largest and the smallest value that `gumbel` takes: 16.64 - (-2.82)."""


def gumbel(key: tuple[int, int] | tuple[Tensor, Tensor], token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise for each token id: int64 [N] -> fp32 [N]; one key for all, or int64 [N] words each."""
    return gumbel_of_hash(_hash_32(key, token_ids))


def gumbel_of_hash(hashes: Tensor) -> Tensor:
    """Standard Gumbel noise of 32 random bits each: int64 [N] -> fp32 [N]."""
    uniforms = ((hashes >> 9).float() + 0.5) * 2.0**-23
    return -fixed_log(-fixed_log(uniforms))


def gumbel_bound_of_hash(hashes: Tensor) -> Tensor:
    """A number that the noise of 32 random bits each does not exceed, without a logarithm: int64 [N] -> fp32 [N].

    As -log(u) >= 1 - u, the noise is at most -log(1 - u). And log2(1 + m) >= m for a mantissa m, by 0.087 at most: a
    number's bits, read as an integer and scaled, are no more than its logarithm. The bound is close where the noise is
    high, 0.46 above its most frequent value, more where it is low.
    """
    complements = ((hashes >> 9) ^ 0x7FFFFF).float() + 0.5
    return _BOUND_CEILING - complements.view(torch.int32).float() * _BOUND_PER_BIT


def fixed_log(x: Tensor) -> Tensor:
    """Natural logarithm of positive normal fp32 values, the same bits on every device; relative error under 2e-7."""
    bits = x.view(torch.int32)
    exponent = ((bits >> 23) - 127).float()
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32)
    above = mantissa > _SQRT_2
    mantissa = torch.where(above, mantissa * 0.5, mantissa)
    exponent = torch.where(above, exponent + 1.0, exponent)
    f = mantissa - 1.0
    square = f * f
    y = torch.full_like(f, _LOG_POLYNOMIAL[0])
    for coefficient in _LOG_POLYNOMIAL[1:]:
        y = y * f
        y = y + coefficient
    y = y * f
    y = y * square
    y = y + exponent * _LOG_2_LOW
    y = y - square * 0.5
    return (f + y) + exponent * _LOG_2_HIGH


def _hash_32(key: tuple[int, int] | tuple[Tensor, Tensor], token_ids: Tensor) -> Tensor:
    """32 well mixed bits a token id, in int64: two rounds of a 32-bit finalizer, a key word added before each."""
    h = (token_ids * 0x9E3779B1 + key[0]) & _MASK_32
    h = _finalize_32(h, 0x85EBCA6B, 0xC2B2AE35)
    h = (h + key[1]) & _MASK_32
    return _finalize_32(h, 0x7FEB352D, 0x846CA68B)


def _finalize_32(h: Tensor, first: int, second: int) -> Tensor:
    h = h ^ (h >> 16)
    h = (h * first) & _MASK_32
    h = h ^ (h >> 15)
    h = (h * second) & _MASK_32
    return h ^ (h >> 16)


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    _POLYNOMIAL: Final = tl.constexpr(_LOG_POLYNOMIAL)
    _HIGH: Final = tl.constexpr(_LOG_2_HIGH)
    _LOW: Final = tl.constexpr(_LOG_2_LOW)
    _ROOT: Final = tl.constexpr(_SQRT_2)
    _CEILING: Final = tl.constexpr(_BOUND_CEILING)
    _PER_BIT: Final = tl.constexpr(_BOUND_PER_BIT)

    @triton.jit
    def gumbel_of(first_word, second_word, token_id):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """`gumbel`, in Triton: uint32 words of a key, and a tile of uint32 token ids -> a tile of fp32."""
        uniforms = ((hash_of(first_word, second_word, token_id) >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
        return -_fixed_log(-_fixed_log(uniforms))

    @triton.jit
    def hash_of(first_word, second_word, token_id):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """32 bits, from which `gumbel_of` makes its noise."""
        h = token_id * 0x9E3779B1 + first_word
        h = _finalized(h, 0x85EBCA6B, 0xC2B2AE35)
        h = h + second_word
        return _finalized(h, 0x7FEB352D, 0x846CA68B)

    @triton.jit
    def gumbel_bound_of(h):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """`gumbel_bound_of_hash`, in Triton: a tile of uint32 -> a tile of fp32."""
        complement = ((h >> 9) ^ 0x7FFFFF).to(tl.float32) + 0.5
        bits = complement.to(tl.int32, bitcast=True).to(tl.float32)
        return -(bits * _PER_BIT) + _CEILING

    @triton.jit  # type: ignore[untyped-decorator]
    def _finalized(h, FIRST: tl.constexpr, SECOND: tl.constexpr):  # type: ignore[no-untyped-def]
        h = h ^ (h >> 16)
        h = h * FIRST
        h = h ^ (h >> 15)
        h = h * SECOND
        return h ^ (h >> 16)

    @triton.jit
    def _fixed_log(x):  # type: ignore[no-untyped-def]
        bits = x.to(tl.int32, bitcast=True)
        exponent = ((bits >> 23) - 127).to(tl.float32)
        mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
        above = mantissa > _ROOT
        mantissa = tl.where(above, mantissa * 0.5, mantissa)
        exponent = tl.where(above, exponent + 1.0, exponent)
        f = mantissa - 1.0
        square = f * f
        y = tl.zeros_like(f) + _POLYNOMIAL[0]
        for i in tl.static_range(1, 9):
            y = y * f
            y = y + _POLYNOMIAL[i]
        y = y * f
        y = y * square
        y = y + exponent * _LOW
        y = y - square * 0.5
        return (f + y) + exponent * _HIGH
