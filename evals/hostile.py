"""Hostile: is every hostile schema answered in bounded time and memory, with a grammar or a named error?"""

from __future__ import annotations

import msgspec

from specdec.evals.environment import describe_environment
from specdec.evals.hostile_schemas import HostileSchema, hostile_schemas
from specdec.evals.hostile_worker import HostileOutcome, HostileWorker
from specdec.evals.result import EvalResult
from specdec.evals.terminal import Terminal

MAX_SECONDS = 6.0
MAX_PEAK_BYTES = 2**30


def run_hostile(*, name: str | None, terminal: Terminal) -> EvalResult:
    """All schemas of the suite, or those whose name holds a text."""
    environment = describe_environment()
    schemas = [one for one in hostile_schemas() if name is None or name in one.name]
    outcomes: list[HostileOutcome] = []
    failures: list[str] = []
    with HostileWorker() as worker, terminal.progress("hostile", len(schemas)) as steps:
        for schema in schemas:
            steps.note(schema.name)
            outcome = worker.run(schema)
            outcomes.append(outcome)
            failures += [f"{schema.name}: {one}" for one in failures_of(schema, outcome)]
            steps.advance()
    if not outcomes:
        failures.append(f"no schema of the suite has {name!r} in its name")
    columns = ("schema", "answer", "compile s", "peak MiB", "tokens", "walk s", "slowest token ms")
    terminal.table("hostile schemas", columns, (_row(one) for one in outcomes))
    return EvalResult(
        eval_name="hostile",
        failures=tuple(failures),
        warnings=(),
        settings={"max_seconds": MAX_SECONDS, "max_peak_bytes": MAX_PEAK_BYTES, "name": name},
        figures={"schemas": [msgspec.to_builtins(one) for one in outcomes]},
        environment=environment,
    )


def failures_of(schema: HostileSchema, outcome: HostileOutcome) -> list[str]:
    """What does not hold of one outcome."""
    failures = []
    if outcome.is_fault:
        failures.append(f"{outcome.error}: {outcome.message}")
    if outcome.compile_seconds > MAX_SECONDS:
        failures.append(f"compiling took {outcome.compile_seconds:.1f} s; the bound is {MAX_SECONDS:g} s")
    if outcome.walk_seconds > MAX_SECONDS:
        failures.append(f"a walk took {outcome.walk_seconds:.1f} s; the bound is {MAX_SECONDS:g} s")
    if outcome.peak_bytes > MAX_PEAK_BYTES:
        failures.append(f"{outcome.peak_bytes >> 20} MiB; the bound is {MAX_PEAK_BYTES >> 20} MiB")
    if outcome.error is None and schema.can_close and not outcome.is_closed:
        failures.append(f"a walk did not end within {outcome.num_tokens} tokens")
    return failures


def _row(outcome: HostileOutcome) -> tuple[str, ...]:
    answer = "grammar" if outcome.error is None else outcome.error.removesuffix("Error")
    walked = outcome.num_tokens > 0
    return (
        outcome.name,
        answer,
        f"{outcome.compile_seconds:.3f}",
        f"{outcome.peak_bytes / 2**20:.0f}",
        str(outcome.num_tokens) if walked else "",
        f"{outcome.walk_seconds:.2f}" if walked else "",
        f"{outcome.slowest_token_seconds * 1000:.1f}" if walked else "",
    )
