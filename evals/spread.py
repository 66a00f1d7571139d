"""Spread: a median with its range, for figures that vary from run to run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

_CONFIDENCE: Final = 0.95


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    median: float
    low: float
    """The smallest value; with few repeats no percentile says more."""
    high: float
    values: tuple[float, ...]
    """In the order measured."""
    interval: tuple[float, float] | None = None
    """Holds the median of all such values with a confidence of 95 %; None for fewer than six."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError without values."""
        if not values:
            raise ValueError("a spread needs at least one value")
        return cls(
            median=statistics.median(values),
            low=min(values),
            high=max(values),
            values=tuple(values),
            interval=median_interval(values),
        )

    def __str__(self) -> str:
        digits = 1 if self.median >= 10 else 2
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The tightest pair of order statistics that holds the median with 95 %, whatever the distribution.

    The median lies below the k-th smallest of n values iff fewer than k of them are below it: a binomial tail.
    """
    ordered = sorted(values)
    num_values = len(ordered)
    found, below = None, 0.0
    for k in range(num_values // 2):
        below += math.comb(num_values, k) / 2**num_values
        if 2 * below > 1 - _CONFIDENCE:
            break
        found = ordered[k], ordered[num_values - 1 - k]
    return found
