"""The keys of noise: a pure function of (seed, choice index, position, stream).

Counter based, so a draw is the same whatever the batch, the draft length or the path to the position. A key is a
uniform number, or Gumbel noise for every token id (kernels/gumbel.py).
"""

from __future__ import annotations

import enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MASK_32 = 0xFFFFFFFF
_MASK_64 = 0xFFFFFFFFFFFFFFFF
_INCREMENT: Final = 0x9E3779B97F4A7C15
_FIRST_FACTOR: Final = 0xBF58476D1CE4E5B9
_SECOND_FACTOR: Final = 0x94D049BB133111EB
_NUMBERS: Final = tuple(np.uint64(each) for each in (_INCREMENT, 30, _FIRST_FACTOR, 27, _SECOND_FACTOR, 31))
_FEW: Final = 8
"""Up to so many keys are sooner made one by one than by calls for all of them."""


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
    state = noise_state(seed, choice_index)
    for word in (position, int(stream)):
        state = _mix_64(state ^ (word & _MASK_64))
    if draft_start is not None:
        state = _mix_64(state ^ draft_start)
    return state & _MASK_32, state >> 32


def noise_state(seed: int, choice_index: int) -> int:
    """What the keys of all of a sequence's draws begin with: 64 bits."""
    return _mix_64(_mix_64(seed & _MASK_64) ^ (choice_index & _MASK_64))


def noise_keys(states: NDArray[np.uint64], positions: NDArray[np.int64], stream: Stream) -> NDArray[np.int64]:
    """[N, 2]: noise_key of each of N states and positions, [N] each."""
    if len(states) <= _FEW:
        word = int(stream)
        pairs = zip(states.tolist(), positions.tolist(), strict=True)
        mixed = np.array([_mix_64(_mix_64(state ^ position) ^ word) for state, position in pairs], "<u8")
    else:
        mixed = states ^ positions.view(np.uint64)
        _mix_each_64(mixed)
        mixed ^= np.uint64(stream)
        _mix_each_64(mixed)
    return mixed.astype("<u8", copy=False).view("<u4").reshape(-1, 2).astype(np.int64)


def uniform(key: tuple[int, int]) -> float:
    """One of the 2**52 midpoints between 0 and 1, neither of which it takes."""
    return ((key[1] << 20 | key[0] >> 12) + 0.5) * 2.0**-52


def _mix_64(x: int) -> int:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014), with its increment."""
    x = (x + _INCREMENT) & _MASK_64
    x = ((x ^ (x >> 30)) * _FIRST_FACTOR) & _MASK_64
    x = ((x ^ (x >> 27)) * _SECOND_FACTOR) & _MASK_64
    return x ^ (x >> 31)


def _mix_each_64(x: NDArray[np.uint64]) -> None:
    """_mix_64 of each, in place; sums and products of arrays wrap around."""
    increment, first_shift, first_factor, second_shift, second_factor, last_shift = _NUMBERS
    x += increment
    x ^= x >> first_shift
    x *= first_factor
    x ^= x >> second_shift
    x *= second_factor
    x ^= x >> last_shift
