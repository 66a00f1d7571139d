"""EngineHandle: what an event loop does with an engine, wherever that runs.

AsyncEngine      on a thread of this process        (async_engine.py)
EngineProcess    in a process of its own            (engine_process.py)
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from specdec.delta_stream import DeltaObserver, DeltaStream
from specdec.errors import EngineClosedError, EngineDeadError, EngineError
from specdec.open_streams import OpenStreams, again
from specdec.request import Request, TokenDelta
from specdec.stats import EngineStats

if TYPE_CHECKING:
    from specdec.config import EngineConfig
    from specdec.description import EngineDescription
    from specdec.tokenizer import Tokenizer


class EngineHandle(ABC):
    """Every method belongs to the event loop that called start(), unless it says otherwise."""

    def __init__(self) -> None:
        self._streams = OpenStreams(self._abort)
        self._dead = asyncio.Event()
        self._end: EngineError | None = None
        """Why nothing is accepted any more."""

    @abstractmethod
    async def start(self) -> None:
        """Serve from now on; idempotent."""

    @abstractmethod
    async def submit(self, *requests: Request, observer: DeltaObserver | None = None) -> DeltaStream:
        """Prepare the requests off the event loop and start them; all of them, or none.

        Raises RequestError for a request that cannot be served, EngineClosedError and EngineDeadError. The
        caller closes the stream, which aborts what still runs.
        """

    @abstractmethod
    async def close(self, grace_s: float = 0.0) -> None:
        """Accept nothing more, give what runs `grace_s` to finish, end the rest with EngineClosedError.

        Calling it again cuts the grace of an earlier call short.
        """

    @property
    @abstractmethod
    def config(self) -> EngineConfig:
        """What the engine was built from."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; safe on any thread."""

    @property
    @abstractmethod
    def model_name(self) -> str:
        """The model's name."""

    @property
    @abstractmethod
    def max_model_len(self) -> int:
        """Prompt and output tokens of one sequence."""

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Whether the engine runs: started, not dead, not closed."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Of the process that the engine runs in, whose children compile."""

    @abstractmethod
    def describe(self) -> EngineDescription:
        """What was built."""

    @abstractmethod
    def busy_seconds(self) -> float:
        """Seconds that the engine has been at its present step; 0 when idle."""

    @abstractmethod
    def stats(self) -> EngineStats:
        """The latest snapshot; callable from any thread."""

    @abstractmethod
    def _abort(self, stream: DeltaStream) -> None:
        """End the requests of a stream that nobody reads any more."""

    async def generate(self, request: Request) -> AsyncIterator[TokenDelta]:
        """The deltas of one request; closing or cancelling the iterator aborts it."""
        stream = await self.submit(request)
        try:
            async for delta in stream:
                yield delta
        finally:
            stream.close()

    @property
    def is_healthy(self) -> bool:
        """Whether the engine serves requests: alive and not shutting down."""
        return self.is_alive and self._end is None

    @property
    def num_in_flight(self) -> int:
        """Requests submitted and neither finished nor closed."""
        return len(self._streams)

    async def wait_dead(self) -> None:
        """Return once the engine has died."""
        await self._dead.wait()

    def _check_open(self, *, has_started: bool) -> None:
        if self._end is not None:
            raise again(self._end)
        if not has_started:
            raise EngineClosedError("the engine has not been started")

    async def _refuse_and_drain(self, grace_s: float) -> None:
        """The part of `close` that waits for what runs."""
        if self._end is None:
            self._end = EngineClosedError("the engine is shutting down and accepts no new requests")
        if self.is_alive:
            await self._streams.drain(grace_s)
        self._streams.fail_all(EngineClosedError("the engine was shut down before the request was finished"))

    def _die(self) -> None:
        self._end = EngineDeadError("the engine has died of an internal error; the server must be restarted")
        self._dead.set()
        self._streams.fail_all(self._end)
