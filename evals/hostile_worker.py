"""HostileWorker: compiles each hostile schema in a process of its own, which is limited and measured.

One process loads the compiler and forks for every schema, so that none of them pays for loading, and none meets what
another has left behind. POSIX only: Windows neither forks nor limits memory.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from specdec.evals.hostile_schemas import HostileSchema
from specdec.evals.schema_engine import SpecdecEngine
from specdec.evals.schema_walk import walk
from specdec.grammars import GrammarCompiler, GrammarError

_START_SECONDS = 120.0
_CPU_SECONDS = 60
"""A process that takes more is killed; far beyond what is promised, so that the figure is seen."""
_WALL_SECONDS = 600.0
MEMORY_BYTES = 2**30
"""Address space beyond what loading the compiler takes."""
_NUM_FREE_TOKENS = 50


class HostileOutcome(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    error: str | None
    """The class of the GrammarError, or of what must not be raised; None of a grammar."""
    message: str = ""
    is_fault: bool = False
    """Neither a grammar nor a GrammarError, or a walk that failed."""
    compile_seconds: float = 0.0
    """Processor time."""
    peak_bytes: int = 0
    """Resident memory of the process at most, all that the compiler loads included."""
    num_tokens: int = 0
    walk_seconds: float = 0.0
    """Processor time of a walk."""
    slowest_token_seconds: float = 0.0
    """Processor time of a mask and the step after it, at most."""
    is_closed: bool = False
    """The walk came to the end of a text."""


class HostileWorker:
    """A context manager; entering raises RuntimeError where the compiler does not load."""

    def __enter__(self) -> HostileWorker:
        context = multiprocessing.get_context("spawn")
        self._connection, others = context.Pipe()
        self._process = context.Process(target=_serve, args=(others,))
        self._process.start()
        others.close()
        try:
            is_ready = self._connection.poll(_START_SECONDS) and self._connection.recv()
        except EOFError:
            is_ready = False
        if not is_ready:
            self.__exit__()
            raise RuntimeError("the process that loads the compiler did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def run(self, schema: HostileSchema) -> HostileOutcome:
        """Compile it and, where it compiles, walk it."""
        self._connection.send(schema)
        outcome: HostileOutcome = self._connection.recv()
        return outcome


def _serve(connection: Connection) -> None:
    """The process that forks."""
    engine = SpecdecEngine({})
    engine.compiler.compile_json_schema({"type": "object", "properties": {"a": {"type": "string", "pattern": "^a"}}})
    connection.send(True)
    context = multiprocessing.get_context("fork")
    while True:
        try:
            schema: HostileSchema = connection.recv()
        except EOFError:
            return
        own, others = context.Pipe()
        process = context.Process(target=_answer, args=(others, engine, schema))
        process.start()
        others.close()
        try:
            outcome = own.recv() if own.poll(_WALL_SECONDS) else None
        except EOFError:
            outcome = None
        if outcome is None:
            process.kill()
        process.join()
        own.close()
        if outcome is None:
            message = f"the process ended with exit code {process.exitcode}"
            outcome = HostileOutcome(name=schema.name, error="crash", message=message, is_fault=True)
        connection.send(outcome)


def _answer(connection: Connection, engine: SpecdecEngine, schema: HostileSchema) -> None:
    space = _own_bytes("VmSize") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 1))
    compiler = GrammarCompiler(engine.vocabulary, limits=schema.limits)
    begin = time.process_time()
    try:
        grammar = compiler.compile_json_schema(schema.text)
    except BaseException as error:  # noqa: BLE001, any other than a GrammarError is a finding
        connection.send(
            HostileOutcome(
                name=schema.name,
                error=type(error).__name__,
                message=str(error)[:300],
                is_fault=not isinstance(error, GrammarError),
                compile_seconds=time.process_time() - begin,
                peak_bytes=_own_bytes("VmHWM"),
            )
        )
        return
    compile_seconds = time.process_time() - begin
    num_tokens, slowest, is_closed, fault = 0, 0.0, False, None
    began = last = time.process_time()
    try:
        for token in walk(compiler, grammar, random.Random(0), num_free=_NUM_FREE_TOKENS):
            now = time.process_time()
            slowest, last = max(slowest, now - last), now
            num_tokens += 1
            is_closed = token is None
    except BaseException as error:  # noqa: BLE001, any error of a walk is a finding
        fault = error
    connection.send(
        HostileOutcome(
            name=schema.name,
            error=None if fault is None else type(fault).__name__,
            message="" if fault is None else str(fault)[:300],
            is_fault=fault is not None,
            compile_seconds=compile_seconds,
            peak_bytes=_own_bytes("VmHWM"),
            num_tokens=num_tokens,
            walk_seconds=last - began,
            slowest_token_seconds=slowest,
            is_closed=is_closed,
        )
    )


def _own_bytes(field: str) -> int:
    """A field of the process' own status, as Linux gives it."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
