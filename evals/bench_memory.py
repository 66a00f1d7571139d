"""MemoryWatch: what a process and all its children hold in memory, second by second, and whether that grows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec
import numpy as np
import psutil

INTERVAL_S: Final = 1.0
SETTLING_S: Final = 60.0
"""Pools fill and caches warm for so long; the slope is of what comes after."""
_MIN_SAMPLES: Final = 30


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory, in MB of 10^6 bytes; pages that processes share count for each of them."""

    pid: int
    first_mb: float
    last_mb: float
    peak_mb: float
    mb_per_minute: float | None
    """By least squares after the first minute; None for a run of less than a minute and a half."""
    num_samples: int


class MemoryWatch:
    """Samples once a second, on a thread, between the start and the end of `running`."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError where there is no such process."""
        try:
            self._process = psutil.Process(pid)
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(f"there is no process {pid}") from error
        self._seconds: list[float] = []
        self._bytes: list[float] = []
        self._start = time.monotonic()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sample meanwhile."""
        await asyncio.to_thread(self._sample)
        sampling = asyncio.create_task(self._sample_on())
        try:
            yield
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
            await asyncio.to_thread(self._sample)

    def use(self) -> MemoryUse | None:
        """What was seen; None where the process was gone from the start."""
        if not self._bytes:
            return None
        return MemoryUse(
            pid=self._process.pid,
            first_mb=self._bytes[0] / 1e6,
            last_mb=self._bytes[-1] / 1e6,
            peak_mb=max(self._bytes) / 1e6,
            mb_per_minute=slope_per_minute(self._seconds, [each / 1e6 for each in self._bytes]),
            num_samples=len(self._bytes),
        )

    async def _sample_on(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await asyncio.to_thread(self._sample)

    def _sample(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            total = float(self._process.memory_info().rss)
            for child in self._process.children(recursive=True):
                # A child may end between the listing and the question.
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += child.memory_info().rss
            self._seconds.append(time.monotonic() - self._start)
            self._bytes.append(total)


def slope_per_minute(seconds: Sequence[float], values: Sequence[float], settling_s: float = SETTLING_S) -> float | None:
    """Of the least-squares line through what was seen after `settling_s`; None for fewer than thirty values."""
    at = np.asarray(seconds, dtype=np.float64)
    is_settled = at - at[:1] >= settling_s
    if is_settled.sum() < _MIN_SAMPLES:
        return None
    at, seen = at[is_settled], np.asarray(values, dtype=np.float64)[is_settled]
    at = at - at.mean()
    return float(60 * (at @ (seen - seen.mean())) / (at @ at))
