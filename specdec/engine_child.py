"""The engine's process: an AsyncEngine behind a socket, for the EngineProcess that started it (engine_process.py).

It ends when it is told to, when its engine has died, and at once when the other end of the socket is gone. It ignores
the signals that a terminal or a supervisor sends to a whole group: the serving process drains, then says when to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from specdec.allocator import map_large_blocks, return_free_pages, share_one_arena
from specdec.async_engine import AsyncEngine
from specdec.delta_stream import DeltaStream, append_joined
from specdec.engine_messages import (
    Abort,
    Dispatch,
    Load,
    LoadFailed,
    Progress,
    Ready,
    Stop,
    Submit,
    decode_to_engine,
    encode,
    pack_failure,
)
from specdec.errors import EngineError, SpecdecError
from specdec.frames import FrameProtocol
from specdec.logs import configure_logging
from specdec.models.progress import ModelProgress, ProgressCallback
from specdec.request import TokenDelta
from specdec.stats import EngineStats

if TYPE_CHECKING:
    from specdec.engine import Engine

logger = logging.getLogger(__name__)

PULSE_S = 0.05
"""How often a busy engine says how long it has been at its step."""
IDLE_PULSE_S = 0.5
TRIM_INTERVAL_S = 0.5
"""How often the memory that steps have left free goes back to the system. The longer that takes, the more of the arena
each step's tensors have come by: after 2 s some 50 MB, and ever more as what stays parts it into smaller pieces."""
LAST_WORDS_S = 1.0
"""How long what is written last may wait to be read."""
_PR_SET_PDEATHSIG = 1


def main(fd: int, parent_pid: int | None) -> NoReturn:
    """Serve over the socket `fd`; with `parent_pid`, on Linux, the kernel ends this process with that one's thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    share_one_arena()
    map_large_blocks()
    if parent_pid is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(1)
    status = asyncio.run(_serve(socket.socket(fileno=fd)))
    # What else runs here waits for nobody, and tearing torch down takes its time.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)


async def _serve(connection: socket.socket) -> int:
    return await EngineChild(connection, _build, functools.partial(os._exit, 1)).run()


@dataclass(slots=True)
class _Submission:
    stream: DeltaStream
    beginning: asyncio.Task[None] | None = None


class EngineChild:
    """One end of a connection and the engine behind it."""

    def __init__(
        self,
        connection: socket.socket,
        build: Callable[[Load, ProgressCallback], Engine],
        on_orphaned: Callable[[], None],
    ) -> None:
        """`build` makes the engine, on a thread of its own; `on_orphaned` is called once the other end is gone."""
        self._connection = connection
        self._build = build
        self._load: asyncio.Future[Load] = asyncio.get_running_loop().create_future()
        self._stopped = asyncio.Event()
        self._protocol = FrameProtocol(self._obey, on_orphaned, self._flush)
        self._outbox = _Outbox()
        self._engine: AsyncEngine | None = None
        self._submissions: dict[int, _Submission] = {}
        self._is_flush_due = False
        self._last_sent = 0.0
        self._was_busy = False

    async def run(self) -> int:
        """Until the engine or the connection ends; the exit status."""
        try:
            return await self._run()
        finally:
            await self._protocol.close()

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: self._protocol, self._connection)
        load = await self._load
        try:
            engine = await asyncio.to_thread(self._build, load, functools.partial(self._report, loop))
        except BaseException as error:
            if not isinstance(error, SpecdecError):
                logger.exception("the engine could not be built")
            await self._say_last(encode(LoadFailed(pack_failure(error))))
            return 1
        self._engine = AsyncEngine(engine, on_stats=self._note_stats)
        await self._engine.start()
        ready = Ready(engine.describe(), str(engine.model_folder), engine.stats())
        self._protocol.send(encode(ready))
        return await self._serve(self._engine)

    async def _serve(self, engine: AsyncEngine) -> int:
        ends = [
            asyncio.create_task(end)
            for end in (engine.wait_dead(), self._stopped.wait(), self._pulse(engine), _trim_while_busy(engine))
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for others in ends[2:]:
            others.cancel()
        if self._stopped.is_set():
            await engine.close()
            return 0
        self._send(is_dead=True)
        await self._say_last()
        return 1

    async def _say_last(self, payload: bytes | None = None) -> None:
        if payload is not None:
            self._protocol.send(payload)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._protocol.flushed(), LAST_WORDS_S)

    def _report(self, loop: asyncio.AbstractEventLoop, progress: ModelProgress) -> None:
        """From the thread that loads."""
        loop.call_soon_threadsafe(self._protocol.send, encode(Progress(progress)))

    def _obey(self, frame: memoryview) -> None:
        match decode_to_engine(frame):
            case Load() as load:
                self._load.set_result(load)
            case Submit() as submit:
                self._submit(submit)
            case Abort(submission):
                self._outbox.forget(submission)
                left = self._submissions.pop(submission, None)
                if left is not None:
                    left.stream.close()
                    if left.beginning is not None:
                        left.beginning.cancel()
            case Stop():
                self._stopped.set()

    def _submit(self, submit: Submit) -> None:
        engine, number = self._engine, submit.submission
        assert engine is not None, "nothing is submitted before Ready"

        def observe(delta: TokenDelta) -> None:
            self._outbox.add(number, delta)
            if stream.is_finished:
                self._submissions.pop(number, None)
            self._flush_soon()

        try:
            stream = engine.open(*submit.decoded(), observer=observe, is_read=False)
        except SpecdecError as error:
            self._fail(number, error)
            return
        submission = self._submissions[number] = _Submission(stream)
        stream.failure.add_done_callback(lambda failed: self._end(number, failed.result()))
        submission.beginning = asyncio.get_running_loop().create_task(self._begin(engine, number, stream))

    async def _begin(self, engine: AsyncEngine, number: int, stream: DeltaStream) -> None:
        try:
            await engine.begin(stream)
        except Exception as error:
            if not isinstance(error, SpecdecError):
                logger.exception("a request failed")
            self._end(number, error)
        else:
            if number in self._submissions:
                self._submissions[number].beginning = None
                self._outbox.accepted.append(number)
                self._flush_soon()

    def _end(self, number: int, error: Exception) -> None:
        if self._submissions.pop(number, None) is not None:
            self._fail(number, error)

    def _fail(self, number: int, error: Exception) -> None:
        self._outbox.failures.append((number, pack_failure(error)))
        self._flush_soon()

    def _note_stats(self, stats: EngineStats) -> None:
        self._outbox.stats = stats
        self._flush_soon()

    def _flush_soon(self) -> None:
        """All that one step, or one turn of the loop, brings goes into one message."""
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if not self._protocol.is_paused:
            self._send()

    def _send(self, *, is_dead: bool = False) -> None:
        assert self._engine is not None
        busy_seconds = self._engine.busy_seconds()
        self._protocol.send(self._outbox.take(busy_seconds, is_dead=is_dead))
        self._was_busy = busy_seconds > 0
        self._last_sent = time.monotonic()

    async def _pulse(self, engine: AsyncEngine) -> None:
        while True:
            await asyncio.sleep(PULSE_S)
            silence_s = time.monotonic() - self._last_sent
            is_changing = self._was_busy or engine.busy_seconds() > 0
            if silence_s >= (PULSE_S if is_changing else IDLE_PULSE_S):
                self._flush()


async def _trim_while_busy(engine: AsyncEngine) -> None:
    num_steps = 0
    while True:
        await asyncio.sleep(TRIM_INTERVAL_S)
        if engine.stats().num_steps != num_steps:
            num_steps = engine.stats().num_steps
            await asyncio.to_thread(return_free_pages)


class _Outbox:
    """What waits to be sent: while the other side does not read, the deltas of each choice are joined into one."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.failures: list[tuple[int, bytes]] = []
        self.stats: EngineStats | None = None
        self._deltas: dict[int, dict[tuple[str, int], list[TokenDelta]]] = {}

    def add(self, submission: int, delta: TokenDelta) -> None:
        of_submission = self._deltas.setdefault(submission, {})
        append_joined(of_submission.setdefault((delta.request_id, delta.choice_index), []), delta)

    def forget(self, submission: int) -> None:
        """Its deltas have no reader any more."""
        self._deltas.pop(submission, None)

    def take(self, busy_seconds: float, *, is_dead: bool) -> bytes:
        """Everything, as one message."""
        deltas = [
            (submission, delta)
            for submission, choices in self._deltas.items()
            for waiting in choices.values()
            for delta in waiting
        ]
        self._deltas = {}
        accepted, self.accepted = tuple(self.accepted), []
        failures, self.failures = self.failures, []
        stats, self.stats = self.stats, None
        try:
            return encode(Dispatch(accepted, tuple(deltas), tuple(failures), stats, busy_seconds, is_dead))
        except Exception:  # noqa: BLE001, whatever has no encoding, it must not cost the batch's other readers theirs
            sound = []
            for submission, delta in deltas:
                try:
                    encode(delta)
                    sound.append((submission, delta))
                except UnicodeEncodeError as error:
                    logger.error("a delta of %s has no UTF-8 form: %s", delta.request_id, error)  # noqa: TRY400
                    refused = EngineError("the answer, or the report on it, holds text that has no UTF-8 form")
                    failures.append((submission, pack_failure(refused)))
                except Exception as error:
                    logger.exception("a delta of %s cannot be sent", delta.request_id)
                    failures.append((submission, pack_failure(error)))
            return encode(Dispatch(accepted, tuple(sound), tuple(failures), stats, busy_seconds, is_dead))


def _build(load: Load, progress: ProgressCallback) -> Engine:
    configure_logging(load.log_level, load.log_format)
    from specdec.engine import Engine  # noqa: PLC0415, torch is loaded while the connection is looked after

    engine = Engine(load.config(), progress=progress)
    # What is loaded stays. Looking it through for cycles again and again would hold up a step, for 30 ms and more.
    gc.collect()
    gc.freeze()
    return engine


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
