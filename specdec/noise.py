"""The keys of noise: a pure function of (seed, choice index, position, stream).

Counter based, so a draw is the same whatever the batch, the draft length or the path to the position. A key is a
uniform number, or Gumbel noise for every token id (kernels/gumbel.py).
"""

from __future__ import annotations

import enum

_MASK_32 = 0xFFFFFFFF
_MASK_64 = 0xFFFFFFFFFFFFFFFF


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


def _mix_64(x: int) -> int:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014), with its increment."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)
