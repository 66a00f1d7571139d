"""Acceptance over HTTP: the same tasks, answered by an OpenAI-compatible server, plainly and by each arm in turns.

A specdec takes each request's own speculation and traces it, in runs of their own that are not timed. Of any other
server there is one arm, as it was started, and what it drafted is known as far as it reports it.
"""

from __future__ import annotations

import itertools
import secrets
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from specdec.evals.acceptance import PREDICTED, AcceptanceGrid, AcceptanceSize
from specdec.evals.acceptance_arm import Arm, arms_of
from specdec.evals.acceptance_group import (
    ArmResult,
    GroupResult,
    ReportedAcceptance,
    coloured,
    rates_of,
    speedups,
)
from specdec.evals.acceptance_rates import broken_sum_rule
from specdec.evals.acceptance_tables import show_groups
from specdec.evals.break_off import BreakOff, break_off
from specdec.evals.chat_stream import ChatServer, ReportedSpeculation, StreamedAnswer
from specdec.evals.environment import describe_environment, load_warning
from specdec.evals.result import EvalResult
from specdec.evals.spread import Spread
from specdec.evals.terminal import Terminal
from specdec.evals.validity import ValidityCount
from specdec.evals.workload import Task, spread_by_length
from specdec.request import CompletionOutput, FinishReason
from specdec.sequence import SpeculationCounts
from specdec.speculative import SpeculativeParams

AS_SERVED: Final = "as served"
_REMEMBERS: Final = (
    "the server may remember what earlier rounds asked and answered; with a prefix cache, prompts that come again are "
    "not computed again"
)


class _Run(msgspec.Struct, frozen=True, kw_only=True):
    """One arm's answers to a group, in the order of its tasks."""

    answers: list[StreamedAnswer]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.num_tokens for answer in self.answers) / self.seconds

    @property
    def seconds_per_token(self) -> float | None:
        """Between tokens of one request; the first text is taken for one token."""
        num_tokens = sum(max(0, answer.num_tokens - 1) for answer in self.answers)
        return sum(answer.decoding_seconds for answer in self.answers) / num_tokens if num_tokens else None

    @property
    def seconds_to_first_token(self) -> float:
        return statistics.median(answer.first_token_seconds for answer in self.answers)


def run_acceptance_on_server(
    *,
    url: str,
    model: str | None,
    api_key: str | None,
    temperature: float,
    groups: dict[str, list[Task]],
    grid: AcceptanceGrid | None,
    size: AcceptanceSize,
    concurrencies: Sequence[int],
    terminal: Terminal,
) -> EvalResult:
    """Measure every group and print the tables; without a grid, drafting is as the server was started.

    Raises EngineError where the server cannot be reached, or answers nothing.
    """
    environment = describe_environment()
    server = ChatServer(url, model=model, api_key=api_key)
    if not server.takes_speculative and len(groups) > 1:
        # Not every server takes a prediction; who asks for that group alone gets the answer of this one.
        groups = {name: tasks for name, tasks in groups.items() if name != PREDICTED}
    arms = {name: _arms(grid, name, server) for name in groups}
    failures: list[str] = []
    left_out: dict[str, str] = {}
    results: list[GroupResult] = []
    num_runs = sum(len(own) for own in arms.values()) * (size.rounds + 1) * len(concurrencies)
    with terminal.progress("acceptance", num_runs) as steps, break_off(terminal.say) as asked:
        for name, tasks in groups.items():
            if asked.is_asked:
                break
            sample = _Group(server, spread_by_length(tasks, size.num_tasks), temperature, size.max_tokens)
            taken, refused = sample.answerable(arms[name][0], concurrency=max(concurrencies))
            left_out |= refused
            if not taken:
                failures.append(f"{name}: none of its tasks is taken: {next(iter(refused.values()))}")
                continue
            for concurrency in concurrencies:
                if asked.is_asked:
                    break
                steps.note(f"{name}, {concurrency} at once")
                group = _Group(server, taken, temperature, size.max_tokens)
                result, faults = group.measure(
                    name, arms[name], rounds=size.rounds, concurrency=concurrency, on_run=steps.advance, asked=asked
                )
                failures += [f"{name}, concurrency {concurrency}, {fault}" for fault in faults]
                results += [] if result is None else [result]
    failures += asked.failures()
    show_groups(results, terminal)
    warnings = [
        *(f"left out {name}, which the server does not take: {why}" for name, why in left_out.items()),
        load_warning(environment),
        None if server.takes_speculative else _REMEMBERS,
    ]
    return EvalResult(
        eval_name="acceptance",
        failures=tuple(failures),
        warnings=tuple(warning for warning in warnings if warning is not None),
        settings={
            "url": url,
            "model": server.model,
            "takes_speculative": server.takes_speculative,
            "temperature": temperature,
            "grid": grid,
            "concurrencies": concurrencies,
            "size": size,
        },
        figures={"groups": results},
        environment=environment,
    )


def _arms(grid: AcceptanceGrid | None, group: str, server: ChatServer) -> list[Arm]:
    """The plain one first, where the server can be asked for it."""
    is_predicted = group == PREDICTED
    as_served = Arm(name=AS_SERVED, params=SpeculativeParams(enabled=True), is_predicted=is_predicted)
    if not server.takes_speculative:
        return [as_served]
    if grid is None:
        return [*arms_of((), ()), as_served]
    return arms_of(
        grid.methods,
        grid.lengths,
        masks=grid.masks,
        verification=grid.verification,
        is_predicted=is_predicted,
        has_control=grid.has_control,
    )


class _Group:
    """Tasks of a group, as requests."""

    def __init__(self, server: ChatServer, tasks: Sequence[Task], temperature: float, max_tokens: int) -> None:
        self._server = server
        self._tasks = tasks
        self._temperature = temperature
        self._max_tokens = [max_tokens] * len(tasks)

    def answerable(self, arm: Arm, *, concurrency: int) -> tuple[list[Task], dict[str, str]]:
        """The tasks that the server takes, and by name why it does not take the others."""
        cache_salt = secrets.token_hex(16)
        # One token tells, or, under a schema, the fewest that it needs.
        bodies = [self._body(i, arm, cache_salt, is_traced=False) | {"max_tokens": 1} for i in range(len(self._tasks))]
        answers, _ = self._server.ask_all(bodies, concurrency=concurrency)
        asked = list(zip(self._tasks, answers, strict=True))
        return (
            [task for task, answer in asked if not answer.is_refused],
            {task.name: answer.error or "" for task, answer in asked if answer.is_refused},
        )

    def measure(
        self,
        name: str,
        arms: Sequence[Arm],
        *,
        rounds: int,
        concurrency: int,
        on_run: Callable[[], None],
        asked: BreakOff,
    ) -> tuple[GroupResult | None, list[str]]:
        """An untimed run of each arm, traced where that is possible, then rounds of one run an arm.

        And what did not hold; no result where there is a request that was not answered. Where an end is asked for there
        are fewer rounds, and no result of none.
        """
        traced: dict[str, _Run] = {}
        runs: dict[str, list[_Run]] = defaultdict(list)
        for number, place in itertools.product(range(-1, rounds), range(len(arms))):
            if asked.is_asked:
                break
            arm = arms[(max(0, number) + place) % len(arms)]
            run = self._run(arm, concurrency, is_traced=number < 0)
            on_run()
            errors = [
                f"{arm.name}: {task.name}: {answer.error}"
                for task, answer in zip(self._tasks, run.answers, strict=True)
                if answer.error is not None
            ]
            if errors:
                return None, errors
            if number < 0:
                traced[arm.name] = run
                # A schema may need more tokens than were offered: later runs offer them at once.
                self._max_tokens = [answer.max_tokens for answer in run.answers]
            else:
                runs[arm.name].append(run)
        num_whole = min(len(runs[arm.name]) for arm in arms)
        if not num_whole:
            return None, []
        runs = {arm: own[:num_whole] for arm, own in runs.items()}
        faults: list[str] = []
        results = []
        for arm in arms:
            plain = runs[arms[0].name] if len(arms) > 1 else None
            result, own_faults = self._result(arm, traced[arm.name], runs[arm.name], plain)
            results.append(result)
            faults += [f"{arm.name}: {fault}" for fault in own_faults]
        group = GroupResult(group=name, concurrency=concurrency, num_requests=len(self._tasks), arms=tuple(results))
        return group, faults

    def _run(self, arm: Arm, concurrency: int, *, is_traced: bool) -> _Run:
        cache_salt = secrets.token_hex(16)
        bodies = [self._body(i, arm, cache_salt, is_traced=is_traced) for i in range(len(self._tasks))]
        answers, seconds = self._server.ask_all(bodies, concurrency=concurrency)
        return _Run(answers=answers, seconds=seconds)

    def _body(self, index: int, arm: Arm, cache_salt: str, *, is_traced: bool) -> dict[str, object]:
        task = self._tasks[index]
        body: dict[str, object] = {
            "messages": task.chat(),
            "temperature": self._temperature,
            "max_tokens": self._max_tokens[index],
            "seed": index,
        }
        if task.schema is not None:
            schema: dict[str, object] = {"name": task.name, "schema": task.schema, "strict": True}
            response_format: dict[str, object] = {"type": "json_schema", "json_schema": schema}
            if self._server.takes_speculative and task.unknown_format != "refuse":
                # A field of specdec's alone.
                response_format["options"] = {"unknown_format": task.unknown_format}
            body["response_format"] = response_format
        if arm.is_predicted and task.prediction is not None:
            body["prediction"] = {"type": "content", "content": task.prediction}
        if self._server.takes_speculative:
            params = msgspec.to_builtins(arm.params)
            body["speculative"] = {name: value for name, value in params.items() if value is not None}
            # What one run has finished is no corpus for the next one, which would draft its answers from themselves.
            body["cache_salt"] = cache_salt
            if is_traced:
                # Log-probabilities say which bytes each token is; they take time, but these runs are not timed.
                body |= {"specdec_trace": True, "logprobs": True}
        return body

    def _result(
        self, arm: Arm, traced: _Run, runs: Sequence[_Run], plain: Sequence[_Run] | None
    ) -> tuple[ArmResult, list[str]]:
        tasks = self._tasks
        validity = ValidityCount()
        for run in (traced, *runs):
            for task, answer in zip(tasks, run.answers, strict=True):
                if task.schema is not None:
                    reason = answer.finish_reason
                    validity.add(name=task.name, text=answer.text, finish_reason=reason, schema=task.schema)
        faults = [f"{fault['task']}: {fault['why']}" for fault in validity.violations]
        written = [answer.pieces for answer in traced.answers]
        outputs = [_output(answer) for answer in traced.answers if answer.drafts is not None]
        is_traced = len(outputs) == len(tasks)
        if is_traced:
            for task, output in zip(tasks, outputs, strict=True):
                broken = broken_sum_rule(output.speculation)
                if broken is not None:
                    faults.append(f"{task.name}: {broken}")
        members: dict[str, list[int]] = defaultdict(list)
        for i, task in enumerate(tasks):
            members[task.category].append(i)
        speedup, decoding_speedup = (None, None) if plain is None or runs is plain else speedups(runs, plain)
        return ArmResult(
            arm=arm.name,
            rates=rates_of(tasks, outputs, written) if is_traced else None,
            rates_by_category={
                category: rates_of(
                    [tasks[i] for i in indices], [outputs[i] for i in indices], [written[i] for i in indices]
                )
                for category, indices in members.items()
            }
            if is_traced
            else {},
            tokens_per_second=Spread.of([run.tokens_per_second for run in runs]),
            milliseconds_to_first_token=Spread.of([1e3 * run.seconds_to_first_token for run in runs]),
            milliseconds_per_token=Spread.of([1e3 * (run.seconds_per_token or 0.0) for run in runs]),
            speedup=speedup,
            decoding_speedup=decoding_speedup,
            num_differing=0
            if plain is None
            else sum(own.text != other.text for own, other in zip(runs[0].answers, plain[0].answers, strict=True)),
            validity=validity.as_json() if validity.num_answers else None,
            example=coloured(traced.answers[0].drafts or (), written[0]) if is_traced else (),
            reported=None if is_traced else _reported([answer for run in runs for answer in run.answers]),
        ), faults


def _output(answer: StreamedAnswer) -> CompletionOutput:
    """A traced answer as the engine has it, but for the ids of its tokens, which only count them here."""
    drafts = answer.drafts or ()
    counts = SpeculationCounts()
    num_left = len(answer.pieces)
    for draft in drafts:
        counts.record(draft.proposers, num_accepted=draft.num_accepted, was_cut=num_left <= draft.num_accepted)
        num_left -= draft.num_accepted + 1
    return CompletionOutput(
        index=0,
        text=answer.text,
        token_ids=tuple(range(len(answer.pieces))),
        finish_reason=FinishReason(answer.finish_reason),
        stop_reason=None,
        logprobs=None,
        seed=0,
        speculation=counts.freeze(),
        drafts=drafts,
    )


def _reported(answers: Sequence[StreamedAnswer]) -> ReportedAcceptance | None:
    """What the server's metrics of each answer come to; None where it gives none."""
    reports: list[ReportedSpeculation] = [each.speculation for each in answers if each.speculation is not None]
    if not reports:
        return None
    num_entries = max(len(report.acceptance_histogram) for report in reports)
    return ReportedAcceptance(
        num_drafts=sum(report.num_spec_steps for report in reports),
        num_draft_tokens=sum(report.num_draft_tokens for report in reports),
        num_accepted_tokens=sum(report.num_accepted_draft_tokens for report in reports),
        num_per_draft=tuple(
            sum(report.acceptance_histogram[i] for report in reports if i < len(report.acceptance_histogram))
            for i in range(num_entries)
        ),
    )
