"""Spread: a median with its range, for figures that vary from run to run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    median: float
    low: float
    """The smallest value; with few repeats no percentile says more."""
    high: float
    values: tuple[float, ...]
    """In the order measured."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError without values."""
        if not values:
            raise ValueError("a spread needs at least one value")
        return cls(median=statistics.median(values), low=min(values), high=max(values), values=tuple(values))

    def __str__(self) -> str:
        digits = 1 if self.median >= 10 else 2
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"
