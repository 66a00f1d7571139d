"""FaultClients: clients that ask a server again and again, and what each of them saw when it was broken."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx
import msgspec

from specdec.evals.bench_events import EventParser
from specdec.evals.bench_traffic import PATHS

Kind = Literal["stream", "whole"]
FINISHED: Final = "finished"
LOST: Final = "connection lost"
NOT_CONNECTED: Final = "connection refused"
ARRIVAL_S: Final = 0.1
"""What was sent so long ago has reached its server."""
_RETRY_S: Final = 0.05
"""How long a client waits that was turned away, before it asks again."""


# Any: bodies and answers are JSON.
Body = dict[str, Any]


class _Error(msgspec.Struct, frozen=True):
    code: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    finish_reason: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    """A whole answer, a chunk of one, or an error."""

    choices: list[_Choice] = []
    error: _Error | None = None


@dataclass(slots=True)
class Seen:
    """One request as its client saw it. Times are those of `time.perf_counter`."""

    name: str
    kind: Kind
    sent_at: float
    outcome: str = ""
    """`finished`, `error frame CODE` in a stream, `STATUS CODE` of a refusal, or how the connection ended."""
    chunk_times: list[float] = field(default_factory=list)
    ended_at: float = 0.0

    def was_in_flight(self, moment: float) -> bool:
        """Whether the server had it at that moment; what was sent just before may have been on its way."""
        return self.sent_at <= moment - ARRIVAL_S and moment < self.ended_at

    def longest_gap_s(self, begin: float, end: float) -> float:
        """Between two chunks of that time; 0 for fewer."""
        times = [each for each in self.chunk_times if begin <= each <= end]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


class FaultClients:
    """Each of them asks for what `bodies` say next as soon as it has its answer."""

    def __init__(self, url: str, bodies: Iterator[tuple[str, Body]], num_clients: int, timeout_s: float) -> None:
        """`timeout_s` is how long a server may be silent; longer is a connection lost."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout_s)
        self._bodies = bodies
        self._num_clients = num_clients
        self._clients: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._is_asking = True
        self._in_flight: dict[int, Seen] = {}
        self.seen: list[Seen] = []
        """Requests that have ended, in that order."""

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask meanwhile; what is in flight at the end is given up."""
        self._clients = [asyncio.create_task(self._ask_on(number)) for number in range(self._num_clients)]
        try:
            yield
        finally:
            for client in self._clients:
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)
            await self._client.aclose()

    async def all_answered(self) -> None:
        """Return once every client reads an answer: of a stream the first chunk is there."""
        while len(self._in_flight) < self._num_clients or any(
            each.kind == "stream" and not each.chunk_times for each in self._in_flight.values()
        ):
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Ask for nothing more, and return once everything has ended."""
        self._is_asking = False
        await asyncio.gather(*self._clients)

    async def ask(self, name: str, body: Body) -> Seen:
        """One request, beside the others."""
        seen = Seen(name, "stream" if body.get("stream") else "whole", sent_at=time.perf_counter())
        await self._ask(seen, body)
        self.seen.append(seen)
        return seen

    async def _ask_on(self, number: int) -> None:
        while self._is_asking:
            name, body = next(self._bodies)
            seen = Seen(name, "stream" if body.get("stream") else "whole", sent_at=time.perf_counter())
            self._in_flight[number] = seen
            self._changed.set()
            await self._ask(seen, body)
            del self._in_flight[number]
            self.seen.append(seen)
            if seen.outcome != FINISHED:
                await asyncio.sleep(_RETRY_S)

    async def _ask(self, seen: Seen, body: Body) -> None:
        try:
            async with self._client.stream("POST", PATHS["chat"], json=body) as response:
                if response.status_code != httpx.codes.OK:
                    seen.outcome = f"status {response.status_code} {_code(await response.aread())}"
                elif seen.kind == "whole":
                    answer = msgspec.json.decode(await response.aread(), type=_Answer)
                    seen.outcome = FINISHED if answer.choices else "an answer without choices"
                else:
                    seen.outcome = await self._read_stream(response, seen)
        except httpx.ConnectError:
            seen.outcome = NOT_CONNECTED
        except (httpx.HTTPError, OSError, msgspec.DecodeError):
            seen.outcome = LOST
        seen.ended_at = time.perf_counter()

    async def _read_stream(self, response: httpx.Response, seen: Seen) -> str:
        parser, reason, error, is_done = EventParser(), None, None, False
        async for piece in response.aiter_bytes():
            for event in parser.feed(piece):
                if event.data == b"[DONE]":
                    is_done = True
                    continue
                chunk = msgspec.json.decode(event.data, type=_Answer)
                seen.chunk_times.append(time.perf_counter())
                self._changed.set()
                error = error or chunk.error
                for choice in chunk.choices:
                    reason = reason or choice.finish_reason
        if not is_done:
            return LOST
        if error is not None:
            return f"error frame {error.code}"
        return FINISHED if reason is not None else "a stream without finish_reason"


def _code(content: bytes) -> str:
    try:
        error = msgspec.json.decode(content, type=_Answer).error
    except msgspec.DecodeError:
        return "without an error object"
    return str(error.code) if error is not None else "without an error object"
