"""EngineWorker: an engine in a process of its own, killed where a call outlasts its deadline.

A call may hang in compiled code, exhaust memory or take the process down; the next one starts another process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

from specdec.errors import SpecdecError
from specdec.evals.schema_peers import MissingPeerError

_START_SECONDS = 300.0


class WorkerStartError(SpecdecError):
    """The process of an engine does not start, or not again after one that was lost."""


class EngineWorker:
    """A context manager; entering raises MissingPeerError without the engine.

    Entering, and asking after a process was lost, raise WorkerStartError where the engine fails to load.
    """

    # Any: each worker has arguments of its own.
    def __init__(self, engine: str, serve: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """The process calls `serve` with a connection and the arguments.

        It sends what is missing, or "" once the engine is loaded, then a reply for every request.
        """
        self._engine_name = engine
        self._serve = serve
        self._arguments = arguments
        self._running: tuple[multiprocessing.process.BaseProcess, Connection] | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    # Any: each request has a reply of its own type, named where it is made.
    def _ask(self, request: tuple[Any, ...], seconds: float) -> Any:
        """The reply, from a new process if there is none; LostWorkerError where the process ends or takes longer."""
        if self._running is None:
            self._start()
        assert self._running is not None
        process, connection = self._running
        try:
            connection.send(request)
            if connection.poll(seconds):
                return connection.recv()
        except (EOFError, OSError):
            process.join(5)
            exit_code = process.exitcode
            self._kill()
            raise LostWorkerError("crashed", f"the process ended with exit code {exit_code}") from None
        self._kill()
        raise LostWorkerError(f"over {seconds:g} s", f"{request[0]} took over {seconds:g} s")

    def _start(self) -> None:
        # Spawned, not forked: the parent may have threads, and a peer's library must not meet what it has loaded.
        context = multiprocessing.get_context("spawn")
        connection, others = context.Pipe()
        process = context.Process(target=self._serve, args=(others, *self._arguments), daemon=True)
        process.start()
        others.close()
        self._running = process, connection
        try:
            missing = connection.recv() if connection.poll(_START_SECONDS) else None
            if missing is None:
                self._kill()
                raise WorkerStartError(
                    f"{self._engine_name} did not start within {_START_SECONDS:g} s; nothing is measured"
                )
        except EOFError:
            self._kill()
            raise WorkerStartError(
                f"the process that loads {self._engine_name} ended before it was ready; its error is above"
            ) from None
        if missing:
            self._kill()
            raise MissingPeerError(missing)

    def _kill(self) -> None:
        if self._running is not None:
            process, connection = self._running
            self._running = None
            connection.close()
            process.kill()
            process.join()


class LostWorkerError(Exception):
    """The process is gone, and the request with it; `reason` is a kind of message, by which faults can be counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
