"""Percentiles: how long most, nearly all and the slowest of many calls took."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """By nearest rank, so that each but the mean is a value that was measured."""

    p50: float
    p95: float
    p99: float
    max: float
    mean: float
    count: int

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Percentiles | None:
        """None without values."""
        if not len(values):
            return None
        ordered = np.sort(values)
        ranks = {name: float(ordered[math.ceil(share * len(ordered)) - 1]) for name, share in _SHARES.items()}
        return cls(
            **{name: round(value, 3) for name, value in ranks.items()},
            max=round(float(ordered[-1]), 3),
            mean=round(float(ordered.mean()), 3),
            count=len(ordered),
        )

    @classmethod
    def of_nanoseconds(cls, arrays: Iterable[NDArray[np.int64]]) -> Percentiles | None:
        """In microseconds, of all the arrays together."""
        found = list(arrays)
        return cls.of(np.concatenate(found) / 1000) if found else None


_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
