"""GroupResult: one workload, measured by a plain and a drafting engine in turns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from specdec.engine import Engine
from specdec.evals.acceptance_rates import AcceptanceRates, acceptance_rates, broken_sum_rule, sum_stats
from specdec.evals.driver import Run, drive, request_of
from specdec.evals.spread import Spread
from specdec.evals.validity import ValidityCount
from specdec.evals.workload import Task
from specdec.request import RequestOutput, SamplingParams

_NUM_WARM_UP_TOKENS = 8


class GroupResult(msgspec.Struct, frozen=True, kw_only=True):
    """One workload, with or without its schemas."""

    group: str
    num_requests: int
    num_differing: int
    """Requests whose tokens differ from the plain engine's: none with exact arithmetic."""
    rates: AcceptanceRates
    rates_by_category: dict[str, AcceptanceRates]
    plain_tokens_per_second: Spread
    speculative_tokens_per_second: Spread
    speedup: Spread
    """Of each pair of neighbouring runs."""
    validity: dict[str, object] | None
    """Of both engines' answers in all repeats; None without a schema."""


def measure_group(
    name: str,
    tasks: Sequence[Task],
    plain: Engine,
    drafting: Engine,
    params: SamplingParams,
    repeats: int,
    concurrency: int,
    on_run: Callable[[], None],
) -> tuple[GroupResult, list[str]]:
    """Interleaved runs of both engines, the first mover changing each time."""
    validity = ValidityCount()
    runs: dict[Engine, list[Run]] = {plain: [], drafting: []}
    for engine in (plain, drafting):
        # Compiles the schemas and warms the allocator; not timed.
        _run(engine, tasks, msgspec.structs.replace(params, max_tokens=_NUM_WARM_UP_TOKENS), concurrency)
    for repeat in range(repeats):
        for engine in (plain, drafting) if repeat % 2 == 0 else (drafting, plain):
            run = _run(engine, tasks, params, concurrency)
            runs[engine].append(run)
            _judge(validity, tasks, run.outputs)
            on_run()
    answered = runs[drafting][0].outputs
    faults = [f"{name}, {fault['task']}: {fault['why']}" for fault in validity.violations]
    if any(engine.stats().num_kv_blocks_in_use for engine in (plain, drafting)):
        faults.append(f"{name}: blocks are in use with nothing running")
    faults += [
        f"{name}, {task.name}: {broken}"
        for run in runs[drafting]
        for task, output in zip(tasks, run.outputs, strict=True)
        if (broken := broken_sum_rule(output.choices[0].speculation)) is not None
    ]
    categories: dict[str, list[RequestOutput]] = defaultdict(list)
    for task, output in zip(tasks, answered, strict=True):
        categories[task.category].append(output)
    pairs = list(zip(runs[plain], runs[drafting], strict=True))
    group = GroupResult(
        group=name,
        num_requests=len(tasks),
        num_differing=sum(
            own.choices[0].token_ids != other.choices[0].token_ids
            for own, other in zip(runs[plain][0].outputs, answered, strict=True)
        ),
        rates=_rates(answered),
        rates_by_category={category: _rates(outputs) for category, outputs in categories.items()},
        plain_tokens_per_second=Spread.of([run.tokens_per_second for run in runs[plain]]),
        speculative_tokens_per_second=Spread.of([run.tokens_per_second for run in runs[drafting]]),
        speedup=Spread.of([own.tokens_per_second / other.tokens_per_second for other, own in pairs]),
        validity=validity.as_json() if validity.num_answers else None,
    )
    return group, faults


def _run(engine: Engine, tasks: Sequence[Task], params: SamplingParams, concurrency: int) -> Run:
    requests = [request_of(engine, task, msgspec.structs.replace(params, seed=i)) for i, task in enumerate(tasks)]
    return drive(engine, requests, concurrency=concurrency)


def _judge(validity: ValidityCount, tasks: Sequence[Task], outputs: Sequence[RequestOutput]) -> None:
    for task, output in zip(tasks, outputs, strict=True):
        if task.schema is not None:
            choice = output.choices[0]
            validity.add(name=task.name, text=choice.text, finish_reason=str(choice.finish_reason), schema=task.schema)


def _rates(outputs: Sequence[RequestOutput]) -> AcceptanceRates:
    choices = [output.choices[0] for output in outputs]
    return acceptance_rates(
        sum_stats(choice.speculation for choice in choices),
        num_generated_tokens=sum(len(choice.token_ids) for choice in choices),
    )
