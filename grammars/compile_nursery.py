"""Nursery: this process's end of the one that the compiler's workers are forked from (compile_worker.py)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import NamedTuple

from specdec.grammars.compile_worker import Setup

_START_SECONDS = 120.0
"""A new process imports the compiler, and may find the machine busy or its machine code not compiled yet."""
_END_SECONDS = 5.0


class NurseryError(Exception):
    """The process cannot be started, does not answer or is gone."""


class Worker(NamedTuple):
    """A process that waits for a constraint, or works on one."""

    nursery: Nursery
    pid: int
    jobs: Connection

    def end(self) -> int | None:
        """Kill it, whatever it does; what Nursery.end returns."""
        status = self.nursery.end(self.pid)
        self.jobs.close()
        return status


class Nursery:
    """Thread-safe. Starts at once, and is waited for by the first fork."""

    def __init__(self, setup: Setup) -> None:
        self._lock = threading.Lock()
        self._setup: Setup | None = setup
        """None once it was sent."""
        # The same code as here, wherever that was imported from; apart from the terminal's Ctrl-C.
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        # A library that starts threads when it is imported would make forking unsafe.
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._control, theirs = Pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603, our own module
                [sys.executable, "-P", "-m", "specdec.grammars.compile_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **one_thread, "PYTHONPATH": path},
                start_new_session=True,
            )
        except OSError as error:
            self._control.close()
            raise NurseryError(f"the compiler's process cannot be started: {error}") from error
        finally:
            theirs.close()
        self.close = weakref.finalize(self, _close, self._process, self._control)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_closed(self) -> bool:
        """By `close`, which the end of the program calls too, whatever its threads wait for."""
        return not self.close.alive

    def fork(self) -> Worker:
        """A new worker. Raises NurseryError, after which no other can be had."""
        ours, theirs = Pipe()
        try:
            with self._lock, self._answered():
                if self._setup is not None:
                    self._control.send(self._setup)
                    self._setup = None
                self._control.send(("fork",))
                send_handle(self._control, theirs.fileno(), self._process.pid)
                pid: int | OSError = self._control.recv()
        except NurseryError:
            ours.close()
            raise
        finally:
            theirs.close()
        if isinstance(pid, OSError):
            ours.close()
            raise NurseryError(f"a compiler cannot be forked: {pid}")
        return Worker(self, pid, ours)

    def end(self, pid: int) -> int | None:
        """Kill a worker; its exit code, or minus the signal that ended it: its own where it had ended before.

        None where that is not known: it was ended before, or its nursery is gone, and then it ends by itself.
        """
        with contextlib.suppress(NurseryError), self._lock, self._answered():
            self._control.send(("end", pid))
            status: int | None = self._control.recv()
            return status
        return None

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """Say what is wrong where no answer comes, or not in time."""
        timer = threading.Timer(_START_SECONDS, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (EOFError, OSError) as error:
            status = self._process.poll()
            raise NurseryError(f"the compiler's process is gone, with status {status}: {error}") from error
        finally:
            timer.cancel()


def _close(process: subprocess.Popen[bytes], control: Connection) -> None:
    """It ends with its input, and its workers with it."""
    # A thread that waits for an answer sees the end of it; a connection that is closed under it is an error.
    with socket.socket(fileno=os.dup(control.fileno())) as end, contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    control.close()
