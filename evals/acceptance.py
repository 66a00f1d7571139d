"""Acceptance: what became of drafts, by who drafted them and what was being written, and what they gain.

One engine answers every group of tasks in every arm, plain among them, in turns, so that whatever else the machine does
meets all of them. Prefix caching is off: a later round must not find its prompt computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.evals.acceptance_arm import Arm, arms_of
from specdec.evals.acceptance_group import GroupResult, measure_group
from specdec.evals.acceptance_tables import show_groups
from specdec.evals.break_off import break_off
from specdec.evals.driver import answerable, build_engine
from specdec.evals.environment import describe_environment, load_warning
from specdec.evals.result import EvalResult, model_label
from specdec.evals.terminal import Terminal
from specdec.evals.workload import Task, load_workload, spread_by_length
from specdec.request import SamplingParams
from specdec.speculative import CHAIN, SpeculativeConfig, Verification

_MAX_KV_BYTES: Final = 256 * 2**20

FREE_TEXT: Final = "free text"
PREDICTED: Final = "code_edit, predicted"
"""Group of the tasks that predict their answer, with the prediction; without it they are one of free text."""


class AcceptanceSize(msgspec.Struct, frozen=True, kw_only=True):
    """How much is generated."""

    num_tasks: int
    """Of each group."""
    max_tokens: int
    rounds: int
    num_parts: int = 1
    """Of the tasks; a round answers one of them."""

    @classmethod
    def of_size(
        cls,
        size: Literal["quick", "standard", "full"],
        *,
        num_tasks: int | None = None,
        rounds: int | None = None,
        max_tokens: int | None = None,
        num_parts: int = 1,
    ) -> AcceptanceSize:
        """quick is a look, full takes every task; what is given overrides the size."""
        default_tasks, default_tokens, default_rounds = {
            "quick": (4, 48, 2),
            "standard": (12, 96, 6),
            "full": (100, 192, 10),
        }[size]
        return cls(
            num_tasks=num_tasks or default_tasks,
            max_tokens=max_tokens or default_tokens,
            rounds=rounds or default_rounds,
            num_parts=num_parts,
        )


class AcceptanceGrid(msgspec.Struct, frozen=True, kw_only=True):
    """What is crossed with what."""

    methods: tuple[str, ...] = (CHAIN,)
    lengths: tuple[int | None, ...] = (None,)
    """Tokens of every draft; None is as many as pay."""
    masks: tuple[bool, ...] = (True,)
    """Whether the draft model is held to the grammar."""
    concurrencies: tuple[int, ...] = (1,)
    verification: Verification = Verification.COUPLED
    has_control: bool = False
    """Whether a second plain arm shows what noise alone makes of a speed-up."""


def run_acceptance(
    *,
    model: str,
    draft: str | None,
    dtype: Literal["auto", "bfloat16", "float16", "float32"],
    exact: bool,
    temperature: float,
    groups: dict[str, list[Task]],
    grid: AcceptanceGrid,
    size: AcceptanceSize,
    terminal: Terminal,
) -> EvalResult:
    """Measure every group and print the tables; `groups` are shipped_groups or a user's own. Raises ConfigError."""
    environment = describe_environment()
    engine = build_engine(
        EngineConfig(
            model=model,
            dtype=dtype,
            exact=exact,
            max_num_seqs=max(16, *grid.concurrencies),
            kv_cache_memory=_MAX_KV_BYTES,
            enable_prefix_caching=False,
            speculative=SpeculativeConfig(model=draft),
        )
    )
    description = engine.describe()
    environment = msgspec.structs.replace(environment, num_threads=description.num_threads)
    params = SamplingParams(temperature=temperature, max_tokens=size.max_tokens)
    failures: list[str] = []
    left_out: dict[str, str] = {}
    results: list[GroupResult] = []
    arms = {name: _arms(name, grid) for name in groups}
    num_runs = sum(len(arms[name]) for name in groups) * size.rounds * len(grid.concurrencies)
    with terminal.progress("acceptance", num_runs) as steps, break_off(terminal.say) as asked:
        for name, tasks in groups.items():
            if asked.is_asked:
                break
            taken, refused = answerable(engine, spread_by_length(tasks, size.num_tasks), params)
            left_out |= refused
            if not taken:
                failures.append(f"{name}: none of its tasks is taken: {next(iter(refused.values()))}")
                continue
            for concurrency in grid.concurrencies:
                if asked.is_asked:
                    break
                steps.note(f"{name}, {concurrency} at once")
                result, faults = measure_group(
                    name,
                    taken,
                    engine,
                    arms[name],
                    params,
                    rounds=size.rounds,
                    num_parts=size.num_parts,
                    concurrency=concurrency,
                    on_run=steps.advance,
                    asked=asked,
                )
                results += [] if result is None else [result]
                failures += faults
    failures += asked.failures()
    show_groups(results, terminal)
    warnings = [f"left out {name}, which the engine does not take: {why}" for name, why in left_out.items()]
    busy = load_warning(environment)
    return EvalResult(
        eval_name="acceptance",
        failures=tuple(failures),
        warnings=tuple(warnings) if busy is None else (*warnings, busy),
        settings={
            "model": model_label(model),
            "draft": draft and model_label(draft),
            "dtype": description.dtype,
            "exact": exact,
            "temperature": temperature,
            "grid": grid,
            "size": size,
        },
        figures={"groups": results},
        environment=environment,
    )


def shipped_groups(names: Sequence[str] = ()) -> dict[str, list[Task]]:
    """The shipped tasks by group, or those groups that are named. Raises ConfigError for a name that is none.

    A group is the structured tasks, with their schemas or without; all of free text, or one category of it.
    """
    structured, free_text = load_workload("structured"), load_workload("free_text")
    groups: dict[str, list[Task]] = {
        "structured": structured,
        "structured, no schema": [task.without_schema() for task in structured],
        FREE_TEXT: free_text,
    }
    for task in free_text:
        groups.setdefault(task.category, []).append(task)
    groups[PREDICTED] = [task for task in groups.get("code_edit", []) if task.prediction is not None]
    groups = {name: tasks for name, tasks in groups.items() if tasks}
    for name in names:
        if name not in groups:
            raise ConfigError(f"there is no group {name!r} of tasks; there are {', '.join(map(repr, groups))}")
    return {name: tasks for name, tasks in groups.items() if not names or name in names}


def dataset_group(path: Path, tasks: list[Task]) -> dict[str, list[Task]]:
    """A user's own tasks as one group, named as its file."""
    return {path.stem: tasks}


def _arms(group: str, grid: AcceptanceGrid) -> list[Arm]:
    return arms_of(
        grid.methods,
        grid.lengths,
        masks=grid.masks,
        verification=grid.verification,
        is_predicted=group == PREDICTED,
        has_control=grid.has_control,
    )
