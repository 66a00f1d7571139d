"""Equivalence: the same requests through every proposer, pool and batch must give what the plain engine gives.

With exact arithmetic any difference is a failure, and so is a rejected draft where the target is its own draft. Without
it, the number of requests that differ is a measurement, as is the gap in log-probability at the first difference.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from specdec.config import EngineConfig
from specdec.evals.comparison import Difference
from specdec.evals.driver import build_engine, model_folder
from specdec.evals.environment import describe_environment
from specdec.evals.equivalence_cell import CellResult, answer, run_cell
from specdec.evals.equivalence_grid import Cell, DraftedBy, EquivalenceGrid
from specdec.evals.progress import Steps
from specdec.evals.result import EvalResult, model_label
from specdec.evals.shallow_draft import shallow_draft
from specdec.evals.terminal import Terminal
from specdec.evals.workload import Task, load_workload, spread_by_length, with_shared_prefixes
from specdec.grammars import GrammarCompiler, Vocabulary
from specdec.request import RequestOutput
from specdec.speculative import CHAIN, SpeculativeConfig
from specdec.tokenizer import Tokenizer

_TOP_LOGPROBS = 20
_MAX_KV_BYTES = 256 * 2**20

Tasks = Mapping[bool, Sequence[Task]]
"""The requests of the cells without a schema and of those with one."""
Asked = tuple[float, bool, bool]
"""Temperature, whether tokens are penalised, and whether there is a schema: what plain answers depend on."""
Answers = Mapping[Asked, Sequence[RequestOutput]]
"""The plain engine's."""


def run_equivalence(
    *, model: str, exact: bool, grid: EquivalenceGrid, terminal: Terminal, draft_cache: Path | None = None
) -> EvalResult:
    """Run the grid and print its table; `draft_cache` is where the shallow draft is kept, by default in the cache."""
    environment = describe_environment()
    folder = model_folder(model)
    drafts: dict[DraftedBy, str] = {"self_draft": model}
    if {"shallow_draft", "all"} & set(grid.drafted_by):
        shallow = str(shallow_draft(folder, num_layers=grid.num_draft_layers, cache=draft_cache))
        drafts |= {"shallow_draft": shallow, "all": shallow}
    tasks = {
        False: _mixed(load_workload("free_text"), grid),
        True: _mixed(load_workload("structured"), grid),
    }
    ample = EngineConfig(
        model=model,
        exact=exact,
        max_num_seqs=16,
        block_size=grid.block_size,
        kv_cache_memory=_MAX_KV_BYTES,
        check_outputs=True,
        # By default an engine drafts what a schema forces.
        speculative=None,
    )
    tokenizer = Tokenizer.from_folder(folder)
    tight = {
        with_schema: msgspec.structs.replace(
            ample,
            num_kv_blocks=_num_tight_blocks(tokenizer, tasks[with_schema], grid),
            max_num_batched_tokens=grid.tight_batched_tokens,
        )
        for with_schema in grid.schemas
    }
    num_all_cells, cells = len(grid.all_cells()), grid.cells()
    own_cells = {dtype: [cell for cell in cells if cell.dtype == dtype] for dtype in grid.dtypes}
    asked = {dtype: list(dict.fromkeys(map(_asked, own))) for dtype, own in own_cells.items()}
    num_plain = sum(map(len, asked.values()))
    selection = f"{len(cells)} of {num_all_cells} cells"
    terminal.notes.print(f"{selection}, and {num_plain} runs of the plain engine to hold them against")
    results: list[CellResult] = []
    with terminal.progress("equivalence", len(cells) + num_plain) as steps:
        for dtype, own in own_cells.items():
            plain = _plain_answers(msgspec.structs.replace(ample, dtype=dtype), asked[dtype], tasks, grid, steps)
            for (drafted_by, tight_with_schema), members in groupby(own, key=_engine_key):
                config = msgspec.structs.replace(
                    ample if tight_with_schema is None else tight[tight_with_schema],
                    dtype=dtype,
                    speculative=_speculative(drafted_by, drafts),
                )
                results += _cell_results(config, list(members), tasks, plain, grid, steps)
    _show(results, terminal, f"equivalence, {'exact' if exact else 'fast'} arithmetic, {selection}")
    return EvalResult(
        eval_name="equivalence",
        failures=tuple(_failures(results, exact=exact)),
        warnings=tuple(f"{_label(result.cell)}: {result.untested}" for result in results if result.untested),
        settings={"model": model_label(model), "exact": exact, "grid": grid},
        figures={"num_cells": len(results), "num_cells_in_grid": num_all_cells, **_figures(results)},
        environment=environment,
    )


def _engine_key(cell: Cell) -> tuple[DraftedBy, bool | None]:
    """Cells with the same key share an engine: a tight pool is cut to fit its requests."""
    return cell.drafted_by, cell.with_schema if cell.pool == "tight" else None


def _mixed(tasks: Sequence[Task], grid: EquivalenceGrid) -> list[Task]:
    """Short and long prompts, some of which continue another; the longest first, then the shortest.

    Predictions are for the cells that draft from one: whoever is given one drafts from it.
    """
    tasks = [task.without_prediction() for task in tasks]
    if grid.max_prompt_chars is not None:
        tasks = [task for task in tasks if task.num_chars <= grid.max_prompt_chars]
    mixed = with_shared_prefixes(spread_by_length(tasks, math.ceil(grid.num_requests * 2 / 3)))[: grid.num_requests]
    return [mixed[-1], *mixed[:-1]]


def _num_tight_blocks(tokenizer: Tokenizer, tasks: Sequence[Task], grid: EquivalenceGrid) -> int:
    """Room for the first request to its end and for the second one's prompt: as that one grows, one has to go."""
    prompts = [tokenizer.encode_chat(task.chat()) for task in tasks]
    compiler = GrammarCompiler(Vocabulary(tokenizer.token_bytes(), tokenizer.eos_token_ids))
    schemas = [task.schema_text for task in tasks]
    needs = [compiler.compile_json_schema(schema).minimum_tokens or 0 for schema in schemas if schema is not None]
    max_tokens = max(grid.max_tokens, *needs) if needs else grid.max_tokens
    num_longest = math.ceil((max(map(len, prompts)) + max_tokens) / grid.block_size)
    if len(prompts) == 1:
        return num_longest
    first_parting = next((i for i, (a, b) in enumerate(zip(*prompts[:2], strict=False)) if a != b), len(prompts[1]))
    num_shared = first_parting // grid.block_size
    return num_longest + math.ceil(len(prompts[1]) / grid.block_size) - num_shared


def _speculative(drafted_by: DraftedBy, drafts: Mapping[DraftedBy, str]) -> SpeculativeConfig | None:
    if drafted_by == "none":
        return None
    method = {"self_draft": "draft_model", "shallow_draft": "draft_model", "all": CHAIN}.get(drafted_by, drafted_by)
    return SpeculativeConfig(method=method, model=drafts.get(drafted_by))


def _asked(cell: Cell) -> Asked:
    return cell.temperature, cell.penalised, cell.with_schema


def _plain_answers(
    config: EngineConfig, asked: Sequence[Asked], tasks: Tasks, grid: EquivalenceGrid, steps: Steps
) -> Answers:
    """One request at a time, nothing cached but by the requests before."""
    if not asked:
        return {}
    # An engine's memory is that of its models: the one before must be gone.
    gc.collect()
    engine = build_engine(config)
    answers: dict[Asked, Sequence[RequestOutput]] = {}
    for temperature, penalised, with_schema in asked:
        steps.note(f"{config.dtype}, plain, {_asked_label(temperature, penalised, with_schema)}")
        answers[temperature, penalised, with_schema] = answer(
            engine,
            tasks[with_schema],
            temperature=temperature,
            penalised=penalised,
            max_tokens=grid.max_tokens,
            batch=1,
            logprobs=_TOP_LOGPROBS,
        )
        steps.advance()
    all_choices = [choice for outputs in answers.values() for output in outputs for choice in output.choices]
    assert not any(choice.speculation.num_draft_tokens for choice in all_choices), "what others are held against"
    return answers


def _cell_results(
    config: EngineConfig,
    cells: Sequence[Cell],
    tasks: Tasks,
    plain: Answers,
    grid: EquivalenceGrid,
    steps: Steps,
) -> list[CellResult]:
    """All cells of one engine."""
    gc.collect()
    steps.note(_label(cells[0]))
    engine = build_engine(config)
    results = []
    for cell in cells:
        steps.note(_label(cell))
        own_plain = plain[_asked(cell)]
        results.append(run_cell(engine, cell, tasks[cell.with_schema], own_plain, max_tokens=grid.max_tokens))
        steps.advance()
    return results


def _failures(results: Sequence[CellResult], *, exact: bool) -> Iterator[str]:
    for result in results:
        label = _label(result.cell)
        if result.broken:
            yield f"{label}: {result.broken}"
        if exact and result.num_differing:
            first = result.differences[0]
            where = "" if first.position is None else f" from number {first.position} on"
            yield (
                f"{label}: {result.num_differing} of {result.num_requests} requests differ; the first is "
                f"{first.task}, in its {first.what}{where}"
            )
        if exact and result.cell.drafted_by == "self_draft" and result.num_rejected_tokens:
            yield f"{label}: {result.num_rejected_tokens} drafts of the target itself were rejected"


def _figures(results: Sequence[CellResult]) -> dict[str, object]:
    num_differing = sum(result.num_differing for result in results)
    gaps = [each.logprob_gap for result in results for each in result.differences if each.logprob_gap is not None]
    return {
        "identical": num_differing == 0,
        "num_cells_untested": sum(result.untested is not None for result in results),
        "num_requests": sum(result.num_requests for result in results),
        "num_differing": num_differing,
        "num_generated_tokens": sum(result.num_generated_tokens for result in results),
        "num_draft_tokens": sum(result.num_draft_tokens for result in results),
        "num_preemptions": sum(result.num_preemptions for result in results),
        "self_draft_rejected": sum(
            result.num_rejected_tokens for result in results if result.cell.drafted_by == "self_draft"
        ),
        "logprob_gaps": {
            "num_known": len(gaps),
            "num_unknown": num_differing - len(gaps),
            "median": statistics.median(gaps) if gaps else None,
            "largest": max(gaps, default=None),
        },
        "cells": results,
    }


def _show(results: Sequence[CellResult], terminal: Terminal, title: str) -> None:
    terminal.table(
        title,
        (
            *("dtype", "drafts", "t", "penalties", "schema", "length", "batch", "pool", "differ"),
            *("drafted", "accepted", "rejected", "discarded", "preempted", "cached", "largest gap"),
        ),
        (
            (
                *_fields(each.cell),
                f"{each.num_differing}/{each.num_requests}",
                str(each.num_draft_tokens),
                str(each.num_accepted_tokens),
                str(each.num_rejected_tokens),
                str(each.num_discarded_tokens),
                str(each.num_preemptions),
                str(each.num_cached_tokens),
                _largest_gap(each.differences),
            )
            for each in results
        ),
    )


def _fields(cell: Cell) -> tuple[str, ...]:
    penalties, schema = ("yes" if each else "no" for each in (cell.penalised, cell.with_schema))
    length = "" if cell.drafted_by == "none" else "adaptive" if cell.draft_length is None else str(cell.draft_length)
    placement = str(cell.batch), cell.pool
    return cell.dtype, cell.drafted_by, f"{cell.temperature:g}", penalties, schema, length, *placement


def _label(cell: Cell) -> str:
    asked = _asked_label(*_asked(cell))
    length = cell.draft_length or "any length"
    return f"{cell.dtype}, {cell.drafted_by}, {asked}, drafts of {length}, batch {cell.batch}, {cell.pool} pool"


def _asked_label(temperature: float, penalised: bool, with_schema: bool) -> str:
    return f"t={temperature:g}{', penalties' if penalised else ''}, {'schema' if with_schema else 'free'}"


def _largest_gap(differences: Sequence[Difference]) -> str:
    if not differences:
        return ""
    gaps = [each.logprob_gap for each in differences if each.logprob_gap is not None]
    return f"{max(gaps):.4f}" if gaps else differences[0].note or "not tokens"
