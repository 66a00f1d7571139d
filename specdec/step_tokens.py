"""StepTokens: over how many tokens the engine's steps were, as a histogram."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import msgspec

STEP_TOKEN_BOUNDS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds of the histogram's buckets, themselves included; one more bucket holds what is above the last."""


class StepTokenStats(msgspec.Struct, frozen=True):
    """The histogram at one time."""

    num_steps: tuple[int, ...] = (0,) * (len(STEP_TOKEN_BOUNDS) + 1)
    """By bucket."""
    num_tokens: int = 0
    """Of all steps."""


class StepTokens:
    """The histogram while it grows."""

    __slots__ = ("_num_steps", "_num_tokens")

    def __init__(self) -> None:
        self._num_steps = [0] * (len(STEP_TOKEN_BOUNDS) + 1)
        self._num_tokens = 0

    def record(self, num_tokens: int) -> None:
        """One step."""
        self._num_steps[bisect_left(STEP_TOKEN_BOUNDS, num_tokens)] += 1
        self._num_tokens += num_tokens

    def freeze(self) -> StepTokenStats:
        return StepTokenStats(tuple(self._num_steps), self._num_tokens)
