"""GroupResult: one group of tasks, answered in every arm in turns."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from specdec.engine import Engine
from specdec.evals.acceptance_arm import Arm
from specdec.evals.acceptance_rates import AcceptanceRates, acceptance_rates, broken_sum_rule
from specdec.evals.driver import Run, drive, request_of
from specdec.evals.regions import Region, token_regions
from specdec.evals.spread import Spread
from specdec.evals.validity import ValidityCount
from specdec.evals.workload import Task
from specdec.request import CompletionOutput, RequestOutput, SamplingParams

_run_numbers = itertools.count()


class ColouredToken(msgspec.Struct, frozen=True):
    """One token of an example, with who drafted it."""

    text: str
    proposer: str | None
    """None where the target drew it by itself."""


class ArmResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one arm answered a group."""

    arm: str
    rates: AcceptanceRates
    rates_by_category: dict[str, AcceptanceRates]
    tokens_per_second: Spread
    milliseconds_per_token: Spread
    """Between tokens of one request (TPOT)."""
    speedup: Spread | None
    """In tokens a second, over the plain run of the same round; None for the plain arm."""
    decoding_speedup: Spread | None
    """In time between tokens: without the prompts' share."""
    num_differing: int
    """Requests whose tokens differ from the plain arm's: none with exact arithmetic and coupled verification."""
    validity: dict[str, object] | None
    """Of the answers of all rounds; None without a schema."""
    example: tuple[ColouredToken, ...]
    """The first task's answer."""


class GroupResult(msgspec.Struct, frozen=True, kw_only=True):
    """One group of tasks at one concurrency."""

    group: str
    concurrency: int
    num_requests: int
    arms: tuple[ArmResult, ...]
    """The plain one first."""


def measure_group(
    name: str,
    tasks: Sequence[Task],
    engine: Engine,
    arms: Sequence[Arm],
    params: SamplingParams,
    *,
    rounds: int,
    concurrency: int,
    on_run: Callable[[], None],
) -> tuple[GroupResult, list[str]]:
    """Rounds of one run an arm, the first mover changing from round to round; and what did not hold."""
    runs: dict[str, list[Run]] = defaultdict(list)
    # Compiles the schemas and fills the caches of masks, from which all arms gain alike; not timed.
    _run(engine, tasks, arms[0], params, concurrency)
    for number in range(rounds):
        first = number % len(arms)
        for arm in (*arms[first:], *arms[:first]):
            runs[arm.name].append(_run(engine, tasks, arm, params, concurrency))
            on_run()
    faults: list[str] = []
    results = []
    for arm in arms:
        result, own_faults = _arm_result(engine, tasks, arm, runs[arm.name], runs[arms[0].name])
        results.append(result)
        faults += [f"{name}, concurrency {concurrency}, {arm.name}: {fault}" for fault in own_faults]
    if engine.stats().num_kv_blocks_in_use:
        faults.append(f"{name}: blocks are in use with nothing running")
    group = GroupResult(group=name, concurrency=concurrency, num_requests=len(tasks), arms=tuple(results))
    return group, faults


def _run(engine: Engine, tasks: Sequence[Task], arm: Arm, params: SamplingParams, concurrency: int) -> Run:
    # What one run has finished is no corpus for the next one, which would draft its answers from themselves.
    salt = f"eval-run-{next(_run_numbers)}"
    requests = [
        request_of(
            engine,
            task if arm.is_predicted else task.without_prediction(),
            msgspec.structs.replace(params, seed=i),
            speculative=arm.params,
            cache_salt=salt,
            trace=True,
        )
        for i, task in enumerate(tasks)
    ]
    return drive(engine, requests, concurrency=concurrency)


def _arm_result(
    engine: Engine, tasks: Sequence[Task], arm: Arm, runs: Sequence[Run], plain: Sequence[Run]
) -> tuple[ArmResult, list[str]]:
    validity = ValidityCount()
    faults: list[str] = []
    for run in runs:
        for task, output in zip(tasks, run.outputs, strict=True):
            choice = output.choices[0]
            if task.schema is not None:
                reason = str(choice.finish_reason)
                validity.add(name=task.name, text=choice.text, finish_reason=reason, schema=task.schema)
            broken = broken_sum_rule(choice.speculation)
            if broken is not None:
                faults.append(f"{task.name}: {broken}")
    faults += [f"{fault['task']}: {fault['why']}" for fault in validity.violations]
    answered = runs[0].outputs
    pieces = engine.tokenizer.pieces(skip_special_tokens=False)
    members: dict[str, list[int]] = defaultdict(list)
    for i, task in enumerate(tasks):
        members[task.category].append(i)

    def rates(indices: Sequence[int]) -> AcceptanceRates:
        return _rates([tasks[i] for i in indices], [answered[i].choices[0] for i in indices], pieces)

    is_plain = runs is plain
    result = ArmResult(
        arm=arm.name,
        rates=rates(range(len(tasks))),
        rates_by_category={category: rates(indices) for category, indices in members.items()},
        tokens_per_second=Spread.of([run.tokens_per_second for run in runs]),
        milliseconds_per_token=Spread.of([1e3 * (run.seconds_per_token or 0.0) for run in runs]),
        speedup=None
        if is_plain
        else Spread.of([own.tokens_per_second / other.tokens_per_second for own, other in _pairs(runs, plain)]),
        decoding_speedup=None
        if is_plain
        else Spread.of(
            [
                (other.seconds_per_token or 0.0) / own.seconds_per_token
                for own, other in _pairs(runs, plain)
                if own.seconds_per_token
            ]
            or [1.0]
        ),
        num_differing=sum(
            own.choices[0].token_ids != other.choices[0].token_ids
            for own, other in zip(answered, plain[0].outputs, strict=True)
        ),
        validity=validity.as_json() if validity.num_answers else None,
        example=_coloured(answered[0], pieces),
    )
    return result, faults


def _pairs(runs: Sequence[Run], plain: Sequence[Run]) -> list[tuple[Run, Run]]:
    return list(zip(runs, plain, strict=True))


def _rates(tasks: Sequence[Task], choices: Sequence[CompletionOutput], pieces: Sequence[bytes]) -> AcceptanceRates:
    regions: list[list[tuple[Region, bool]]] | None = None
    if all(task.schema is not None for task in tasks):
        regions = [
            token_regions([pieces[token_id] for token_id in choice.token_ids], task.schema)
            for task, choice in zip(tasks, choices, strict=True)
        ]
    return acceptance_rates(choices, regions)


def _coloured(output: RequestOutput, pieces: Sequence[bytes]) -> tuple[ColouredToken, ...]:
    choice = output.choices[0]
    coloured = []
    token_ids = iter(choice.token_ids)
    for draft in choice.drafts:
        for i, token_id in zip(range(draft.num_accepted + 1), token_ids, strict=False):
            proposer = draft.proposers[i] if i < draft.num_accepted else None
            coloured.append(ColouredToken(pieces[token_id].decode(errors="replace"), proposer))
    return tuple(coloured)
