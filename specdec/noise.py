"""Keyed noise: a pure function of (seed, choice index, position, stream) and, for Gumbel noise, the token id.

Counter based, so a draw is the same whatever the batch, the draft length or the path to the position. An integer hash
gives 23 uniform bits; the logarithm is ours (exponent and mantissa by bit operations, a fixed fp32 polynomial,
products and sums as separate operations, so nothing is fused), which makes the bits the same on every device.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor

_MASK_32 = 0xFFFFFFFF
_MASK_64 = 0xFFFFFFFFFFFFFFFF

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

GUMBEL_RANGE = 19.5
"""Above the difference of the largest and the smallest value that `gumbel` takes: 16.64 - (-2.82)."""


class Stream(enum.IntEnum):
    """What a draw is for; streams are independent of each other.

    A recovered token drawn with the noise of the draft token that it replaces would follow from that token's
    rejection, and no longer the target's law.
    """

    TOKEN = 0
    """A token of the target's own, and under coupled verification the draft's as well: sharing it couples them."""
    DRAFT = 1
    """A draft token for verification by its distribution."""
    ACCEPT = 2
    """Whether a draft token is accepted."""
    RECOVERED = 3
    """The token in a rejected one's place."""


def noise_key(
    seed: int, choice_index: int, position: int, stream: Stream, draft_start: int | None = None
) -> tuple[int, int]:
    """Two 32-bit words that key the noise of one draw.

    `draft_start`, the position of the draft's first token, sets apart the draws of drafts that overlap: block
    verification looks at all of a draft before it keeps some of it, so that what is not kept has had its noise seen.
    """
    state = _mix_64(seed & _MASK_64)
    for word in (choice_index, position, int(stream)):
        state = _mix_64(state ^ (word & _MASK_64))
    if draft_start is not None:
        state = _mix_64(state ^ draft_start)
    return state & _MASK_32, state >> 32


def uniform(key: tuple[int, int]) -> float:
    """One of the 2**52 midpoints between 0 and 1, neither of which it takes."""
    return ((key[1] << 20 | key[0] >> 12) + 0.5) * 2.0**-52


def gumbel(key: tuple[int, int] | tuple[Tensor, Tensor], token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise for each token id: int64 [N] -> fp32 [N]; one key for all, or int64 [N] words each."""
    uniforms = ((_hash_32(key, token_ids) >> 9).float() + 0.5) * 2.0**-23
    return -fixed_log(-fixed_log(uniforms))


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


def _mix_64(x: int) -> int:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014), with its increment."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)
