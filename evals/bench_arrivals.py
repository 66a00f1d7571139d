"""LoadPoint: how many requests are sent, and when: as fast as others end, or at random times of a given rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np


class LoadPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a sweep. With a limit to the concurrency, a request that is due waits for another to end."""

    concurrency: int | None
    """Requests in flight at once; None sets no limit."""
    request_rate: float
    """A second, on average; infinity sends each as soon as the limit allows."""
    burstiness: float = 1.0
    """Shape of the gamma law of the gaps: 1 is a Poisson process, less comes in bursts, more evenly."""
    num_requests: int | None = None
    duration_s: float | None = None
    """Nothing is sent after it; what is in flight ends."""

    @property
    def label(self) -> str:
        parts = []
        if self.concurrency is not None:
            parts.append(f"concurrency {self.concurrency}")
        if self.concurrency is None or math.isfinite(self.request_rate):
            parts.append("all at once" if math.isinf(self.request_rate) else f"{self.request_rate:g} requests/s")
        return ", ".join(parts)


def sweep(
    concurrencies: Sequence[int],
    rates: Sequence[float],
    *,
    burstiness: float,
    num_requests: int | None,
    duration_s: float | None,
) -> list[LoadPoint]:
    """Every rate at every limit; no limits are no limit, no rates an infinite one."""
    limits: Sequence[int | None] = concurrencies or [None]
    return [
        LoadPoint(
            concurrency=concurrency,
            request_rate=rate,
            burstiness=burstiness,
            num_requests=num_requests,
            duration_s=duration_s,
        )
        for concurrency in limits
        for rate in (rates or [math.inf])
    ]


def arrival_offsets(point: LoadPoint, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due, in order; endless where only a duration ends the point."""
    chance = np.random.default_rng(seed)
    offset, num_sent = 0.0, 0
    while point.num_requests is None or num_sent < point.num_requests:
        if point.duration_s is not None and offset >= point.duration_s:
            return
        yield offset
        num_sent += 1
        if math.isfinite(point.request_rate):
            offset += chance.gamma(point.burstiness, 1 / (point.request_rate * point.burstiness))
