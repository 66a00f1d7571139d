"""Masks: how long it takes from a state to a filled bitmask, over whole answers, beside other libraries.

A mask that disagrees with what is then taken or refused fails it, and so does an error of ours. Times are measurements.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from importlib import metadata

import msgspec

from specdec.evals.environment import describe_environment, load_warning
from specdec.evals.forced_share import forced_share
from specdec.evals.mask_engine import SPARE_TOKENS
from specdec.evals.mask_measurement import MaskMeasurement, TextKey
from specdec.evals.mask_peers import MaskPeerName
from specdec.evals.mask_texts import MaskTexts, TokenizedCase
from specdec.evals.mask_timing import loop_overhead
from specdec.evals.mask_worker import WARM_UP_TEXT, MaskEngineName, MaskWorker
from specdec.evals.percentiles import Percentiles
from specdec.evals.result import EvalResult
from specdec.evals.schema_engine import CompileOptions
from specdec.evals.schema_peers import import_peer
from specdec.evals.schema_suite import SchemaSuite
from specdec.evals.schema_worker import COMPILE_SECONDS
from specdec.evals.terminal import Terminal
from specdec.evals.vocabularies import EvalVocabulary, Splitter

_MAX_NAMED = 20


def run_masks(
    suite: SchemaSuite,
    vocabulary: EvalVocabulary,
    splitter: Splitter,
    *,
    sample: int | None,
    seed: int,
    peers: Sequence[MaskPeerName],
    terminal: Terminal,
    compile_seconds: float = COMPILE_SECONDS,
) -> EvalResult:
    """Raises MissingPeerError before anything is measured."""
    for peer in peers:
        import_peer(peer)
    environment = describe_environment()
    sampled = suite.sampled(sample, seed)
    with terminal.progress("tokens", len(sampled.cases)) as steps:
        texts = MaskTexts.of(sampled, vocabulary, splitter, steps.advance)
    warm_up = (*splitter.token_ids(WARM_UP_TEXT), vocabulary.eos_token_ids[0])
    engines: list[MaskEngineName] = ["specdec", *dict.fromkeys(peers)]
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                MaskWorker(engine, vocabulary, sampled.documents, warm_up, compile_seconds=compile_seconds)
            )
            for engine in engines
        ]
        measurements = _measure(texts.cases, workers, terminal)
    with terminal.progress("forced runs", len(texts.cases)) as steps:
        forced = forced_share(texts.cases, vocabulary, splitter, sampled.documents, steps.advance)
    overhead_us = loop_overhead() / 1000
    own = measurements["specdec"]
    common = _common(measurements)
    figures: dict[str, object] = {
        **own.all_times(),
        "forced_share": forced.share,
        "forced": forced,
        **_table_figures(own),
        "overhead_us": overhead_us,
        **own.counts(),
        "left_out_texts": dict[str, int](texts.left_out),
        "slowest": list(own.slowest(texts.cases)),
    }
    if peers:
        figures["peers"] = {
            engine: {
                "version": metadata.version(engine),
                **measurement.all_times(),
                **measurement.counts(),
            }
            for engine, measurement in measurements.items()
            if engine != "specdec"
        }
        of_common: dict[str, object] = {"texts": len(common)}
        for engine, measurement in measurements.items():
            of_common[engine] = measurement.times_of(common)
        figures["common"] = of_common
    _show(measurements, common, overhead_us, terminal)
    return EvalResult(
        eval_name="masks",
        failures=tuple(_failures(own)),
        warnings=tuple(
            warning for warning in (load_warning(environment), _fault_warning(measurements)) if warning is not None
        ),
        settings={
            "suite": suite.path,
            "sample": sample,
            "seed": seed,
            "vocabulary": vocabulary.name,
            "vocabulary_size": vocabulary.size,
            "splitting": vocabulary.splitting,
            "peers": engines[1:],
            "passes": "unguarded: the first over a schema's valid instances, in order, after a warm-up of the process; "
            "warm: the second, right after it; guarded: the third, each text in a budget of its own tokens and "
            f"{SPARE_TOKENS} more; whole: the first and the guarded one; cold: masks of the first that were computed",
            "cycle_collector": "off inside the timed loop, on between texts",
            "overhead": "the loop's own time for an empty call; in every figure, subtracted from none",
        },
        figures=figures,
        environment=environment,
    )


def _measure(
    cases: Sequence[TokenizedCase], workers: Sequence[MaskWorker], terminal: Terminal
) -> dict[MaskEngineName, MaskMeasurement]:
    """Schema by schema, each engine in turn: whatever else the machine does falls on all of them."""
    measurements = {worker.engine: MaskMeasurement() for worker in workers}
    with terminal.progress("masks", len(cases)) as steps:
        for number, case in enumerate(cases):
            steps.note(case.case.name[:60])
            options = CompileOptions(format=case.case.format, with_documents=case.case.refers_to_documents)
            for worker in workers:
                timed = worker.run(case.schema_text, options, case.texts)
                measurements[worker.engine].add(number, case, timed)
            steps.advance()
    return measurements


def _common(measurements: dict[MaskEngineName, MaskMeasurement]) -> list[TextKey]:
    """The texts that every engine took, token for token."""
    taken = [measurement.times.keys() for measurement in measurements.values()]
    return sorted(set(taken[0]).intersection(*taken[1:]))


def _table_figures(measurement: MaskMeasurement) -> dict[str, object]:
    if measurement.table is None:
        return {}
    rows, row_bytes = measurement.table
    return {"rows": rows, "row_bytes": row_bytes}


def _failures(own: MaskMeasurement) -> Iterator[str]:
    failures = own.disagreements + own.faults
    yield from failures[:_MAX_NAMED]
    if len(failures) > _MAX_NAMED:
        yield f"{len(failures) - _MAX_NAMED} more faults"
    if not own.times:
        yield "no text was timed: every schema or instance was refused or left out"


def _fault_warning(measurements: dict[MaskEngineName, MaskMeasurement]) -> str | None:
    faulty = {
        engine: len(measurement.faults) + len(measurement.disagreements)
        for engine, measurement in measurements.items()
        if engine != "specdec" and measurement.faults + measurement.disagreements
    }
    if not faulty:
        return None
    named = ", ".join(f"{engine} {number}" for engine, number in faulty.items())
    return f"schemas left out after a peer's fault: {named}"


def _show(
    measurements: dict[MaskEngineName, MaskMeasurement],
    common: Sequence[TextKey],
    overhead_us: float,
    terminal: Terminal,
) -> None:
    for title, keys in (("all texts that each takes", None), (f"the {len(common)} texts that all take", common)):
        if keys is not None and len(measurements) == 1:
            continue
        rows: list[tuple[str, ...]] = []
        for engine, measurement in measurements.items():
            times = measurement.all_times() if keys is None else measurement.times_of(keys)
            masks = times["mask_us"]
            assert isinstance(masks, dict)
            rows += [_row(f"{engine}, mask, {name}", value) for name, value in masks.items()]
            rows.append(_row(f"{engine}, advance", times["advance_us"]))
        terminal.table(f"microseconds, {title}", ("what", *_COLUMNS), rows)
    terminal.table(
        "compiles, ms",
        ("engine", *_COLUMNS, "refused", "faults"),
        (
            (
                *_row(engine, measurement.all_times()["compile_ms"]),
                str(measurement.refusals.total()),
                str(len(measurement.faults) + len(measurement.disagreements)),
            )
            for engine, measurement in measurements.items()
        ),
    )
    terminal.notes.print(f"the loop itself takes {overhead_us:.3f} us of each time")


_COLUMNS = ("p50", "p95", "p99", "max", "mean", "number")


def _row(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, Percentiles):
        return (name, *("-" for _ in _COLUMNS))
    *times, count = msgspec.structs.astuple(value)
    return (name, *(f"{time:.2f}" for time in times), str(count))
