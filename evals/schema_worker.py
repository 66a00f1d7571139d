"""SchemaWorker: an engine in a process of its own, killed where a call outlasts its deadline.

A compile may hang in compiled code, exhaust memory or take the process down; here it costs one schema.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Literal

import msgspec

from specdec.errors import SpecdecError
from specdec.evals.schema_engine import CompileOptions, RefusedSchemaError, SchemaEngine, SpecdecEngine
from specdec.evals.schema_peers import MissingPeerError, PeerName, load_peer
from specdec.evals.schema_walk import closed_walk

EngineName = Literal["specdec"] | PeerName
COMPILE_SECONDS = 20.0
_ANSWER_SECONDS = 60.0
_START_SECONDS = 300.0
_MEMORY_BYTES = 8 * 2**30


class WorkerStartError(SpecdecError):
    """The process of an engine does not start, or not again after one that was lost."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    reason: str
    message: str
    keyword: str | None = None
    is_unsatisfiable: bool = False
    is_fault: bool = False
    """The engine did not say no: it ran out of time, crashed, or raised what it must not raise."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    rendering: int | None
    """Which rendering was accepted, the first one first; None where all are refused."""
    refusal: str | None
    """Why the first rendering is refused, where all are."""
    is_fault: bool = False


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    milliseconds: float
    refusal: Refusal | None
    answers: tuple[Answer, ...]


class Walks(msgspec.Struct, frozen=True, kw_only=True):
    texts: tuple[bytes, ...]
    num_not_closed: int
    fault: str | None = None


class SchemaWorker:
    """A context manager; entering raises MissingPeerError without the engine.

    Entering, and asking after a process was lost, raise WorkerStartError where the engine fails to load.
    """

    # Any: a schema is whatever JSON holds.
    def __init__(
        self, engine: EngineName, documents: Mapping[str, Any], *, compile_seconds: float = COMPILE_SECONDS
    ) -> None:
        self._engine: EngineName = engine
        self._documents = dict(documents)
        self._compile_seconds = compile_seconds
        self._running: tuple[multiprocessing.process.BaseProcess, Connection] | None = None

    def __enter__(self) -> SchemaWorker:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def run(self, schema_text: str, options: CompileOptions, renderings: Sequence[tuple[bytes, ...]]) -> Compiled:
        """Compile, and ask about the instances, each given by its renderings."""
        begin = time.perf_counter()
        try:
            milliseconds, refusal = self._ask(("compile", schema_text, options), self._compile_seconds)
        except _LostWorkerError as error:
            elapsed = (time.perf_counter() - begin) * 1000
            return Compiled(milliseconds=elapsed, refusal=error.refusal, answers=())
        if refusal is not None or not renderings:
            return Compiled(milliseconds=milliseconds, refusal=refusal, answers=())
        try:
            answers: tuple[Answer, ...] = self._ask(("answer", tuple(renderings)), _ANSWER_SECONDS)
        except _LostWorkerError as error:
            lost = Answer(rendering=None, refusal=error.refusal.message, is_fault=True)
            answers = (lost,) * len(renderings)
        return Compiled(milliseconds=milliseconds, refusal=None, answers=answers)

    def walks(self, schema_text: str, options: CompileOptions, number: int, seed: int) -> Walks:
        """So many random walks over a schema that compiles."""
        try:
            self._ask(("compile", schema_text, options), self._compile_seconds)
            done: Walks = self._ask(("walk", number, seed), _ANSWER_SECONDS)
        except _LostWorkerError as error:
            return Walks(texts=(), num_not_closed=number, fault=error.refusal.message)
        return done

    # Any: each request has a reply of its own type, named where it is made.
    def _ask(self, request: tuple[Any, ...], seconds: float) -> Any:
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
            raise _LostWorkerError("crashed", f"the process ended with exit code {exit_code}") from None
        self._kill()
        raise _LostWorkerError(f"over {seconds:g} s", f"{request[0]} took over {seconds:g} s")

    def _start(self) -> None:
        # Spawned, not forked: the parent may have threads, and a peer's library must not meet what it has loaded.
        context = multiprocessing.get_context("spawn")
        connection, others = context.Pipe()
        process = context.Process(target=_serve, args=(others, self._engine, self._documents), daemon=True)
        process.start()
        others.close()
        self._running = process, connection
        try:
            missing = connection.recv() if connection.poll(_START_SECONDS) else None
            if missing is None:
                self._kill()
                raise WorkerStartError(f"{self._engine} did not start within {_START_SECONDS:g} s; nothing is measured")
        except EOFError:
            self._kill()
            raise WorkerStartError(
                f"the process that loads {self._engine} ended before it was ready; its error is above"
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


class _LostWorkerError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(reason=reason, message=message, is_fault=True)


def _serve(connection: Connection, engine_name: EngineName, documents: Mapping[str, Any]) -> None:
    """The worker's process."""
    _limit_memory()
    try:
        engine: SchemaEngine = SpecdecEngine(documents) if engine_name == "specdec" else load_peer(engine_name)
        _warm_up(engine)
    except MissingPeerError as error:
        connection.send(str(error))
        return
    connection.send("")
    compiled: Any = None
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        if request[0] == "compile":
            # What is compiled is freed before the clock starts.
            compiled = None
            compiled, milliseconds, refusal = _compile(engine, request[1], request[2])
            connection.send((milliseconds, refusal))
        elif request[0] == "answer":
            connection.send(tuple(_answer(compiled, texts) for texts in request[1]))
        else:
            assert isinstance(engine, SpecdecEngine), "walks are over our own masks"
            connection.send(_walk(engine, compiled, request[1], request[2]))


def _compile(engine: SchemaEngine, text: str, options: CompileOptions) -> tuple[Any, float, Refusal | None]:
    begin = time.perf_counter()
    compiled, refusal = None, None
    try:
        compiled = engine.compile(text, options)
    except RefusedSchemaError as error:
        refusal = Refusal(
            reason=error.reason,
            message=error.message,
            keyword=error.keyword,
            is_unsatisfiable=error.is_unsatisfiable,
        )
    except BaseException as error:  # noqa: BLE001, a peer's panic is no Exception, and any of them is one schema's fault
        kind = type(error).__name__
        refusal = Refusal(reason=f"raised {kind}", message=f"{kind}: {error}"[:500], is_fault=True)
    return compiled, (time.perf_counter() - begin) * 1000, refusal


def _answer(compiled: Any, texts: tuple[bytes, ...]) -> Answer:
    refusals: list[str] = []
    try:
        for i, text in enumerate(texts):
            refusal = compiled.refusal(text)
            if refusal is None:
                return Answer(rendering=i, refusal=None)
            refusals.append(refusal)
    except BaseException as error:  # noqa: BLE001, as where schemas are compiled
        return Answer(rendering=None, refusal=f"raised {type(error).__name__}: {error}"[:500], is_fault=True)
    return Answer(rendering=None, refusal=refusals[0])


def _walk(engine: SpecdecEngine, compiled: Any, number: int, seed: int) -> Walks:
    texts: list[bytes] = []
    rng = random.Random(seed)
    deadline = time.perf_counter() + _ANSWER_SECONDS * 0.8
    for _ in range(number if compiled is not None else 0):
        if time.perf_counter() > deadline:
            break
        try:
            text = closed_walk(engine.compiler, compiled.grammar, rng)
        except Exception as error:  # noqa: BLE001, any error of a walk is a finding, and the walks before it count
            fault = f"{type(error).__name__}: {error}"[:500]
            return Walks(texts=tuple(texts), num_not_closed=number - len(texts), fault=fault)
        if text is not None:
            texts.append(text)
    return Walks(texts=tuple(texts), num_not_closed=number - len(texts))


def _warm_up(engine: SchemaEngine) -> None:
    """The first compile of a process loads what all others use."""
    compiled = engine.compile(
        '{"type":"object","properties":{"a":{"type":"integer"}}}', CompileOptions(format="assert")
    )
    compiled.refusal(b'{"a":1}')


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource  # noqa: PLC0415, the standard library has it on POSIX only

        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
