"""The timed loop: along one text, a mask before every token and before the end, then the token.

Two clock readings enclose each call and nothing else. They and the call of an empty method cost `loop_overhead`, which
is in every figure and subtracted from none. Python's cycle collector is off inside the loop and may run between texts;
reference counts free what they free.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from specdec.evals.mask_engine import MaskWalk

_NUM_OVERHEAD_CALLS = 20_001


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkTimes:
    """Nanoseconds, by position."""

    mask: NDArray[np.int64]
    advance: NDArray[np.int64]
    is_cold: NDArray[np.bool_] | None
    """Whether the mask was computed; None where the engine does not say."""


class RefusedTokenError(Exception):
    """The engine does not take the text."""

    def __init__(self, position: int) -> None:
        super().__init__(f"token {position} is not allowed")
        self.position = position


class DisagreeingMaskError(Exception):
    """A mask that allows what is then refused, or the reverse."""


def time_walk(walk: MaskWalk, token_ids: Sequence[int], *, may_be_narrow: bool = False) -> WalkTimes:
    """The last id is the end-of-sequence. Raises RefusedTokenError, DisagreeingMaskError.

    A mask that `may_be_narrow` may lack tokens that would be taken, and never has one that would not.
    """
    fill, advance, num_computed, words = walk.fill, walk.advance, walk.num_computed, walk.words
    mask, advances, computed = [], [], [num_computed()]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for position, token_id in enumerate(token_ids):
            begin = perf_counter_ns()
            fill()
            mask.append(perf_counter_ns() - begin)
            computed.append(num_computed())
            is_allowed = bool(int(words[token_id >> 5]) >> (token_id & 31) & 1)
            begin = perf_counter_ns()
            is_taken = advance(token_id)
            advances.append(perf_counter_ns() - begin)
            if is_taken and not is_allowed and may_be_narrow:
                raise RefusedTokenError(position)
            if is_taken != is_allowed:
                raise DisagreeingMaskError(
                    f"position {position}: the mask {'allows' if is_allowed else 'forbids'} token {token_id}, "
                    f"which is {'taken' if is_taken else 'refused'}"
                )
            if not is_taken:
                raise RefusedTokenError(position)
    finally:
        if was_enabled:
            gc.enable()
    counts = [each for each in computed if each is not None]
    return WalkTimes(
        mask=np.array(mask, np.int64),
        advance=np.array(advances, np.int64),
        is_cold=np.diff(counts) > 0 if len(counts) == len(computed) else None,
    )


def loop_overhead() -> float:
    """Median nanoseconds that the loop reads for a call that does nothing."""
    fill = _EmptyWalk().fill
    readings = []
    for _ in range(_NUM_OVERHEAD_CALLS):
        begin = perf_counter_ns()
        fill()
        readings.append(perf_counter_ns() - begin)
    return float(np.median(readings))


class _EmptyWalk:
    def fill(self) -> None:
        """Nothing."""
