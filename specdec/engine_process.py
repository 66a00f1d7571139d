"""EngineProcess: an engine in a process of its own, and the socket to it.

The process that serves holds the tokenizer and its chat template, read from the model's folder, and no weights. What
it says to the other one, and hears of it, is in engine_messages.py; the other one runs engine_child.py. There is one
connection, a socket pair that nobody else can open, and the end of either process is the end of it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from specdec.config import EngineConfig
from specdec.delta_stream import DeltaObserver, DeltaStream
from specdec.description import EngineDescription
from specdec.engine_handle import EngineHandle
from specdec.engine_messages import (
    Abort,
    Dispatch,
    EngineFaultError,
    Load,
    LoadFailed,
    Progress,
    Ready,
    Stop,
    Submit,
    decode_from_engine,
    encode,
    unpack_failure,
)
from specdec.errors import EngineDeadError
from specdec.frames import FrameProtocol, receive_frame, send_frame
from specdec.logs import LogFormat
from specdec.models.progress import ProgressCallback
from specdec.request import Request
from specdec.stats import EngineStats
from specdec.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

PROGRAM: Final = ("-m", "specdec.engine_child")
"""What Python runs in the process; tests have one that injects faults into the engine."""
SILENCE_S = 2.0
"""A process that says nothing for so long counts as busy: an idle one speaks more often."""
END_TIMEOUT_S = 10.0
"""How long close() waits for the process to end the step in progress before it kills it."""
DEATH_TIMEOUT_S = 0.2
"""The same for a process whose engine has died."""


@dataclass(slots=True)
class _Submission:
    stream: DeltaStream
    accepted: asyncio.Future[None]


class EngineProcess(EngineHandle):
    """Made by `launch`; its process ends with it."""

    def __init__(
        self, config: EngineConfig, process: subprocess.Popen[bytes], connection: socket.socket, ready: Ready
    ) -> None:
        super().__init__()
        self._config = config
        self._process = process
        self._connection = connection
        self._description = ready.description
        self._tokenizer = Tokenizer.from_folder(Path(ready.model_folder))
        self._stats = ready.stats
        self._protocol: FrameProtocol | None = None
        self._submissions: dict[int, _Submission] = {}
        self._numbers: dict[DeltaStream, int] = {}
        self._next_number = itertools.count()
        self._busy_seconds = 0.0
        self._last_heard = time.monotonic()
        self._is_stopping = False
        self.kill: Callable[[], object] = weakref.finalize(self, _kill, process, connection)
        """End the process at once; done at the latest when this is no longer used."""

    @classmethod
    def launch(
        cls, config: EngineConfig, *, progress: ProgressCallback | None = None, log_format: LogFormat = "text"
    ) -> Self:
        """Start the process and wait until it has loaded the model; `progress` is called meanwhile.

        Raises ConfigError and ModelError as Engine does, and EngineDeadError if the process ends for another reason.
        Interrupting it ends the process.
        """
        load = Load.of(config, log_format)
        ours, theirs = socket.socketpair()
        try:
            process = _spawn(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            try:
                send_frame(ours, encode(load))
                return cls(config, process, ours, _wait_ready(ours, progress))
            except (EOFError, OSError) as error:
                status = _how_it_ended(process)
                raise EngineDeadError(f"the engine's process ended {status} while it was loading") from error
        except BaseException:
            _kill(process, ours)
            raise

    async def start(self) -> None:
        if self._protocol is None and self._end is None:
            protocol = self._protocol = FrameProtocol(self._hear, self._on_lost)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, self._connection)

    async def close(self, grace_s: float = 0.0) -> None:
        await self._refuse_and_drain(grace_s)
        self._is_stopping = True
        if self._protocol is None:
            self.kill()
            return
        self._protocol.send(encode(Stop()))
        timeout_s = DEATH_TIMEOUT_S if self._dead.is_set() else END_TIMEOUT_S
        await asyncio.to_thread(_wait_or_kill, self._process, timeout_s)
        await self._protocol.close()

    async def submit(self, *requests: Request, observer: DeltaObserver | None = None) -> DeltaStream:
        self._check_open(has_started=self._protocol is not None)
        protocol = self._protocol
        assert protocol is not None
        stream = self._streams.open(*requests, observer=observer)
        try:
            await self._begin(protocol, stream)
        except BaseException:
            stream.close()
            raise
        return stream

    @property
    def config(self) -> EngineConfig:
        return self._config

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def model_name(self) -> str:
        return self._config.model

    @property
    def max_model_len(self) -> int:
        return self._description.max_model_len

    @property
    def is_alive(self) -> bool:
        return self._protocol is not None and not self._dead.is_set() and not self._is_stopping

    @property
    def pid(self) -> int:
        return self._process.pid

    def describe(self) -> EngineDescription:
        return self._description

    def busy_seconds(self) -> float:
        silence_s = time.monotonic() - self._last_heard
        if self._busy_seconds:
            return self._busy_seconds + silence_s
        return silence_s if silence_s > SILENCE_S and self._protocol is not None else 0.0

    def stats(self) -> EngineStats:
        return self._stats

    async def _begin(self, protocol: FrameProtocol, stream: DeltaStream) -> None:
        number = next(self._next_number)
        submit = Submit.of(number, stream.requests)
        await protocol.writable()
        accepted = asyncio.get_running_loop().create_future()
        if not stream.failure.done():
            self._submissions[number] = _Submission(stream, accepted)
            self._numbers[stream] = number
            protocol.send(encode(submit))
            await asyncio.wait((accepted, stream.failure), return_when=asyncio.FIRST_COMPLETED)
        if not accepted.done():
            raise stream.failure.result()

    def _hear(self, frame: memoryview) -> None:
        dispatch = decode_from_engine(frame)
        assert isinstance(dispatch, Dispatch), "Ready is the last of the other messages"
        self._last_heard = time.monotonic()
        self._busy_seconds = dispatch.busy_seconds
        if dispatch.stats is not None:
            self._stats = dispatch.stats
        for number in dispatch.accepted:
            if number in self._submissions:
                self._submissions[number].accepted.set_result(None)
        for number, delta in dispatch.deltas:
            # Without one, it was aborted while this was on its way.
            submission = self._submissions.get(number)
            if submission is not None:
                submission.stream.push(delta)
                if submission.stream.is_finished:
                    self._forget(submission.stream)
        for number, failure in dispatch.failures:
            submission = self._submissions.get(number)
            if submission is not None:
                self._forget(submission.stream)
                submission.stream.fail(unpack_failure(failure))
        if dispatch.is_dead and not self._is_stopping:
            self._die()

    def _forget(self, stream: DeltaStream) -> int | None:
        number = self._numbers.pop(stream, None)
        if number is not None:
            del self._submissions[number]
        return number

    def _abort(self, stream: DeltaStream) -> None:
        number = self._forget(stream)
        if number is not None and self._protocol is not None:
            self._protocol.send(encode(Abort(number)))

    def _on_lost(self) -> None:
        if not self._is_stopping and not self._dead.is_set():
            self._die()

    def _die(self) -> None:
        super()._die()
        threading.Thread(target=_mourn, args=(self._process,), name="specdec-engine-end", daemon=True).start()


def _spawn(connection: socket.socket) -> subprocess.Popen[bytes]:
    # The same code as here, wherever that was imported from; apart from the terminal's Ctrl-C.
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    arguments = [sys.executable, "-P", *PROGRAM, str(connection.fileno())]
    # The kernel's signal for an orphan comes at the end of the thread, not the process, that started it.
    if threading.current_thread() is threading.main_thread():
        arguments.append(str(os.getpid()))
    return subprocess.Popen(  # noqa: S603, our own module
        arguments,
        stdin=subprocess.DEVNULL,
        pass_fds=[connection.fileno()],
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


def _wait_ready(connection: socket.socket, progress: ProgressCallback | None) -> Ready:
    while True:
        match decode_from_engine(receive_frame(connection)):
            case Progress(report):
                if progress is not None:
                    progress(report)
            case LoadFailed(failure):
                error = unpack_failure(failure)
                if isinstance(error, EngineFaultError):
                    raise EngineDeadError("the engine's process failed while it was loading; its log says why")
                raise error
            case Ready() as ready:
                return ready


def _kill(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()


def _wait_or_kill(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _mourn(process: subprocess.Popen[bytes]) -> None:
    """The process has no engine any more: see that it ends, and log how it did."""
    logger.error("the engine's process ended %s", _how_it_ended(process))


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    _wait_or_kill(process, DEATH_TIMEOUT_S)
    status = process.returncode
    if status >= 0:
        return f"with status {status}"
    name = signal.Signals(-status).name
    return f"by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
