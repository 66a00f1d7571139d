"""CellResult: one cell of the equivalence grid, run and compared."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from specdec.engine import Engine
from specdec.evals.acceptance_rates import broken_sum_rule, sum_stats
from specdec.evals.comparison import Difference, first_difference
from specdec.evals.driver import drive, request_of
from specdec.evals.equivalence_grid import Cell
from specdec.evals.workload import Task
from specdec.request import RequestOutput, SamplingParams
from specdec.speculative import SpeculativeParams

_FIRST_SEED = 1000
_PENALISED = SamplingParams(frequency_penalty=0.6, presence_penalty=0.3, repetition_penalty=1.15)


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one cell showed."""

    cell: Cell
    num_requests: int
    num_generated_tokens: int
    num_differing: int
    differences: tuple[Difference, ...]
    num_draft_tokens: int
    num_accepted_tokens: int
    num_rejected_tokens: int
    num_discarded_tokens: int
    num_preemptions: int
    num_cached_tokens: int
    """Prompt tokens found in the prefix cache."""
    untested: str | None
    """What the cell was there for but did not exercise."""
    broken: str | None
    """An invariant of the engine that did not hold afterwards."""


def answer(
    engine: Engine,
    tasks: Sequence[Task],
    *,
    temperature: float,
    penalised: bool,
    max_tokens: int,
    batch: int,
    draft_length: int | None = None,
    logprobs: int | None = None,
) -> tuple[RequestOutput, ...]:
    """The tasks' answers; a task's seed is its index, so that every run of the same tasks draws alike."""
    params = _PENALISED if penalised else SamplingParams()
    requests = [
        request_of(
            engine,
            task,
            msgspec.structs.replace(
                params, temperature=temperature, seed=_FIRST_SEED + i, max_tokens=max_tokens, logprobs=logprobs
            ),
            speculative=SpeculativeParams(num_speculative_tokens=draft_length),
        )
        for i, task in enumerate(tasks)
    ]
    return drive(engine, requests, concurrency=batch).outputs


def run_cell(
    engine: Engine, cell: Cell, tasks: Sequence[Task], plain: Sequence[RequestOutput], *, max_tokens: int
) -> CellResult:
    """Answer the tasks as the cell says and hold the answers against the plain ones."""
    num_preemptions_before = engine.stats().num_preemptions
    if cell.drafted_by in {"prediction", "chain", "all"}:
        tasks = [
            msgspec.structs.replace(task, prediction=_edited(output.choices[0].text))
            for task, output in zip(tasks, plain, strict=True)
        ]
    outputs = answer(
        engine,
        tasks,
        temperature=cell.temperature,
        penalised=cell.penalised,
        max_tokens=max_tokens,
        batch=cell.batch,
        draft_length=cell.draft_length,
    )
    after = engine.stats()
    choices = [output.choices[0] for output in outputs]
    differences = [
        difference
        for task, own, other in zip(tasks, plain, choices, strict=True)
        if (difference := first_difference(task.name, own.choices[0], other)) is not None
    ]
    total = sum_stats(choice.speculation for choice in choices)
    num_preemptions = after.num_preemptions - num_preemptions_before
    untested = None
    if cell.pool == "tight" and num_preemptions == 0:
        untested = "the pool was meant to be too small, but nothing was preempted"
    elif cell.drafted_by != "none" and cell.draft_length is not None and total.num_draft_tokens == 0:
        untested = "nothing was drafted"
    broken = next(filter(None, (broken_sum_rule(choice.speculation) for choice in choices)), None)
    if cell.drafted_by == "none" and total.num_draft_tokens:
        broken = f"{total.num_draft_tokens} tokens were drafted with nobody to draft"
    if after.num_kv_blocks_in_use:
        broken = f"{after.num_kv_blocks_in_use} blocks are in use with nothing running"
    if after.num_output_check_failures:
        broken = f"{after.num_output_check_failures} finished answers do not satisfy their schemas"
    return CellResult(
        cell=cell,
        num_requests=len(choices),
        num_generated_tokens=sum(len(choice.token_ids) for choice in choices),
        num_differing=len(differences),
        differences=tuple(differences),
        num_draft_tokens=total.num_draft_tokens,
        num_accepted_tokens=total.num_accepted_tokens,
        num_rejected_tokens=total.num_rejected_tokens,
        num_discarded_tokens=total.num_discarded_tokens,
        num_preemptions=num_preemptions,
        num_cached_tokens=sum(output.num_cached_tokens for output in outputs),
        untested=untested,
        broken=broken,
    )


def _edited(text: str) -> str:
    """A prediction that is right at first, then wrong, then right again."""
    third = len(text) // 3
    return f"{text[:third]} or not {text[third + third // 2 :]}"
