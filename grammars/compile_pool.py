"""CompilePool: constraints compiled in processes of their own, so that a compilation cannot hurt anything else.

A compilation is Python that holds the interpreter's lock: on a thread of this process it would slow everything down,
and nothing could end it. A worker (compile_worker.py) has limits of time and memory, and is killed when its time is up
or nobody waits for its result any more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

from specdec.grammars.compile_nursery import Nursery, NurseryError, Worker
from specdec.grammars.compile_worker import OUT_OF_MEMORY_STATUS, Reply, Setup, out_of_memory
from specdec.grammars.constraints import Constraint
from specdec.grammars.errors import CompileResourceError, GrammarError
from specdec.grammars.fair_queue import FairQueue
from specdec.grammars.limits import Limits
from specdec.grammars.program import Program
from specdec.grammars.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_WALL_FACTOR = 4
"""A compilation may take this many times max_compile_seconds on the clock, since others may have the processors."""
_WAIT_SECONDS = 30.0
"""Longest that a constraint waits for a worker."""
_MAX_RESIDENT_BYTES = 512 * 2**20
"""A worker that has grown beyond this is replaced."""
_KILLS = frozenset((-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT))
"""How processes end that others end; a machine without memory by the first."""


class CompilePoolError(Exception):
    """No result, and no fault of the constraint's; the message says why."""


class CompileBusyError(CompilePoolError):
    """No worker became free in time."""


class CompilerKilledError(CompilePoolError):
    """Somebody, or a machine without memory, ended the worker: another one may have more luck."""


class CompileAbandonedError(CompilePoolError):
    """Nobody waits for the result any more."""

    def __init__(self) -> None:
        super().__init__("nobody waits for the grammar any more")


class CompileJob:
    """One compilation, from before a worker is free until there is a result. Its fields are the pool's."""

    def __init__(self) -> None:
        self.is_abandoned = False
        self.jobs: Connection | None = None
        """To the worker that works on it."""
        self.callers: list[str] = []
        """Whoever waits for the result, so that it has its turn with the first of them."""


class CompilePool:
    """Thread-safe."""

    def __init__(self, vocabulary: Vocabulary, limits: Limits, *, num_workers: int) -> None:
        """The processes start at once, in the background."""
        self.limits = limits
        self.num_workers = num_workers
        self.num_killed = 0
        """Compilations that were ended: for time, for memory, or because nobody waited any more."""
        self.num_running = 0
        """Compilations that workers are busy with now."""
        self._setup = Setup(vocabulary, limits)
        self._free = threading.Condition()
        self._idle: list[Worker | None] = [None] * num_workers
        """Places that are free; None where the worker has yet to be forked."""
        self._waiting: FairQueue[CompileJob] = FairQueue()
        self._is_closed = False
        self._nursery: Nursery | None = None
        self._nursery_lock = threading.Lock()
        threading.Thread(target=self._warm_up, name="specdec-warm-up", daemon=True).start()

    def build(self, constraint: Constraint, job: CompileJob, caller: str = "") -> Program:
        """The constraint's program, as `build_program` says. Callers take turns at the workers.

        Raises GrammarError, CompileResourceError also where a worker had to be killed for it, and CompilePoolError.
        """
        place = self._wait_for_place(job, caller)
        kept: Worker | None = None
        try:
            worker = self._alive(place)
            if job.is_abandoned:
                kept = worker
                raise CompileAbandonedError
            try:
                reply = self._reply(worker, constraint, job)
                kept = worker if reply.resident_bytes <= _MAX_RESIDENT_BYTES else None
            finally:
                if kept is None:
                    worker.end()
                    kept = self._replacement()
        finally:
            with self._free:
                self._idle.append(kept)
                self._free.notify_all()
        if isinstance(reply.result, str):
            logger.error("the compiler failed on a constraint:\n%s", reply.result)
            raise CompilePoolError("the compiler failed on the constraint, which is a fault of the compiler")
        if isinstance(reply.result, GrammarError):
            raise reply.result
        return reply.result

    def hasten(self, job: CompileJob, caller: str) -> None:
        """Another caller waits for the job too: it has its turn when that of either is."""
        with self._free:
            job.callers.append(caller)
            if job in self._waiting:
                self._waiting.add(caller, job)
                self._free.notify_all()

    def abandon(self, job: CompileJob) -> None:
        """From any thread, at once: `build` raises CompileAbandonedError and ends what the job is about."""
        with self._free:
            job.is_abandoned = True
            if job.jobs is not None:
                # The thread that waits for the worker sees its end, and kills it.
                with socket.socket(fileno=os.dup(job.jobs.fileno())) as end, contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._free.notify_all()

    def process_ids(self) -> list[int]:
        """Of the workers that have nothing to do, and of the process that they were forked from."""
        with self._free:
            workers = [worker.pid for worker in self._idle if worker is not None]
        nursery = self._nursery
        return workers if nursery is None else [nursery.pid, *workers]

    def close(self) -> None:
        """End all processes, and what they are doing; `build` raises CompilePoolError from now on."""
        with self._nursery_lock:
            self._is_closed = True
            if self._nursery is not None:
                self._nursery.close()

    def _wait_for_place(self, job: CompileJob, caller: str) -> Worker | None:
        deadline = time.monotonic() + _WAIT_SECONDS
        with self._free:
            for each in (caller, *job.callers):
                self._waiting.add(each, job)
            try:
                while not self._idle or next(iter(self._waiting)) is not job:
                    if job.is_abandoned:
                        raise CompileAbandonedError
                    if not self._free.wait(deadline - time.monotonic()):
                        raise CompileBusyError(
                            f"all {self.num_workers} compilers have been busy for {_WAIT_SECONDS:g} s; try again later"
                        )
                self._waiting.remove(job, is_served=True)
                return self._idle.pop()
            finally:
                self._waiting.remove(job)
                # Whoever is first now may have a place.
                self._free.notify_all()

    def _reply(self, worker: Worker, constraint: Constraint, job: CompileJob) -> Reply:
        begin = time.monotonic()
        seconds = _WALL_FACTOR * self.limits.max_compile_seconds
        try:
            with self._worked_on(job, worker):
                worker.jobs.send_bytes(pickle.dumps(constraint, pickle.HIGHEST_PROTOCOL))
                if worker.jobs.poll(seconds):
                    reply: Reply = pickle.loads(worker.jobs.recv_bytes())  # noqa: S301, from a process of our own
                    return reply
        except (EOFError, OSError) as error:
            if self._is_closed:
                raise CompilePoolError("the engine is being closed") from error
            self.num_killed += 1
            if job.is_abandoned:
                raise CompileAbandonedError from error
            raise self._reason_of(worker.end(), time.monotonic() - begin) from error
        self.num_killed += 1
        raise self._out_of_time(time.monotonic() - begin)

    def _reason_of(self, status: int | None, seconds: float) -> Exception:
        """Why a worker ended by itself, after so long: for what it may take, or by nobody's fault but ours."""
        if status == -signal.SIGXCPU:
            return self._out_of_time(seconds)
        if status == OUT_OF_MEMORY_STATUS:
            return out_of_memory(self.limits)
        if status is None or status in _KILLS:
            logger.error("a compiler was killed, after %.1f s at a constraint", seconds)
            return CompilerKilledError("the process that compiled the constraint was killed; try again")
        logger.error("a compiler died at a constraint, after %.1f s with status %d", seconds, status)
        return CompilePoolError("the compiler died of the constraint, which is a fault of the compiler")

    def _out_of_time(self, seconds: float) -> CompileResourceError:
        limit = self.limits.max_compile_seconds
        return CompileResourceError(
            f"compiling was ended after {seconds:.1f} s; it may take {limit:g} s of processor time "
            f"(max_compile_seconds), and {_WALL_FACTOR} times as much on the clock"
        )

    @contextlib.contextmanager
    def _worked_on(self, job: CompileJob, worker: Worker) -> Iterator[None]:
        with self._free:
            if job.is_abandoned:
                raise CompileAbandonedError
            job.jobs = worker.jobs
            self.num_running += 1
        try:
            yield
        finally:
            with self._free:
                job.jobs = None
                self.num_running -= 1

    def _alive(self, place: Worker | None) -> Worker:
        # An idle worker says nothing; one that died is at the end of its file.
        if place is not None and not place.jobs.poll(0):
            return place
        if place is not None:
            place.end()
        return self._new_worker()

    def _warm_up(self) -> None:
        for _ in range(self.num_workers):
            with self._free:
                place = self._idle.pop() if self._idle else None
            worker = place or self._replacement()
            with self._free:
                self._idle.insert(0, worker)
                self._free.notify_all()

    def _replacement(self) -> Worker | None:
        """A new worker, for whoever comes next; None where that one has to try again."""
        try:
            return self._new_worker()
        except CompilePoolError as error:
            if not self._is_closed:
                logger.warning("%s", error)
            return None

    def _new_worker(self) -> Worker:
        with self._nursery_lock:
            for is_last in (False, True):
                if self._is_closed:
                    raise CompilePoolError("the engine is being closed")
                try:
                    self._nursery = self._nursery or Nursery(self._setup)
                    return self._nursery.fork()
                except NurseryError as error:
                    nursery, self._nursery = self._nursery, None
                    if nursery is not None:
                        # The end of the program closes it without the pool's close.
                        self._is_closed = self._is_closed or nursery.is_closed
                        nursery.close()
                    if is_last or self._is_closed:
                        raise CompilePoolError(str(error)) from error
        raise AssertionError("the last try returns or raises")
