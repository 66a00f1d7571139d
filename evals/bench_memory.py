"""MemoryWatch: what a server's processes hold in memory, second by second, and whether that grows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import psutil

INTERVAL_S: Final = 1.0
SETTLING_S: Final = 60.0
"""Pools fill and caches warm for so long; the slope is of what comes after."""
_MIN_SAMPLES: Final = 30

ResidentBytes = Callable[[], Awaitable[Mapping[str, float]]]
"""What is held now, by part; empty where that cannot be said at the moment."""


class PartUse(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory, in MB of 10^6 bytes; pages that processes share count for each of them."""

    first_mb: float
    last_mb: float
    peak_mb: float
    mb_per_minute: float | None
    """By least squares after the first minute; None for a run of less than a minute and a half."""


class MemoryUse(PartUse, frozen=True, kw_only=True):
    """All parts together, and each."""

    source: str
    """Who said so."""
    parts: dict[str, PartUse]
    num_samples: int


class MemoryWatch:
    """Samples once a second between the start and the end of `running`."""

    def __init__(self, resident_bytes: ResidentBytes, source: str) -> None:
        self._resident_bytes = resident_bytes
        self._source = source
        self._seconds: list[float] = []
        self._parts: list[Mapping[str, float]] = []
        self._start = time.monotonic()

    @classmethod
    def of_process(cls, pid: int) -> MemoryWatch:
        """Of a process of this machine and all its children. Raises ProcessLookupError where there is none."""
        try:
            process = psutil.Process(pid)
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(f"there is no process {pid}") from error

        async def resident_bytes() -> Mapping[str, float]:
            return await asyncio.to_thread(_family_bytes, process)

        return cls(resident_bytes, f"process {pid} and its children")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sample meanwhile."""
        await self._sample()
        sampling = asyncio.create_task(self._sample_on())
        try:
            yield
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
            await self._sample()

    def use(self) -> MemoryUse | None:
        """What was seen; None where nothing was."""
        if not self._parts:
            return None
        names = list(dict.fromkeys(name for each in self._parts for name in each))
        parts = {name: self._use([each.get(name, 0.0) for each in self._parts]) for name in names}
        total = self._use([sum(each.values()) for each in self._parts])
        return MemoryUse(
            **msgspec.structs.asdict(total), source=self._source, parts=parts, num_samples=len(self._parts)
        )

    def _use(self, num_bytes: Sequence[float]) -> PartUse:
        held_mb = [each / 1e6 for each in num_bytes]
        return PartUse(
            first_mb=held_mb[0],
            last_mb=held_mb[-1],
            peak_mb=max(held_mb),
            mb_per_minute=slope_per_minute(self._seconds, held_mb),
        )

    async def _sample_on(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self._sample()

    async def _sample(self) -> None:
        parts = await self._resident_bytes()
        if parts:
            self._seconds.append(time.monotonic() - self._start)
            self._parts.append(parts)


def _family_bytes(process: psutil.Process) -> Mapping[str, float]:
    """Nothing once the process has ended."""
    held: dict[str, float] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        held["process"] = process.memory_info().rss
        held["children"] = 0.0
        for child in process.children(recursive=True):
            # A child may end between the listing and the question.
            with contextlib.suppress(psutil.NoSuchProcess):
                held["children"] += child.memory_info().rss
    return held


def slope_per_minute(seconds: Sequence[float], values: Sequence[float], settling_s: float = SETTLING_S) -> float | None:
    """Of the least-squares line through what was seen after `settling_s`; None for fewer than thirty values."""
    at = np.asarray(seconds, dtype=np.float64)
    is_settled = at - at[:1] >= settling_s
    if is_settled.sum() < _MIN_SAMPLES:
        return None
    at, seen = at[is_settled], np.asarray(values, dtype=np.float64)[is_settled]
    at = at - at.mean()
    return float(60 * (at @ (seen - seen.mean())) / (at @ at))
