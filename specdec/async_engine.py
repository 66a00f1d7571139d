"""AsyncEngine: the one engine thread, and the asyncio streams it feeds.

Three places touch a request; only the mailboxes between them are shared:

    event loop      registers the request, reads its stream, closes it          (`AsyncEngine`, `DeltaStream`)
    prepare pool    checks lengths and compiles the constraint                  (`Engine.prepare`)
    engine thread   adds, steps, aborts; sends the loop one batch per step      (`_EngineThread`)

The loop's commands reach the engine thread in order, and a delta travels with the stream it is for. So an id
can be used again as soon as its stream is closed: what was on its way to the old stream ends there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from specdec.delta_stream import DeltaObserver, DeltaStream
from specdec.engine_handle import EngineHandle
from specdec.errors import SpecdecError
from specdec.fair_threads import FairThreads
from specdec.request import Request, TokenDelta
from specdec.stats import EngineStats

if TYPE_CHECKING:
    from specdec.admission import PreparedRequest
    from specdec.config import EngineConfig
    from specdec.description import EngineDescription
    from specdec.engine import Engine
    from specdec.grammars import Interest
    from specdec.models.progress import ProgressCallback
    from specdec.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

NUM_PREPARE_THREADS = 2
NUM_COMPILE_THREADS = 64
"""They wait for the processes that compile (grammars/compile_pool.py), and one another's results."""
STATS_INTERVAL_S = 0.05
"""Oldest that a snapshot of a busy engine gets; an engine that goes idle publishes one at once."""
JOIN_TIMEOUT_S = 30.0
"""How long close() waits for the step in progress before it leaves the thread behind."""


class AsyncEngine(EngineHandle):
    """An Engine on a thread of its own."""

    def __init__(self, engine: Engine, *, on_stats: Callable[[EngineStats], None] | None = None) -> None:
        """`on_stats` is given every snapshot, on the event loop."""
        super().__init__()
        self._engine = engine
        self._on_stats = on_stats
        self._thread: _EngineThread | None = None
        # Apart, so that a slow schema holds up nobody who brought none.
        self._prepare_pool = ThreadPoolExecutor(NUM_PREPARE_THREADS, thread_name_prefix="specdec-prepare")
        self._compile_threads = FairThreads(NUM_COMPILE_THREADS, name="specdec-compile")

    @classmethod
    def from_config(cls, config: EngineConfig, *, progress: ProgressCallback | None = None) -> Self:
        """Load the model (slow: not on an event loop that has anything else to do)."""
        from specdec.engine import Engine  # noqa: PLC0415, torch is loaded only where a model is

        return cls(Engine(config, progress=progress))

    async def start(self) -> None:
        if self._thread is None and self._end is None:
            self._thread = _EngineThread(self._engine, asyncio.get_running_loop(), self._die, self._on_stats)
            self._thread.start()

    async def close(self, grace_s: float = 0.0) -> None:
        await self._refuse_and_drain(grace_s)
        self._prepare_pool.shutdown(wait=False)
        self._compile_threads.shutdown()
        if self._thread is not None:
            self._thread.stop()
            await asyncio.to_thread(self._thread.join, JOIN_TIMEOUT_S)
        await asyncio.to_thread(self._engine.close)

    async def submit(self, *requests: Request, observer: DeltaObserver | None = None) -> DeltaStream:
        stream = self.open(*requests, observer=observer)
        await self.begin(stream)
        return stream

    def open(self, *requests: Request, observer: DeltaObserver | None = None, is_read: bool = True) -> DeltaStream:
        """The first half of `submit`, which refuses an id in flight: a stream of requests that have not begun."""
        self._check_open(has_started=self._thread is not None)
        return self._streams.open(*requests, observer=observer, is_read=is_read)

    async def begin(self, stream: DeltaStream) -> None:
        """The second half: prepare and start its requests, or close it and raise."""
        try:
            prepared = await self._prepare(stream.requests, stream)
        except BaseException:
            stream.close()
            raise
        if stream.is_closed:
            return
        thread = self._thread
        assert thread is not None
        for request, ready in zip(stream.requests, prepared, strict=True):
            thread.add(ready, request, stream)

    @property
    def config(self) -> EngineConfig:
        return self._engine.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    @property
    def model_name(self) -> str:
        return self._engine.model_name

    @property
    def max_model_len(self) -> int:
        return self._engine.max_model_len

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and not self._dead.is_set() and self._thread.is_alive()

    @property
    def pid(self) -> int:
        return os.getpid()

    def describe(self) -> EngineDescription:
        return self._engine.describe()

    def busy_seconds(self) -> float:
        return 0.0 if self._thread is None else self._thread.busy_seconds()

    def stats(self) -> EngineStats:
        """The latest snapshot, at most STATS_INTERVAL_S and one step old; callable from any thread."""
        return EngineStats() if self._thread is None else self._thread.stats

    async def _prepare(self, requests: Sequence[Request], stream: DeltaStream) -> list[PreparedRequest]:
        constrained = any(request.constraint is not None for request in requests)
        from specdec.grammars import Interest  # noqa: PLC0415, the compiler is loaded only where an engine is

        caller = requests[0].caller
        interest = Interest(caller)
        work = functools.partial(_prepare_all, self._engine, requests, interest)
        if constrained:
            preparing = asyncio.wrap_future(self._compile_threads.submit(caller, work))
        else:
            preparing = asyncio.get_running_loop().run_in_executor(self._prepare_pool, work)
        # When the stream fails first, or the caller is cancelled, nobody else asks for its exception.
        preparing.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait((preparing, stream.failure), return_when=asyncio.FIRST_COMPLETED)
            if stream.failure.done():
                raise stream.failure.result()
            return await preparing
        finally:
            interest.leave()
            preparing.cancel()

    def _abort(self, stream: DeltaStream) -> None:
        if self._thread is not None:
            for request in stream.requests:
                self._thread.abort(request.request_id)


@dataclass(frozen=True, slots=True)
class _Add:
    prepared: PreparedRequest
    request: Request
    stream: DeltaStream


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


@dataclass(slots=True)
class _InFlight:
    stream: DeltaStream
    num_open_choices: int


class _EngineThread(threading.Thread):
    """Runs the engine; owns it, and what is in flight in it, from start to stop."""

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        on_death: Callable[[], None],
        on_stats: Callable[[EngineStats], None] | None,
    ) -> None:
        super().__init__(name="specdec-engine", daemon=True)
        self.stats = engine.stats()
        self._engine = engine
        self._loop = loop
        self._on_death = on_death
        self._on_stats = on_stats
        self._commands: queue.SimpleQueue[_Add | _Abort | _Stop] = queue.SimpleQueue()
        self._in_flight: dict[str, _InFlight] = {}
        self._outbox: list[tuple[DeltaStream, TokenDelta | SpecdecError]] = []
        self._outbox_lock = threading.Lock()
        self._stats_time = 0.0
        self._busy_since: float | None = None
        self._is_stopping = False

    def add(self, prepared: PreparedRequest, request: Request, stream: DeltaStream) -> None:
        """From the event loop: start a request."""
        self._commands.put(_Add(prepared, request, stream))

    def abort(self, request_id: str) -> None:
        """From the event loop: end a request, if it has not ended by itself."""
        self._commands.put(_Abort(request_id))

    def stop(self) -> None:
        """From the event loop: abort what runs and end the thread after the step in progress."""
        self._commands.put(_Stop())

    def busy_seconds(self) -> float:
        """Seconds since the thread last was idle or between two steps."""
        busy_since = self._busy_since
        return 0.0 if busy_since is None else time.monotonic() - busy_since

    def run(self) -> None:
        try:
            self._engine.warm_up_thread()
            while self._obey_commands():
                if self._engine.has_unfinished_requests():
                    self._send(self._addressed(self._engine.step()))
                self._publish_stats()
        except BaseException:
            logger.exception("the engine thread died")
            with contextlib.suppress(RuntimeError):  # the loop may be closed: then nobody is left to tell
                self._loop.call_soon_threadsafe(self._on_death)
        finally:
            self._busy_since = None

    def _obey_commands(self) -> bool:
        """Obey what has arrived, waiting for something when there is nothing to compute; False to stop."""
        self._busy_since = None
        if not self._engine.has_unfinished_requests():
            self._publish_stats(at_once=True)
            self._obey(self._commands.get())
        self._busy_since = time.monotonic()
        with contextlib.suppress(queue.Empty):
            while not self._is_stopping:
                self._obey(self._commands.get_nowait())
        return not self._is_stopping

    def _obey(self, command: _Add | _Abort | _Stop) -> None:
        match command:
            case _Add(prepared, request, stream):
                try:
                    self._engine.add_request(prepared)
                except SpecdecError as error:
                    self._send([(stream, error)])
                else:
                    self._in_flight[request.request_id] = _InFlight(stream, request.sampling_params.n)
            case _Abort(request_id):
                if self._in_flight.pop(request_id, None) is not None:
                    self._engine.abort_request(request_id)
            case _Stop():
                for request_id in self._in_flight:
                    self._engine.abort_request(request_id)
                self._publish_stats(at_once=True)
                self._is_stopping = True

    def _addressed(self, deltas: list[TokenDelta]) -> list[tuple[DeltaStream, TokenDelta | SpecdecError]]:
        addressed: list[tuple[DeltaStream, TokenDelta | SpecdecError]] = []
        for delta in deltas:
            in_flight = self._in_flight.get(delta.request_id)
            if in_flight is None:
                continue
            addressed.append((in_flight.stream, delta))
            if delta.finish_reason is not None:
                in_flight.num_open_choices -= 1
                if not in_flight.num_open_choices:
                    del self._in_flight[delta.request_id]
        return addressed

    def _send(self, mail: list[tuple[DeltaStream, TokenDelta | SpecdecError]]) -> None:
        if not mail:
            return
        with self._outbox_lock:
            is_first = not self._outbox
            self._outbox += mail
        if is_first:  # otherwise the loop has yet to collect the last batch, and finds this one with it
            self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        """On the event loop: hand out what the thread has sent."""
        with self._outbox_lock:
            mail, self._outbox = self._outbox, []
        for stream, content in mail:
            if isinstance(content, TokenDelta):
                stream.push(content)
            else:
                stream.fail(content)

    def _publish_stats(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._stats_time >= STATS_INTERVAL_S:
            self.stats = self._engine.stats()
            self._stats_time = now
            if self._on_stats is not None:
                self._loop.call_soon_threadsafe(self._on_stats, self.stats)


def _prepare_all(engine: Engine, requests: Sequence[Request], interest: Interest) -> list[PreparedRequest]:
    return [engine.prepare(request, interest) for request in requests]
