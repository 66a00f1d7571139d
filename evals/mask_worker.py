"""MaskWorker: a mask engine in a process of its own, killed where a call outlasts its deadline.

Engines share neither heap nor caches, and one that hangs or crashes costs one schema. Times are taken inside the
process; what crosses to it is never timed.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter_ns
from typing import Any, Literal

import msgspec

from specdec.evals.engine_worker import EngineWorker, LostWorkerError
from specdec.evals.mask_engine import MaskEngine, MaskGrammar, SpecdecMasks
from specdec.evals.mask_peers import MaskPeerName, load_mask_peer
from specdec.evals.mask_timing import DisagreeingMaskError, RefusedTokenError, WalkTimes, time_walk
from specdec.evals.schema_engine import CompileOptions, RefusedSchemaError
from specdec.evals.schema_peers import MissingPeerError
from specdec.evals.schema_worker import COMPILE_SECONDS
from specdec.evals.vocabularies import EvalVocabulary

MaskEngineName = Literal["specdec"] | MaskPeerName
TokenIds = tuple[int, ...]
_WALK_SECONDS = 120.0
_WARM_UP_SCHEMA = '{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"number"}}}'
WARM_UP_TEXT = b'{"a":"text","b":-1.5}'


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTimes:
    """One text of one schema."""

    rendering: int | None
    """Which rendering was accepted, the first one first; None where all are refused."""
    whole: WalkTimes | None = None
    """The first pass. Where the second rendering was accepted, what the first shares with it is warm already."""
    warm: WalkTimes | None = None
    """The second, after the first pass over all texts of the schema."""
    guarded: WalkTimes | None = None
    """The third, in a budget that the text just fits; None where there is no budget or it forbids the text."""


class MaskRefusal(msgspec.Struct, frozen=True, kw_only=True):
    reason: str
    is_fault: bool = False
    """The engine did not say no: it ran out of time, crashed, or raised what it must not raise."""
    is_disagreement: bool = False
    """A mask and what it masks for do not agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaTimes:
    """One schema; without a refusal, its texts in order."""

    compile_ms: float | None = None
    refusal: MaskRefusal | None = None
    texts: tuple[TextTimes, ...] = ()
    table: tuple[int, int] | None = None


class MaskWorker(EngineWorker):
    """An engine whose masks are timed."""

    # Any: documents are whatever JSON holds.
    def __init__(
        self,
        engine: MaskEngineName,
        vocabulary: EvalVocabulary,
        documents: Mapping[str, Any],
        warm_up: TokenIds,
        *,
        compile_seconds: float = COMPILE_SECONDS,
    ) -> None:
        self.engine: MaskEngineName = engine
        super().__init__(engine, _serve, (engine, vocabulary, dict(documents), warm_up))
        self._compile_seconds = compile_seconds

    def run(self, schema_text: str, options: CompileOptions, texts: Sequence[tuple[TokenIds, ...]]) -> SchemaTimes:
        """Compile, and time the texts, each given by the tokens of its renderings."""
        try:
            compiled: SchemaTimes = self._ask(("compile", schema_text, options), self._compile_seconds)
            if compiled.refusal is not None:
                return compiled
            timed: SchemaTimes = self._ask(("walk", tuple(texts)), _WALK_SECONDS)
        except LostWorkerError as error:
            return SchemaTimes(refusal=MaskRefusal(reason=str(error), is_fault=True))
        return SchemaTimes(compile_ms=compiled.compile_ms, refusal=timed.refusal, texts=timed.texts, table=timed.table)


def _serve(
    connection: Connection,
    engine_name: MaskEngineName,
    vocabulary: EvalVocabulary,
    documents: Mapping[str, Any],
    warm_up: TokenIds,
) -> None:
    """The worker's process."""
    try:
        engine: MaskEngine = (
            SpecdecMasks(vocabulary, documents) if engine_name == "specdec" else load_mask_peer(engine_name, vocabulary)
        )
        _warm_up(engine, warm_up)
    except MissingPeerError as error:
        connection.send(str(error))
        return
    connection.send("")
    grammar: MaskGrammar | None = None
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        if request[0] == "compile":
            # What is compiled is freed before the clock starts.
            grammar = None
            grammar, reply = _compile(engine, request[1], request[2])
        else:
            assert grammar is not None, "texts are timed over what compiled"
            reply = _walk(engine, grammar, request[1])
        connection.send(reply)


def _compile(engine: MaskEngine, text: str, options: CompileOptions) -> tuple[MaskGrammar | None, SchemaTimes]:
    begin = perf_counter_ns()
    try:
        grammar = engine.compile(text, options)
    except RefusedSchemaError as error:
        return None, SchemaTimes(refusal=MaskRefusal(reason=error.reason))
    except BaseException as error:  # noqa: BLE001, a peer's panic is no Exception, and any of them is one schema's fault
        return None, SchemaTimes(refusal=_fault(error))
    return grammar, SchemaTimes(compile_ms=(perf_counter_ns() - begin) / 1e6)


def _walk(engine: MaskEngine, grammar: MaskGrammar, texts: Sequence[tuple[TokenIds, ...]]) -> SchemaTimes:
    try:
        whole = [_first_pass(grammar, renderings) for renderings in texts]
        timed = tuple(
            TextTimes(
                rendering=rendering,
                whole=times,
                warm=time_walk(grammar.walk(), renderings[rendering]),
                guarded=_guarded_pass(grammar, renderings[rendering]),
            )
            if rendering is not None
            else TextTimes(rendering=None)
            for (rendering, times), renderings in zip(whole, texts, strict=True)
        )
    except DisagreeingMaskError as error:
        return SchemaTimes(refusal=MaskRefusal(reason=str(error), is_fault=True, is_disagreement=True))
    except BaseException as error:  # noqa: BLE001, as where schemas are compiled
        return SchemaTimes(refusal=_fault(error))
    return SchemaTimes(texts=timed, table=engine.table())


def _first_pass(grammar: MaskGrammar, renderings: Sequence[TokenIds]) -> tuple[int | None, WalkTimes | None]:
    for i, token_ids in enumerate(renderings):
        try:
            return i, time_walk(grammar.walk(), token_ids)
        except RefusedTokenError:
            continue
    return None, None


def _guarded_pass(grammar: MaskGrammar, token_ids: TokenIds) -> WalkTimes | None:
    # End-of-sequence needs no token.
    walk = grammar.guarded_walk(len(token_ids) - 1)
    try:
        return None if walk is None else time_walk(walk, token_ids, may_be_narrow=True)
    except RefusedTokenError:
        return None


def _warm_up(engine: MaskEngine, token_ids: TokenIds) -> None:
    """The first compile and walk of a process load what all others use."""
    grammar = engine.compile(_WARM_UP_SCHEMA, CompileOptions(format="assert"))
    for _ in range(2):
        time_walk(grammar.walk(), token_ids)
    # As a server does once it has loaded (server/run.py): what stays is not looked through again and again.
    gc.collect()
    gc.freeze()


def _fault(error: BaseException) -> MaskRefusal:
    return MaskRefusal(reason=f"{type(error).__name__}: {error}"[:500], is_fault=True)
