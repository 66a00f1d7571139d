"""Schema: which schemas compile, which labelled instances are accepted, and whether random walks validate.

An invalid instance accepted is a failure, and so are a walk that does not validate and a compile that ends in neither a
grammar nor a refusal. A valid instance refused and a schema refused by name are measurements. A peer is only measured.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from importlib import metadata

from specdec.evals.environment import describe_environment
from specdec.evals.result import EvalResult
from specdec.evals.schema_count import COLUMNS, SchemaCount
from specdec.evals.schema_labels import LabelledCase, SchemaLabels
from specdec.evals.schema_measurement import SchemaMeasurement, options_of
from specdec.evals.schema_peers import PeerName, import_peer
from specdec.evals.schema_suite import SchemaSuite
from specdec.evals.schema_worker import COMPILE_SECONDS, EngineName, SchemaWorker
from specdec.evals.terminal import Terminal
from specdec.grammars.judge import Judge, UnjudgeableError, documents_registry

_MAX_NAMED = 20
_WALKS_AT_ONCE = 10


def run_schema(
    suite: SchemaSuite,
    *,
    sample: int | None,
    seed: int,
    peer: PeerName | None,
    num_walks: int,
    terminal: Terminal,
    compile_seconds: float = COMPILE_SECONDS,
) -> EvalResult:
    """Raises MissingPeerError before anything is measured."""
    if peer is not None:
        import_peer(peer)
    environment = describe_environment()
    sampled = suite.sampled(sample, seed)
    with terminal.progress("labels", len(sampled.cases)) as steps:
        labels = SchemaLabels.of(sampled, steps.advance)
    measurements: dict[EngineName, SchemaMeasurement] = {}
    walks: dict[str, object] = {}
    failures: list[str] = []
    engines: list[EngineName] = ["specdec"] if peer is None else ["specdec", peer]
    for engine in engines:
        with SchemaWorker(engine, suite.documents, compile_seconds=compile_seconds) as worker:
            measurements[engine] = _measure(engine, labels, worker, terminal)
            if engine == "specdec" and num_walks:
                compiled_cases = measurements[engine].compiled_cases
                walks, walk_failures = _walk(compiled_cases, suite, worker, terminal, number=num_walks, seed=seed)
                failures += walk_failures
    own = measurements["specdec"]
    failures = [*_failures(own), *failures]
    _show(measurements, labels, walks, terminal)
    return EvalResult(
        eval_name="schema",
        failures=tuple(failures),
        warnings=tuple(_warnings(own, labels)),
        settings={"suite": suite.path, "sample": sample, "seed": seed, "peer": peer, "walks": num_walks},
        figures={
            "mode": _mode(sampled, compile_seconds),
            **own.figures(),
            "contradicted_labels": labels.contradictions,
            "unjudged": labels.unjudged,
            **({"walks": walks} if num_walks else {}),
            **({} if peer is None else {"peer": _peer_figures(peer, measurements[peer])}),
        },
        environment=environment,
    )


def _mode(suite: SchemaSuite, compile_seconds: float) -> dict[str, object]:
    return {
        "format": sorted({case.format for case in suite.cases}),
        "unknown_format": "annotation",
        "key_order": "schema order as schema_rendering.py collects it, then required, then the instance's",
        "renderings": ["compact, numbers as Python writes them", "whole numbers without a fraction (1.0 as 1)"],
        "documents": len(suite.documents),
        "deadline": f"each compile has {compile_seconds:g} s, in a worker process that is killed then",
        "vocabulary": "256 single bytes, end of sequence, a few words; an instance must be accepted with its end",
    }


def _peer_figures(peer: PeerName, measurement: SchemaMeasurement) -> dict[str, object]:
    return {"engine": peer, "version": metadata.version(peer), **measurement.figures()}


def _measure(engine: EngineName, labels: SchemaLabels, worker: SchemaWorker, terminal: Terminal) -> SchemaMeasurement:
    with terminal.progress(engine, len(labels.cases)) as steps:

        def on_case(name: str) -> None:
            steps.note(name[:60])
            steps.advance()

        return SchemaMeasurement.of(labels.cases, worker, on_case)


def _walk(
    cases: Sequence[LabelledCase],
    suite: SchemaSuite,
    worker: SchemaWorker,
    terminal: Terminal,
    *,
    number: int,
    seed: int,
) -> tuple[dict[str, object], list[str]]:
    """Walks spread evenly over the schemas that compiled, each judged."""
    registry = documents_registry(suite.documents)
    order = list(cases)
    random.Random(seed).shuffle(order)
    num_closed = num_valid = num_not_closed = num_unjudged = 0
    invalid: list[dict[str, str]] = []
    faults: list[str] = []
    with terminal.progress("walks", number) as steps:
        for i, labelled in enumerate(order):
            remaining = number // len(order) + (i < number % len(order))
            case = labelled.case
            steps.note(case.name[:60])
            judge = Judge(case.schema, assert_formats=case.format == "assert", registry=registry)
            while remaining:
                num_asked = min(remaining, _WALKS_AT_ONCE)
                walked = worker.walks(
                    labelled.schema_text, options_of(labelled), num_asked, seed * 1_000_003 + i * 1_009 + remaining
                )
                remaining -= num_asked
                num_not_closed += walked.num_not_closed
                if walked.fault is not None:
                    faults.append(f"{case.name}: a walk ended with {walked.fault}")
                for text in walked.texts:
                    num_closed += 1
                    try:
                        why = judge.violation(text.decode(errors="surrogateescape"))
                    except UnjudgeableError:
                        num_unjudged += 1
                        continue
                    num_valid += why is None
                    if why is not None:
                        invalid.append({"schema": case.name, "text": text.decode(errors="replace")[:2000], "why": why})
                for _ in range(num_asked):
                    steps.advance()
    figures = {
        "closed": num_closed,
        "valid": num_valid,
        "not_closed": num_not_closed,
        "unjudged": num_unjudged,
        "invalid": invalid,
        "faults": faults,
    }
    failures = [f"{each['schema']}: the walk {each['text'][:200]} does not validate: {each['why']}" for each in invalid]
    return figures, list(_first(failures, "walks that do not validate")) + list(_first(faults, "walks that failed"))


def _failures(measurement: SchemaMeasurement) -> Iterator[str]:
    accepted = [
        f"{each['schema']}: the invalid instance {each['test']!r} is accepted"
        for each in measurement.wrong
        if each["kind"] == "invalid_accepted"
    ]
    yield from _first(accepted, "invalid instances accepted")
    yield from _first(measurement.faults, "faults")


def _first(failures: Sequence[str], what: str) -> Iterator[str]:
    yield from failures[:_MAX_NAMED]
    if len(failures) > _MAX_NAMED:
        yield f"{len(failures) - _MAX_NAMED} more {what}"


def _warnings(measurement: SchemaMeasurement, labels: SchemaLabels) -> Iterator[str]:
    called = sorted({each["schema"] for each in measurement.wrong if each["kind"] == "called_unsatisfiable"})
    if called:
        yield f"{len(called)} schemas with valid instances were refused as unsatisfiable; the first is {called[0]}"
    if labels.contradictions:
        yield f"the judge contradicts {len(labels.contradictions)} labels"
    if labels.unjudged:
        yield f"the judge cannot apply {len(labels.unjudged)} schemas; their labels stand unchecked"


def _show(
    measurements: dict[EngineName, SchemaMeasurement],
    labels: SchemaLabels,
    walks: dict[str, object],
    terminal: Terminal,
) -> None:
    for engine, measurement in measurements.items():
        rows: list[tuple[str, SchemaCount]] = [*sorted(measurement.by_keyword.items())]
        if any(labelled.case.group for labelled in labels.cases):
            groups = {"required files": SchemaCount(), "optional files": SchemaCount()}
            for name, count in measurement.by_keyword.items():
                _add_up(groups["optional files" if name.startswith("optional/") else "required files"], count)
            rows += groups.items()
        terminal.table(
            f"schemas and instances, {engine}",
            ("keyword", *COLUMNS),
            ((name, *count.cells()) for name, count in [*rows, ("all", measurement.total)]),
        )
    columns = ("engine", "compiled", "p50 ms", "p95 ms", "max ms", "faults", "second renderings")
    terminal.table("compiles", columns, (_compile_row(*each) for each in measurements.items()))
    if walks:
        names = ("closed", "valid", "not_closed", "unjudged")
        terminal.table("random walks", ("engine", *names), [("specdec", *(str(walks[name]) for name in names))])


def _compile_row(engine: EngineName, measurement: SchemaMeasurement) -> tuple[str, ...]:
    figures = measurement.figures()
    times = figures["compile_ms"]
    assert isinstance(times, dict)
    shown = (f"{value:.1f}" if value is not None else "" for value in times.values())
    total = measurement.total
    return engine, str(total.compiled), *shown, str(len(measurement.faults)), str(measurement.num_second_renderings)


def _add_up(total: SchemaCount, count: SchemaCount) -> None:
    for name in SchemaCount.__slots__:
        setattr(total, name, getattr(total, name) + getattr(count, name))
