"""The compiler's processes: one that has everything loaded, and the workers that are forked from it.

`main` runs in the first (compile_process.py). compile_nursery.py talks to it over a socket:

    ("fork",) and a socket    -> the worker's pid, or an OSError; the worker takes jobs from the socket
    ("end", pid)              -> its exit code, or minus the signal; the worker is killed unless it had ended

A fork takes milliseconds, so a worker that was killed or has grown is replaced before anybody waits for it. To a worker
a job is a pickled constraint, the reply a pickled Program or the error why there is none. All of them end when the
other end of their socket is closed.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import pickle
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import NamedTuple

from specdec.grammars import language_kernels
from specdec.grammars.constraints import Constraint
from specdec.grammars.errors import CompileResourceError, GrammarError
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.limits import Limits
from specdec.grammars.pattern_kernels import load_determinise
from specdec.grammars.program import Program
from specdec.grammars.program_builder import build_program
from specdec.grammars.speller import Speller
from specdec.grammars.vocabulary import Vocabulary

_NICENESS = 10
"""Whoever waits for tokens goes before whoever waits for a grammar."""
_SPARE_CPU_SECONDS = 1
"""Beyond max_compile_seconds, which the compiler itself looks at between its steps."""
OUT_OF_MEMORY_STATUS = 3
"""Of a worker that had too little memory left to say so."""


class Setup(NamedTuple):
    """What every compilation of a pool has in common; the first thing that its first process is sent."""

    vocabulary: Vocabulary
    limits: Limits


class Reply(NamedTuple):
    """What became of a job."""

    result: Program | GrammarError | str
    """A str is the traceback of a fault of the compiler."""
    resident_bytes: int
    """The worker's memory after it."""


class _Compiler:
    def __init__(self, setup: Setup) -> None:
        self.limits = setup.limits
        self._vocabulary = setup.vocabulary
        language_kernels.load_kernels()
        load_determinise()
        self._lexicon = Lexicon(setup.vocabulary.spellable_bytes)
        self._speller = Speller(setup.vocabulary)

    def reply(self, constraint: Constraint) -> bytes:
        """The pickled Reply to a job."""
        try:
            return _encoded(self._compile(constraint))
        except MemoryError:
            return _encoded(out_of_memory(self.limits))
        except Exception:  # noqa: BLE001, the other end says what it was
            return _encoded(traceback.format_exc())

    def _compile(self, constraint: Constraint) -> Program | GrammarError:
        try:
            return build_program(constraint, self._vocabulary, self._lexicon, self._speller, self.limits)
        except GrammarError as error:
            return error.with_traceback(None)


def out_of_memory(limits: Limits) -> CompileResourceError:
    """Of a compilation that needed more memory than it may have."""
    return CompileResourceError(
        f"compiling takes more than {limits.max_compile_bytes / 2**20:g} MiB of memory (max_compile_bytes)"
    )


def main(fd: int) -> None:
    """Fork workers as the socket `fd` asks, until its other end is closed."""
    control = Connection(fd)
    with contextlib.suppress(EOFError, ConnectionError):
        compiler = _Compiler(control.recv())
        # What is never freed is never written to, and stays shared with the workers.
        gc.collect()
        gc.freeze()
        _fork_on_demand(control, compiler)


def _fork_on_demand(control: Connection, compiler: _Compiler) -> None:
    workers: set[int] = set()
    try:
        while True:
            match control.recv():
                case ("fork",):
                    handle = recv_handle(control)
                    try:
                        pid = os.fork()
                    except OSError as error:
                        control.send(error)
                    else:
                        if pid == 0:
                            control.close()
                            _work(Connection(handle), compiler)
                        workers.add(pid)
                        control.send(pid)
                    os.close(handle)
                case ("end", int(pid)):
                    # A worker that has ended by itself keeps its pid until it is waited for.
                    status: int | None = None
                    if pid in workers:
                        workers.remove(pid)
                        status = _end(pid)
                    control.send(status)
    finally:
        for pid in workers:
            _end(pid)


def _end(pid: int) -> int:
    """Its exit code or minus its signal, which for a worker that has ended are its own."""
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _work(jobs: Connection, compiler: _Compiler) -> None:
    """Take jobs until there are no more; never returns."""
    status = 1
    try:
        os.nice(_NICENESS)
        _limit_memory(compiler.limits.max_compile_bytes)
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                constraint = pickle.loads(jobs.recv_bytes())  # noqa: S301, from the process that owns this one
                _limit_cpu(compiler.limits.max_compile_seconds)
                jobs.send_bytes(compiler.reply(constraint))
        status = 0
    except MemoryError:
        status = OUT_OF_MEMORY_STATUS
    finally:
        os._exit(status)


def _encoded(result: Program | GrammarError | str) -> bytes:
    return pickle.dumps(Reply(result, _resident_bytes()), pickle.HIGHEST_PROTOCOL)


def _limit_memory(num_bytes: int) -> None:
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_pages(0) + num_bytes, resource.RLIM_INFINITY))
        # Where all memory of the machine is used up, let it be a worker that goes.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_cpu(seconds: float) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + seconds) + _SPARE_CPU_SECONDS, resource.RLIM_INFINITY))


def _resident_bytes() -> int:
    """As it is now on Linux, elsewhere the most that it has been."""
    if sys.platform == "linux":
        return _pages(1)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _pages(field: int) -> int:
    """Bytes of a field of Linux's statm: 0 is all addresses, 1 what is resident."""
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()
