"""An EngineProcess whose process is a thread of the test, so that the test can reach the engine behind the socket."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading

from scripted_engine import ScriptedEngine

from specdec.engine_child import EngineChild
from specdec.engine_messages import Load, Ready, decode_from_engine, encode
from specdec.engine_process import EngineProcess
from specdec.frames import receive_frame, send_frame


class ThreadAsProcess:
    """What EngineProcess asks of a process, of a thread that ends when its connection does."""

    pid = 0

    def __init__(self, engine: ScriptedEngine, connection: socket.socket) -> None:
        self.returncode: int | None = None
        self._engine = engine
        self._connection = connection
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired("thread", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        self._engine.is_open.set()

    async def _run(self) -> None:
        orphaned = asyncio.Event()
        child = EngineChild(self._connection, lambda _load, _progress: self._engine, orphaned.set)
        running = asyncio.create_task(child.run())
        leaving = asyncio.create_task(orphaned.wait())
        await asyncio.wait((running, leaving), return_when=asyncio.FIRST_COMPLETED)
        self.returncode = running.result() if running.done() else 1
        for task in (running, leaving):
            task.cancel()


def engine_behind_socket(engine: ScriptedEngine) -> EngineProcess:
    """Ready to start."""
    ours, theirs = socket.socketpair()
    process = ThreadAsProcess(engine, theirs)
    send_frame(ours, encode(Load.of(engine.config)))
    ready = decode_from_engine(receive_frame(ours))
    assert isinstance(ready, Ready)
    return EngineProcess(engine.config, process, ours, ready)
