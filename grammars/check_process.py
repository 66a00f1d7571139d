"""CheckProcess: FinalCheck in a process of its own, so that a check can be ended.

`re` backtracks exponentially on some patterns and keeps the interpreter's lock while it does: on a thread of this
process, whichever one, such a check would stop everything. A process is killed on its deadline, and the next check
gets a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from specdec.grammars.constraints import Constraint

_START_SECONDS = 120.0
"""A new process imports the validators, and may find the machine busy."""


class CheckNotMadeError(Exception):
    """There is no saying whether the text satisfies the constraint."""


class CheckTimeoutError(CheckNotMadeError):
    """The check was ended on its deadline."""


class CheckProcess:
    """Started by the first check, or by `start`. For one thread at a time, but for `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self.is_closed = False

    def start(self) -> None:
        """Have a process that is ready. Raises CheckNotMadeError."""
        if self._process is not None:
            return
        with self._lock:
            if self.is_closed:
                raise CheckNotMadeError("the engine is being closed")
            # The same code as here, wherever that was imported from; apart from the terminal's Ctrl-C.
            root = str(Path(__file__).parents[2])
            path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "specdec.grammars.check_worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    encoding="ascii",
                    env={**os.environ, "PYTHONPATH": path},
                    start_new_session=True,
                )
            except OSError as error:
                raise CheckNotMadeError(f"the checking process cannot be started: {error}") from error
        try:
            self._read_line(self._process, time.monotonic() + _START_SECONDS, _START_SECONDS)
        except CheckTimeoutError as error:
            raise CheckNotMadeError("the checking process does not start") from error

    def violation(self, constraint: Constraint, text: str, *, deadline_s: float) -> str | None:
        """Why the text does not satisfy the constraint; None if it does. Starting does not count as time.

        Raises CheckTimeoutError, and CheckNotMadeError where the judge cannot apply the constraint.
        """
        self.start()
        process = self._process
        assert process is not None, "it was started"
        assert process.stdin is not None, "it is a pipe"
        # Whole numbers in documents may have more than the 64 bits of msgspec's own encodings.
        job = {"constraint": json.dumps(msgspec.to_builtins(constraint)), "text": text}
        deadline = time.monotonic() + deadline_s
        try:
            with _killed_at(deadline, process):
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
        except OSError as error:
            self.release()
            raise CheckNotMadeError(f"the checking process is gone: {error}") from error
        line = self._read_line(process, deadline, deadline_s)
        reply: dict[str, str | None] = json.loads(line)
        if reply["unjudgeable"] is not None:
            raise CheckNotMadeError(reply["unjudgeable"])
        return reply["violation"]

    def close(self) -> None:
        """End the process, and the check in progress with it; there will be no other. Callable from any thread."""
        with self._lock:
            self.is_closed = True
            if self._process is not None:
                self._process.kill()

    def release(self) -> None:
        """By the thread that makes the checks: nothing of the process is left, and the next check starts another."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None, "both are pipes"
            # What it was sent and did not read is lost.
            with contextlib.suppress(OSError):
                pipe.close()
        process.wait()

    def _read_line(self, process: subprocess.Popen[str], deadline: float, seconds: float) -> str:
        """What it says until the deadline; `seconds` is how long that was given in all."""
        assert process.stdout is not None, "it is a pipe"
        with _killed_at(deadline, process):
            line = process.stdout.readline()
        if line.endswith("\n"):
            return line
        status = process.wait()
        self.release()
        if time.monotonic() >= deadline:
            raise CheckTimeoutError(f"it took more than {seconds:.1f} s")
        raise CheckNotMadeError(f"the checking process ended with status {status}")


@contextlib.contextmanager
def _killed_at(deadline: float, process: subprocess.Popen[str]) -> Iterator[None]:
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
