"""Load: requests sent as a point of a sweep says, and what became of each."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import msgspec

from specdec.evals.bench_arrivals import LoadPoint, arrival_offsets
from specdec.evals.bench_exchange import Exchange, exchange
from specdec.evals.bench_traffic import Planned


@dataclass(slots=True)
class LoadRun:
    """What happened at one point."""

    seconds: float
    """From the first request to the end of the last."""
    exchanges: list[Exchange]
    lateness_s: list[float] = field(default_factory=list)
    """By how much requests of a finite rate left after they were due, without a limit that held them back."""
    processor_share: float = 0.0
    """Of the time, what this process computed; near 1 it measures itself, not the server."""


class Load:
    """Sends requests to one server; budgets that it has named as too small for a schema are raised for good."""

    def __init__(self, client: httpx.AsyncClient, path: str, *, is_specdec: bool) -> None:
        self._client = client
        self._path = path
        self._is_specdec = is_specdec
        self._minimum_tokens: dict[str, int] = {}

    async def run(
        self, point: LoadPoint, requests: Iterator[Planned], *, seed: int, on_end: Callable[[], None]
    ) -> LoadRun:
        """Send the requests of the point in turn."""
        start, processor_start = time.perf_counter(), time.process_time()
        run = LoadRun(seconds=0.0, exchanges=[])
        if math.isinf(point.request_rate) and point.concurrency is not None:
            await self._send_by_ends(point, requests, run, on_end)
        else:
            await self._send_by_times(point, requests, run, seed, on_end)
        run.seconds = time.perf_counter() - start
        run.processor_share = (time.process_time() - processor_start) / run.seconds
        return run

    async def ask(self, planned: Planned) -> Exchange:
        """One request; with the smallest budget that its schema takes where the one that it has is below."""
        minimum = self._minimum_tokens.get(planned.task.name) if planned.is_constrained else None
        if minimum is not None and minimum > planned.body["max_tokens"]:
            planned = _with_max_tokens(planned, minimum)
        asked = await exchange(self._client, planned, self._path, is_specdec=self._is_specdec)
        if asked.minimum_tokens is None or asked.minimum_tokens <= planned.body["max_tokens"]:
            return asked
        if planned.malformed is not None:
            return asked
        self._minimum_tokens[planned.task.name] = asked.minimum_tokens
        planned = _with_max_tokens(planned, asked.minimum_tokens)
        return await exchange(self._client, planned, self._path, is_specdec=self._is_specdec)

    async def _send_by_ends(
        self, point: LoadPoint, requests: Iterator[Planned], run: LoadRun, on_end: Callable[[], None]
    ) -> None:
        """As many clients as the limit says, each with its next request once its last has ended."""
        assert point.concurrency is not None, "a rate without limits is not paced by ends"
        start = time.perf_counter()
        num_sent = 0

        async def client() -> None:
            nonlocal num_sent
            while point.num_requests is None or num_sent < point.num_requests:
                if point.duration_s is not None and time.perf_counter() - start >= point.duration_s:
                    return
                num_sent += 1
                run.exchanges.append(await self.ask(next(requests)))
                on_end()

        async with asyncio.TaskGroup() as clients:
            for _ in range(min(point.concurrency, point.num_requests or point.concurrency)):
                clients.create_task(client())

    async def _send_by_times(
        self, point: LoadPoint, requests: Iterator[Planned], run: LoadRun, seed: int, on_end: Callable[[], None]
    ) -> None:
        start = time.perf_counter()
        free = asyncio.Semaphore(point.concurrency) if point.concurrency is not None else None

        async def send(planned: Planned) -> None:
            if free is None:
                run.exchanges.append(await self.ask(planned))
            else:
                async with free:
                    run.exchanges.append(await self.ask(planned))
            on_end()

        async with asyncio.TaskGroup() as sending:
            for offset in arrival_offsets(point, seed):
                late = time.perf_counter() - start - offset
                if late < 0:
                    await asyncio.sleep(-late)
                    late = time.perf_counter() - start - offset
                if math.isfinite(point.request_rate):
                    run.lateness_s.append(late)
                sending.create_task(send(next(requests)))


def _with_max_tokens(planned: Planned, max_tokens: int) -> Planned:
    return msgspec.structs.replace(planned, body={**planned.body, "max_tokens": max_tokens})
