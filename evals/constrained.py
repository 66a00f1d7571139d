"""Constrained: many sampled answers under schemas, in process or from a server, every finished one judged."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

import msgspec

from specdec.config import EngineConfig
from specdec.evals.chat_client import ask_all
from specdec.evals.driver import build_engine, drive, request_of
from specdec.evals.environment import Environment, describe_environment
from specdec.evals.result import EvalResult, model_label
from specdec.evals.terminal import Terminal
from specdec.evals.validity import ValidityCount
from specdec.evals.workload import Task, load_workload
from specdec.request import SamplingParams
from specdec.speculative import SpeculativeConfig


class ConstrainedRun(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked: the structured tasks in turn, each with a seed of its own."""

    num_requests: int
    concurrency: int
    temperature: float
    max_tokens: int
    first_seed: int = 0
    has_tight_budgets: bool = False
    """Draw max_tokens for each request between the schema's minimum and three times it; for servers."""

    def tasks(self) -> list[Task]:
        tasks = load_workload("structured")
        return [tasks[i % len(tasks)] for i in range(self.num_requests)]


def run_with_engine(
    run: ConstrainedRun,
    *,
    model: str,
    dtype: Literal["auto", "bfloat16", "float16", "float32"],
    exact: bool,
    speculative: SpeculativeConfig | None,
    terminal: Terminal,
) -> EvalResult:
    """Against an engine built here."""
    environment = describe_environment()
    engine = build_engine(
        EngineConfig(
            model=model,
            dtype=dtype,
            exact=exact,
            speculative=speculative,
            max_num_seqs=max(run.concurrency, 16),
            check_outputs=True,
        )
    )
    environment = msgspec.structs.replace(environment, num_threads=engine.describe().num_threads)
    tasks = run.tasks()
    requests = [
        request_of(
            engine,
            task,
            SamplingParams(temperature=run.temperature, max_tokens=run.max_tokens, seed=run.first_seed + i),
        )
        for i, task in enumerate(tasks)
    ]
    counts = _Counts()
    with terminal.progress("constrained", len(requests)) as steps:
        driven = drive(engine, requests, concurrency=run.concurrency, on_finish=lambda _: steps.advance())
    for task, output in zip(tasks, driven.outputs, strict=True):
        choice = output.choices[0]
        counts.add(task, choice.text, str(choice.finish_reason))
    failures = counts.failures()
    if engine.stats().num_kv_blocks_in_use:
        failures.append(f"{engine.stats().num_kv_blocks_in_use} blocks are in use with nothing running")
    return _result(
        run,
        counts,
        failures,
        terminal,
        settings={"model": model_label(model), "dtype": dtype, "exact": exact, "speculative": speculative},
        figures={
            "seconds": driven.seconds,
            "num_generated_tokens": driven.num_generated_tokens,
            "tokens_per_second": driven.tokens_per_second,
        },
        environment=environment,
    )


def run_on_server(
    run: ConstrainedRun, *, url: str, model: str | None, api_key: str | None, terminal: Terminal
) -> EvalResult:
    """Against an OpenAI-compatible server; a request that it does not answer is a failure."""
    environment = describe_environment()
    tasks = run.tasks()
    counts = _Counts()
    failures: list[str] = []
    start = time.perf_counter()
    with terminal.progress("constrained", len(tasks)) as steps:
        answers = ask_all(
            url,
            tasks,
            model=model,
            api_key=api_key,
            temperature=run.temperature,
            max_tokens=run.max_tokens,
            first_seed=run.first_seed,
            concurrency=run.concurrency,
            on_answer=steps.advance,
            has_tight_budgets=run.has_tight_budgets,
        )
    seconds = time.perf_counter() - start
    for task, answer in zip(tasks, answers, strict=True):
        if answer.error is None:
            counts.add(task, answer.text, answer.finish_reason)
        else:
            failures.append(f"{task.name}: {answer.error}")
    failures += counts.failures()
    return _result(
        run,
        counts,
        failures,
        terminal,
        settings={"url": url, "model": model},
        figures={
            "seconds": seconds,
            "num_generated_tokens": sum(answer.num_completion_tokens for answer in answers),
            "mean_max_tokens": sum(answer.max_tokens for answer in answers) / max(1, len(answers)),
            "num_unanswered": sum(answer.error is not None for answer in answers),
        },
        environment=environment,
    )


class _Counts:
    """Validity in all and by task."""

    def __init__(self) -> None:
        self.all = ValidityCount()
        self.by_task: dict[str, ValidityCount] = defaultdict(ValidityCount)

    def add(self, task: Task, text: str, finish_reason: str) -> None:
        assert task.schema is not None, "structured tasks have schemas"
        for count in (self.all, self.by_task[task.name]):
            count.add(name=task.name, text=text, finish_reason=finish_reason, schema=task.schema)

    def failures(self) -> list[str]:
        return [f"{each['task']}: {each['why']}" for each in self.all.violations]


def _result(
    run: ConstrainedRun,
    counts: _Counts,
    failures: list[str],
    terminal: Terminal,
    *,
    settings: Mapping[str, object],
    figures: Mapping[str, object],
    environment: Environment,
) -> EvalResult:
    terminal.table(
        f"constrained answers, temperature {run.temperature:g}, at most {run.max_tokens} tokens",
        ("task", "answers", "valid", "cut by length", "violations"),
        (
            (name, str(c.num_answers), str(c.num_valid), str(c.num_cut_by_length), str(len(c.violations)))
            for name, c in [*counts.by_task.items(), ("all", counts.all)]
        ),
    )
    by_task = {
        name: {"num_answers": c.num_answers, "num_valid": c.num_valid, "num_cut_by_length": c.num_cut_by_length}
        for name, c in counts.by_task.items()
    }
    return EvalResult(
        eval_name="constrained",
        failures=tuple(failures),
        warnings=(),
        settings={**settings, "run": run},
        figures={**counts.all.as_json(), **figures, "by_task": by_task},
        environment=environment,
    )
