"""Stress: constrained requests with everything drawn at random, in a pool too small for them, some of them aborted.

Who drafts, how much, how drafts are verified, whether they are masked, temperature, penalties, seeds, predictions and
the moment of an abort are drawn for each request. Every answer that ends must validate, every block must come back, and
every drafted token must have ended as exactly one thing.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from specdec.config import EngineConfig
from specdec.engine import Engine
from specdec.evals.acceptance_rates import broken_sum_rule
from specdec.evals.driver import build_engine, request_of
from specdec.evals.environment import describe_environment
from specdec.evals.progress import Steps
from specdec.evals.result import EvalResult, model_label
from specdec.evals.terminal import Terminal
from specdec.evals.validity import ValidityCount
from specdec.evals.workload import Task, load_workload
from specdec.request import FinishReason, Request, SamplingParams
from specdec.request_output import OutputCollector
from specdec.speculative import (
    CHAIN,
    MAX_DRAFT_TOKENS,
    NONE,
    PROPOSERS,
    SYNTHETIC,
    SpeculativeConfig,
    SpeculativeParams,
    Verification,
)

_BLOCK_SIZE: Final = 16
_MAX_PROMPT_TOKENS: Final = 400
"""Longer prompts take most of the time, and say nothing more."""


class StressRun(msgspec.Struct, frozen=True, kw_only=True):
    """How much, and of what."""

    num_requests: int = 2000
    concurrency: int = 16
    max_tokens: int = 64
    abort_share: float = 0.1
    pool_share: float = 0.5
    """Of the blocks that all requests at once could need, those that there are."""
    seed: int = 0


def run_stress(
    run: StressRun,
    *,
    model: str,
    draft: str | None,
    dtype: Literal["auto", "bfloat16", "float16", "float32"],
    terminal: Terminal,
) -> EvalResult:
    """Raises ConfigError for a model that cannot be had."""
    environment = describe_environment()
    chance = random.Random(run.seed)
    config = EngineConfig(
        model=model,
        dtype=dtype,
        max_num_seqs=run.concurrency,
        block_size=_BLOCK_SIZE,
        speculative=SpeculativeConfig(model=draft),
        num_kv_blocks=_num_blocks(run),
        max_model_len=_MAX_PROMPT_TOKENS + 16 * run.max_tokens,
    )
    engine = build_engine(config)
    tasks = [
        task
        for task in load_workload("structured")
        if len(engine.tokenizer.encode_chat(task.chat())) <= _MAX_PROMPT_TOKENS
    ]
    methods = [CHAIN, NONE, *(name for name in PROPOSERS if name != SYNTHETIC and (draft or name != "draft_model"))]
    requests = [_request(engine, chance.choice(tasks), methods, run, chance) for _ in range(run.num_requests)]
    with terminal.progress("stress", run.num_requests) as steps:
        outcome = _drive(engine, requests, run, chance, steps)
    stats = engine.stats()
    failures = [f"{fault['task']}: {fault['why']}" for fault in outcome.validity.violations] + outcome.broken
    if stats.num_kv_blocks_in_use:
        failures.append(f"{stats.num_kv_blocks_in_use} blocks are in use with nothing running")
    if engine.has_unfinished_requests():
        failures.append("requests are unfinished after all have ended")
    total_broken = broken_sum_rule(stats.speculation)
    if total_broken is not None:
        failures.append(f"all requests together: {total_broken}")
    num_ended = outcome.num_aborted + outcome.validity.num_answers
    if num_ended != run.num_requests:
        failures.append(f"{run.num_requests} requests were made, and {num_ended} ended")
    figures: dict[str, object] = {
        **outcome.validity.as_json(),
        "num_aborted": outcome.num_aborted,
        "num_preemptions": stats.num_preemptions,
        "num_steps": stats.num_steps,
        "speculation": stats.speculation,
        "requests_by": {name: dict(sorted(counts.items())) for name, counts in outcome.drawn.items()},
    }
    warnings = () if stats.num_preemptions else ("nothing was preempted: the pool was not too small",)
    _show(figures, terminal)
    return EvalResult(
        eval_name="stress",
        failures=tuple(failures),
        warnings=warnings,
        settings={
            "model": model_label(model),
            "draft": draft and model_label(draft),
            "run": run,
            "num_kv_blocks": config.num_kv_blocks,
        },
        figures=figures,
        environment=environment,
    )


class _Outcome:
    """What became of the requests, as they end."""

    def __init__(self) -> None:
        self.validity = ValidityCount()
        self.num_aborted = 0
        self.broken: list[str] = []
        self.drawn: dict[str, Counter[str]] = {"method": Counter(), "verification": Counter(), "temperature": Counter()}


def _num_blocks(run: StressRun) -> int:
    """Room for the longest request of all, and for a part of as many as run at once."""
    longest = math.ceil((_MAX_PROMPT_TOKENS + 16 * run.max_tokens) / _BLOCK_SIZE)
    usual = math.ceil((_MAX_PROMPT_TOKENS / 2 + run.max_tokens) / _BLOCK_SIZE)
    return max(longest + 1, int(run.pool_share * run.concurrency * usual))


def _request(
    engine: Engine, task: Task, methods: Sequence[str], run: StressRun, chance: random.Random
) -> tuple[Task, Request]:
    length = chance.choice([None, None, 0, 1, 3, 8, MAX_DRAFT_TOKENS])
    params = SamplingParams(
        temperature=chance.choice([0.0, 0.7, 1.0, 1.5]),
        top_p=chance.choice([1.0, 1.0, 0.9]),
        frequency_penalty=chance.choice([0.0, 0.0, 0.8]),
        logprobs=chance.choice([None, None, 2]),
        seed=chance.getrandbits(32),
        max_tokens=run.max_tokens,
    )
    speculative = SpeculativeParams(
        method=chance.choice(list(methods)),
        num_speculative_tokens=length,
        verification=chance.choice(list(Verification)),
        mask_drafts=chance.random() < 0.8,
    )
    if chance.random() < 0.3:
        words = task.messages[-1].content.split()
        task = msgspec.structs.replace(task, prediction=" ".join(chance.sample(words, len(words) // 2)))
    return task, request_of(engine, task, params, speculative=speculative)


def _drive(
    engine: Engine, requests: Sequence[tuple[Task, Request]], run: StressRun, chance: random.Random, steps: Steps
) -> _Outcome:
    outcome = _Outcome()
    waiting = list(reversed(requests))
    running: dict[str, tuple[Task, Request, OutputCollector]] = {}
    doomed: dict[str, int] = {}
    """Requests that are aborted after so many more steps."""
    while waiting or running:
        while waiting and len(running) < run.concurrency:
            task, request = waiting.pop()
            engine.add_request(engine.prepare(request))
            running[request.request_id] = task, request, OutputCollector(request)
            if chance.random() < run.abort_share:
                doomed[request.request_id] = chance.randrange(run.max_tokens)
            _count(outcome, request)
        for request_id in [request_id for request_id in doomed if request_id in running]:
            doomed[request_id] -= 1
            if doomed[request_id] < 0:
                engine.abort_request(request_id)
                del running[request_id]
                outcome.num_aborted += 1
                steps.advance()
        for delta in engine.step() if running else ():
            task, _, collector = running[delta.request_id]
            collector.add(delta)
            if delta.finish_reason is not None:
                del running[delta.request_id]
                _judge(outcome, task, collector)
                steps.advance()
    return outcome


def _count(outcome: _Outcome, request: Request) -> None:
    assert request.speculative is not None, "every request says how it is speculated on"
    outcome.drawn["method"][str(request.speculative.method)] += 1
    outcome.drawn["verification"][str(request.speculative.verification)] += 1
    outcome.drawn["temperature"][f"{request.sampling_params.temperature:g}"] += 1


def _judge(outcome: _Outcome, task: Task, collector: OutputCollector) -> None:
    choice = collector.output().choices[0]
    assert task.schema is not None, "the tasks are the structured ones"
    reason = str(choice.finish_reason)
    outcome.validity.add(name=task.name, text=choice.text, finish_reason=reason, schema=task.schema)
    if choice.finish_reason is not FinishReason.STOP:
        outcome.broken.append(f"{task.name}: it ended for {reason}; a budget that is large enough always closes")
    broken = broken_sum_rule(choice.speculation)
    if broken is not None:
        outcome.broken.append(f"{task.name}: {broken}")


def _show(figures: dict[str, object], terminal: Terminal) -> None:
    names = ("num_answers", "num_valid", "num_violations", "num_aborted", "num_preemptions", "num_steps")
    terminal.table(
        "stress",
        ("", *(name.removeprefix("num_") for name in names)),
        (("requests", *(str(figures[name]) for name in names)),),
    )
