"""Latencies: how long requests and the steps of their streams took, and which of them kept an objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

OBJECTIVES: Final = ("ttft", "tpot", "e2el")
"""Names that an objective may have, vLLM's: to the first token, per token after it, and to the end."""


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """In milliseconds. Percentiles interpolate between neighbours, as those of other load generators do."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float
    count: int

    @classmethod
    def of_seconds(cls, values: Sequence[float] | NDArray[np.float64]) -> Latencies | None:
        """None without values."""
        if not len(values):
            return None
        milliseconds = 1e3 * np.asarray(values, dtype=np.float64)
        p50, p90, p99 = (float(value) for value in np.percentile(milliseconds, (50, 90, 99)))
        return cls(
            mean=float(milliseconds.mean()),
            p50=p50,
            p90=p90,
            p99=p99,
            max=float(milliseconds.max()),
            count=len(milliseconds),
        )


def token_gaps(times: Sequence[float], num_tokens: Sequence[int]) -> NDArray[np.float64]:
    """Seconds a token: the gap before each chunk but the first, shared out among the tokens that the chunk brought.

    `times` are the arrivals of the chunks, `num_tokens` what each brought, 0 for one that completed no token.
    """
    gaps = np.diff(np.asarray(times, dtype=np.float64))
    counts = np.asarray(num_tokens[1:], dtype=np.int64)
    has_tokens = counts > 0
    if not has_tokens.any():
        return np.zeros(0)
    # The time of a chunk without a token is part of the wait for the next one's.
    at = np.concatenate(([times[0]], np.asarray(times[1:], dtype=np.float64)[has_tokens]))
    counts = counts[has_tokens]
    gaps = np.diff(at)
    return np.repeat(gaps / counts, counts)


def parse_objectives(texts: Sequence[str]) -> dict[str, float]:
    """`ttft:500 tpot:100` as seconds by name, from one text or several. Raises ValueError."""
    objectives: dict[str, float] = {}
    for part in " ".join(texts).replace(",", " ").split():
        name, _, value = part.partition(":")
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = -1.0
        if name not in OBJECTIVES or not 0 <= milliseconds < float("inf"):
            raise ValueError(f"{part!r} is no objective; expected {', '.join(OBJECTIVES)} with milliseconds: ttft:500")
        if name in objectives:
            raise ValueError(f"{name} is given twice")
        objectives[name] = milliseconds / 1e3
    return objectives


def keeps(objectives: Mapping[str, float], latencies: Mapping[str, float | None]) -> bool:
    """Whether a request's seconds are all within their objectives; one that it has no value for, it cannot miss."""
    return all((value := latencies[name]) is None or value <= limit for name, limit in objectives.items())
