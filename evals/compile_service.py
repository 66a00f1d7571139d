"""Compile service: what its processes add to a compilation, what they keep of memory, and whom a runaway one disturbs.

Each schema is compiled on this thread and by a worker, in turns, with caches of either that know what earlier schemas
have in common. A worker that died, a schema that the two treat differently and a budget that is exceeded fail it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from specdec.evals.compile_bomb import BombOutcome, run_bomb
from specdec.evals.environment import describe_environment, load_warning
from specdec.evals.percentiles import Percentiles
from specdec.evals.result import EvalResult
from specdec.evals.schema_suite import SchemaCase, SchemaSuite
from specdec.evals.terminal import Terminal
from specdec.evals.vocabularies import EvalVocabulary
from specdec.grammars import (
    CompilePoolError,
    GrammarCompiler,
    GrammarError,
    JsonSchema,
    SchemaOptions,
    Vocabulary,
)

MAX_ADDED_MS = 10.0
"""Median of what a worker may add."""
MAX_GROWTH = 0.05
"""Memory may grow by this share of itself in the second half of many distinct schemas."""
_NUM_CHECKPOINTS = 10
_MASK_TABLE_BYTES = 25 * 2**20
_MAX_NAMED = 20


@dataclass(slots=True)
class RoundTrips:
    """Times of the schemas that both compiled, in milliseconds."""

    local: list[float] = field(default_factory=list)
    service: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def added(self) -> list[float]:
        return [there - here for there, here in zip(self.service, self.local, strict=True)]


def run_compile(
    suite: SchemaSuite,
    vocabulary: EvalVocabulary,
    *,
    sample: int | None,
    seed: int,
    num_distinct: int,
    bomb_model: str | None,
    terminal: Terminal,
) -> EvalResult:
    """Round trips over the sample; with `num_distinct`, memory over so many schemas; with a model, a bomb beside it."""
    environment = describe_environment()
    cases = suite.sampled(sample, seed).cases
    tokens = Vocabulary(list(vocabulary.token_bytes), list(vocabulary.eos_token_ids), size=vocabulary.size)
    trips = _round_trips(cases, suite.documents, tokens, terminal)
    failures = trips.failures[:_MAX_NAMED]
    added = Percentiles.of(np.array(trips.added))
    figures: dict[str, object] = {
        "compile_ms": {
            "here": Percentiles.of(np.array(trips.local)),
            "service": Percentiles.of(np.array(trips.service)),
            "added": added,
        }
    }
    if added is None:
        failures.append("no schema was compiled")
    elif added.p50 > MAX_ADDED_MS:
        failures.append(f"a worker adds {added.p50:.1f} ms to half of the compilations; the bound is {MAX_ADDED_MS:g}")
    if num_distinct:
        memory = list(_memory(cases, suite.documents, tokens, num_distinct, terminal))
        figures["memory"] = memory
        failures += _growth(memory)
    if bomb_model is not None:
        bomb = run_bomb(bomb_model, terminal)
        figures["bomb"] = bomb
        failures += bomb.failures()
    _show(figures, terminal)
    warning = load_warning(environment)
    return EvalResult(
        eval_name="compile",
        failures=tuple(failures),
        warnings=() if warning is None else (warning,),
        settings={
            "suite": suite.path,
            "sample": sample,
            "seed": seed,
            "vocabulary": vocabulary.name,
            "num_distinct": num_distinct,
            "bomb_model": bomb_model,
        },
        figures=figures,
        environment=environment,
    )


def _round_trips(
    cases: Sequence[SchemaCase], documents: Mapping[str, Any], vocabulary: Vocabulary, terminal: Terminal
) -> RoundTrips:
    trips = RoundTrips()
    here = GrammarCompiler(vocabulary, max_cache_entries=1)
    service = GrammarCompiler(vocabulary, num_workers=1, max_cache_entries=1)
    try:
        # A warm pool is the promise; how long it takes to warm is not in question. A fault shows below.
        with contextlib.suppress(GrammarError):
            service.compile_json_schema({"const": "warm"})
        with terminal.progress("round trips", len(cases)) as steps:
            for number, case in enumerate(cases):
                steps.note(case.name[:60])
                pair = (here, service) if number % 2 else (service, here)
                times = {compiler: _compile(compiler, case, documents) for compiler in pair}
                if type(times[here]) is not type(times[service]):
                    trips.failures.append(f"{case.name}: here {times[here]!r}, by a worker {times[service]!r}")
                elif isinstance(times[here], float):
                    trips.local.append(times[here])
                    trips.service.append(times[service])
                steps.advance()
        if service.num_killed:
            trips.failures.append(f"{service.num_killed} workers died")
    finally:
        service.close()
    return trips


def _compile(compiler: GrammarCompiler, case: SchemaCase, documents: Mapping[str, Any]) -> Any:
    """Milliseconds, or the error."""
    constraint = _constraint(case.schema, case, documents)
    begin = time.perf_counter()
    try:
        compiler.compile(constraint)
    except (GrammarError, CompilePoolError) as error:
        return error
    return (time.perf_counter() - begin) * 1000


def _constraint(schema: Any, case: SchemaCase, documents: Mapping[str, Any]) -> JsonSchema:
    options = SchemaOptions(
        format=case.format,
        unknown_format="annotation",
        documents={uri: json.dumps(one) for uri, one in documents.items()} if case.refers_to_documents else {},
    )
    return JsonSchema(schema=json.dumps(schema), options=options)


def _memory(
    cases: Sequence[SchemaCase],
    documents: Mapping[str, Any],
    vocabulary: Vocabulary,
    num_distinct: int,
    terminal: Terminal,
) -> Iterator[dict[str, float]]:
    """Of this process and of its workers, as more and more schemas have been compiled and walked."""
    # A tenth of what an engine takes for masks, so that they fill it in the first tenth of the schemas.
    compiler = GrammarCompiler(vocabulary, num_workers=2, max_mask_table_bytes=_MASK_TABLE_BYTES)
    step = max(1, num_distinct // _NUM_CHECKPOINTS)
    num_compiled = 0
    try:
        with terminal.progress("distinct schemas", num_distinct) as steps:
            for number in range(num_distinct):
                case = cases[number % len(cases)]
                schema = _salted(case.schema, number)
                num_compiled += _compile_and_walk(compiler, _constraint(schema, case, documents), number)
                if (number + 1) % step == 0:
                    gc.collect()
                    pool = compiler.pool_process_ids()
                    yield {
                        "schemas": number + 1,
                        "compiled": num_compiled,
                        "cached": compiler.cache_entries,
                        "mask_rows": compiler.mask_table.num_rows,
                        "cache_mib": round(compiler.cache_bytes / 2**20, 1),
                        "process_mib": round(_resident_mib("self"), 1),
                        "workers_mib": round(sum(_resident_mib(str(pid)) for pid in pool), 1),
                    }
                steps.advance()
    finally:
        compiler.close()


def _salted(schema: Any, number: int) -> Any:
    """The same work, and no two alike. Pointers lead where they led."""
    if not isinstance(schema, dict):
        return {"allOf": [schema], "$comment": str(number)}
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {**schema, "$comment": str(number)}
    return {**schema, "properties": {**properties, f"salt{number}": {"const": number}}}


def _compile_and_walk(compiler: GrammarCompiler, constraint: JsonSchema, seed: int) -> bool:
    try:
        grammar = compiler.compile(constraint)
    except GrammarError:
        return False
    rng = np.random.default_rng(seed)
    state = grammar.initial_state
    for _ in range(20):
        words = compiler.mask_table.rows[grammar.mask_row(state)]
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        following = grammar.advance(state, int(rng.choice(allowed)))
        assert following is not None, "a mask allows what advance takes"
        state = following
    return True


def _resident_mib(pid: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) / 1024


def _growth(memory: Sequence[Mapping[str, float]]) -> Iterator[str]:
    if len(memory) < 2:
        return
    middle, last = memory[len(memory) // 2 - 1], memory[-1]
    grown = last["process_mib"] / middle["process_mib"] - 1
    if grown > MAX_GROWTH:
        yield (
            f"the process grew by {grown:.1%} from {middle['schemas']:.0f} to {last['schemas']:.0f} schemas; "
            f"the bound is {MAX_GROWTH:.0%}"
        )


def _show(figures: Mapping[str, object], terminal: Terminal) -> None:
    compile_ms = figures["compile_ms"]
    assert isinstance(compile_ms, dict)
    rows = [
        (name, *(f"{value:.2f}" for value in (one.p50, one.p95, one.p99, one.max, one.mean)), str(one.count))
        for name, one in compile_ms.items()
        if one is not None
    ]
    terminal.table("compiling, ms", ("where", "p50", "p95", "p99", "max", "mean", "number"), rows)
    memory = figures.get("memory")
    if isinstance(memory, list) and memory:
        columns = tuple(memory[0])
        terminal.table("memory", columns, (tuple(f"{value:g}" for value in one.values()) for one in memory))
    bomb = figures.get("bomb")
    if isinstance(bomb, BombOutcome):
        terminal.table("a compile bomb beside streams", ("what", "figure"), bomb.rows())
