"""GroupResult: one group of tasks, answered in every arm in turns."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from specdec.engine import Engine
from specdec.evals.acceptance_arm import Arm
from specdec.evals.acceptance_rates import AcceptanceRates, acceptance_rates, broken_sum_rule
from specdec.evals.break_off import BreakOff
from specdec.evals.driver import Run, drive, request_of
from specdec.evals.regions import Region, token_regions
from specdec.evals.spread import Spread
from specdec.evals.validity import ValidityCount
from specdec.evals.workload import Task
from specdec.request import CompletionOutput, DraftTrace, RequestOutput, SamplingParams

_run_numbers = itertools.count()


class ColouredToken(msgspec.Struct, frozen=True):
    """One token of an example, with who drafted it."""

    text: str
    proposer: str | None
    """None where the target drew it by itself."""


class ReportedAcceptance(msgspec.Struct, frozen=True, kw_only=True):
    """Of all answers of an arm together, as a server's metrics of each have it."""

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_per_draft: tuple[int, ...]
    """Entry i: drafts of which exactly i tokens were accepted."""

    @property
    def mean_acceptance_length(self) -> float | None:
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else None


class ArmResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one arm answered a group."""

    arm: str
    rates: AcceptanceRates | None
    """None where a server does not say what it drafted."""
    rates_by_category: dict[str, AcceptanceRates]
    tokens_per_second: Spread
    milliseconds_per_token: Spread
    """Between tokens of one request (TPOT)."""
    milliseconds_to_first_token: Spread | None = None
    """Of a server: of each run, the median over its requests (TTFT)."""
    speedup: Spread | None
    """In tokens a second, over the plain run of the same round; None for the plain arm."""
    decoding_speedup: Spread | None
    """In time between tokens: without the prompts' share."""
    num_differing: int
    """Requests whose tokens differ from the plain arm's: none with exact arithmetic and coupled verification."""
    validity: dict[str, object] | None
    """Of the answers of all rounds; None without a schema."""
    example: tuple[ColouredToken, ...]
    """The first task's answer; nothing where nobody says who drafted it."""
    reported: ReportedAcceptance | None = None
    """What a server that gives no trace counts itself."""


class GroupResult(msgspec.Struct, frozen=True, kw_only=True):
    """One group of tasks at one concurrency."""

    group: str
    concurrency: int
    num_requests: int
    arms: tuple[ArmResult, ...]
    """The plain one first."""


class Drafting(NamedTuple):
    """An arm that drafted."""

    group: GroupResult
    arm: ArmResult
    rates: AcceptanceRates


def drafting_of(groups: Sequence[GroupResult]) -> list[Drafting]:
    """The arms that drafted, and of which it is known what became of that."""
    return [
        Drafting(group, arm, arm.rates)
        for group in groups
        for arm in group.arms
        if arm.rates is not None and arm.rates.num_drafts
    ]


def measure_group(
    name: str,
    tasks: Sequence[Task],
    engine: Engine,
    arms: Sequence[Arm],
    params: SamplingParams,
    *,
    rounds: int,
    num_parts: int,
    concurrency: int,
    on_run: Callable[[], None],
    asked: BreakOff,
) -> tuple[GroupResult | None, list[str]]:
    """Rounds of one run an arm, the first mover changing from round to round; and what did not hold.

    A round answers one of num_parts parts of the tasks, the next round the next part; at least one round a part. Where
    an end is asked for there are fewer rounds, and the result is of the tasks that every arm has answered by then, if
    there are any.
    """
    assert num_parts <= rounds, "every task is answered"
    parts = [tasks[start::num_parts] for start in range(min(num_parts, len(tasks)))]
    runs: dict[str, list[Run]] = defaultdict(list)
    # Compiles the schemas and fills the caches of masks, from which all arms gain alike; not timed.
    _run(engine, tasks, arms[0], params, concurrency)
    for number, place in itertools.product(range(rounds), range(len(arms))):
        if asked.is_asked:
            break
        arm = arms[(number + place) % len(arms)]
        runs[arm.name].append(_run(engine, parts[number % len(parts)], arm, params, concurrency))
        on_run()
    num_whole = min(len(runs[arm.name]) for arm in arms)
    if not num_whole:
        return None, []
    parts = parts[:num_whole]
    runs = {name: own[:num_whole] for name, own in runs.items()}
    faults: list[str] = []
    results = []
    for arm in arms:
        result, own_faults = _arm_result(engine, parts, arm, runs[arm.name], runs[arms[0].name])
        results.append(result)
        faults += [f"{name}, concurrency {concurrency}, {arm.name}: {fault}" for fault in own_faults]
    if engine.stats().num_kv_blocks_in_use:
        faults.append(f"{name}: blocks are in use with nothing running")
    group = GroupResult(group=name, concurrency=concurrency, num_requests=sum(map(len, parts)), arms=tuple(results))
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
    engine: Engine, parts: Sequence[Sequence[Task]], arm: Arm, runs: Sequence[Run], plain: Sequence[Run]
) -> tuple[ArmResult, list[str]]:
    validity = ValidityCount()
    faults: list[str] = []
    for part, run in zip(itertools.cycle(parts), runs, strict=False):
        for task, output in zip(part, run.outputs, strict=True):
            choice = output.choices[0]
            if task.schema is not None:
                reason = str(choice.finish_reason)
                validity.add(name=task.name, text=choice.text, finish_reason=reason, schema=task.schema)
            broken = broken_sum_rule(choice.speculation)
            if broken is not None:
                faults.append(f"{task.name}: {broken}")
    faults += [f"{fault['task']}: {fault['why']}" for fault in validity.violations]
    tasks = [task for part in parts for task in part]
    answered = [output for run in runs[: len(parts)] for output in run.outputs]
    plainly_answered = [output for run in plain[: len(parts)] for output in run.outputs]
    pieces = engine.tokenizer.pieces(skip_special_tokens=False)
    members: dict[str, list[int]] = defaultdict(list)
    for i, task in enumerate(tasks):
        members[task.category].append(i)

    def rates(indices: Sequence[int]) -> AcceptanceRates:
        return _rates([tasks[i] for i in indices], [answered[i].choices[0] for i in indices], pieces)

    speedup, decoding_speedup = (None, None) if runs is plain else speedups(runs, plain)
    result = ArmResult(
        arm=arm.name,
        rates=rates(range(len(tasks))),
        rates_by_category={category: rates(indices) for category, indices in members.items()},
        tokens_per_second=Spread.of([run.tokens_per_second for run in runs]),
        milliseconds_per_token=Spread.of([1e3 * (run.seconds_per_token or 0.0) for run in runs]),
        speedup=speedup,
        decoding_speedup=decoding_speedup,
        num_differing=sum(
            own.choices[0].token_ids != other.choices[0].token_ids
            for own, other in zip(answered, plainly_answered, strict=True)
        ),
        validity=validity.as_json() if validity.num_answers else None,
        example=_coloured(answered[0], pieces),
    )
    return result, faults


class TimedRun(Protocol):
    """What speeds are told by."""

    @property
    def tokens_per_second(self) -> float: ...

    @property
    def seconds_per_token(self) -> float | None: ...


def speedups(runs: Sequence[TimedRun], plain: Sequence[TimedRun]) -> tuple[Spread, Spread]:
    """Over the plain runs of the same rounds: in tokens a second, and in time between tokens."""
    pairs = list(zip(runs, plain, strict=True))
    decoding = [
        (other.seconds_per_token or 0.0) / own.seconds_per_token for own, other in pairs if own.seconds_per_token
    ]
    return Spread.of([own.tokens_per_second / other.tokens_per_second for own, other in pairs]), Spread.of(
        decoding or [1.0]
    )


def _rates(tasks: Sequence[Task], choices: Sequence[CompletionOutput], pieces: Sequence[bytes]) -> AcceptanceRates:
    written = [[pieces[token_id] for token_id in choice.token_ids] for choice in choices]
    return rates_of(tasks, choices, written)


def rates_of(
    tasks: Sequence[Task], choices: Sequence[CompletionOutput], written: Sequence[Sequence[bytes]]
) -> AcceptanceRates:
    """By region as well where every task has a schema; `written` is what the tokens of each answer write."""
    regions: list[list[tuple[Region, bool]]] | None = None
    if all(task.schema is not None for task in tasks):
        regions = [token_regions(own, task.schema) for task, own in zip(tasks, written, strict=True)]
    return acceptance_rates(choices, regions)


def _coloured(output: RequestOutput, pieces: Sequence[bytes]) -> tuple[ColouredToken, ...]:
    choice = output.choices[0]
    return coloured(choice.drafts, [pieces[token_id] for token_id in choice.token_ids])


def coloured(drafts: Sequence[DraftTrace], written: Sequence[bytes]) -> tuple[ColouredToken, ...]:
    """An answer's tokens, what each writes and who had drafted it."""
    tokens = []
    pieces = iter(written)
    for draft in drafts:
        for i, piece in zip(range(draft.num_accepted + 1), pieces, strict=False):
            proposer = draft.proposers[i] if i < draft.num_accepted else None
            tokens.append(ColouredToken(piece.decode(errors="replace"), proposer))
    return tuple(tokens)
