"""FaultServer: a `specdec serve` of its own, whose processes are found so that they can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

from specdec.errors import EngineError

_START_TIMEOUT_S: Final = 300.0
_POLL_S: Final = 0.02
_BUSY_S: Final = 0.05
"""A worker that has computed for so long compiles: an idle one takes no time at all."""
_PROGRAM: Final = "from specdec.cli import main; main()"


class FaultServer:
    """Starts when made, and is ended at the end of its context if it has not ended by itself."""

    def __init__(self, model: str, arguments: Sequence[str] = ()) -> None:
        """Waits until the model is loaded. Raises EngineError where the server ends before."""
        # A file, not a pipe: nobody has to read it for the server to go on.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed with the context
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(  # noqa: S603, our own module
            [
                *(sys.executable, "-P", "-c", _PROGRAM, "serve", model, "--port", "0"),
                *("--log-format", "json", *arguments),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        try:
            self.url = self._wait_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def engine_pid(self) -> int:
        """Of the engine's process, the only child of the one that serves."""
        (engine,) = psutil.Process(self.pid).children()
        return int(engine.pid)

    def worker_pids(self) -> list[int]:
        """Of the processes that compile: what the engine's child has forked."""
        return [int(worker.pid) for child in psutil.Process(self.engine_pid).children() for worker in child.children()]

    def busy_worker(self, timeout_s: float) -> int:
        """The worker that compiles. Raises EngineError where none does in that time."""
        deadline = time.monotonic() + timeout_s
        before: dict[int, float] = {}
        while time.monotonic() < deadline:
            for pid in self.worker_pids():
                seconds = _processor_seconds(pid)
                if seconds - before.setdefault(pid, seconds) >= _BUSY_S:
                    return pid
            time.sleep(_POLL_S)
        raise EngineError(f"no worker has compiled anything for {timeout_s:g} s")

    def signal(self, number: signal.Signals) -> None:
        """To the process that serves."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code once it has ended; None where it runs on."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def log(self) -> str:
        """What it has said so far."""
        # The offset is the server's as well, which writes there.
        descriptor = self._log.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def close(self) -> None:
        """Kill it, and with it its engine and workers."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _wait_ready(self) -> str:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            status = self.wait(_POLL_S)
            for line in self.log().splitlines():
                said = _record(line)
                if said.get("message") == "ready":
                    return str(said["url"])
            if status is not None:
                raise EngineError(f"the server ended with {status} before it was ready: {self.log()[-2000:]}")
        raise EngineError(f"the server was not ready after {_START_TIMEOUT_S:g} s")


def _record(line: str) -> dict[str, Any]:
    """Any: a record's fields are its logger's; empty for what is no record."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _processor_seconds(pid: int) -> float:
    """0 where it has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
