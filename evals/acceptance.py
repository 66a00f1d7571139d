"""Acceptance: how many drafts the target takes, at which position, and what that gains over plain decoding.

Plain and speculative engines stand side by side in one process and take turns, so that whatever else the machine does
meets both. Prefix caching is off in both: a later repeat must not find its prompt computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from specdec.config import EngineConfig
from specdec.evals.acceptance_group import GroupResult, measure_group
from specdec.evals.driver import build_engine
from specdec.evals.environment import describe_environment, load_warning
from specdec.evals.result import EvalResult
from specdec.evals.terminal import Terminal
from specdec.evals.workload import Task, load_workload, spread_by_length
from specdec.request import SamplingParams
from specdec.speculative import SpeculativeConfig

_MAX_KV_BYTES = 256 * 2**20


class AcceptanceSize(msgspec.Struct, frozen=True, kw_only=True):
    """How much is generated."""

    num_tasks: int
    """Of each workload."""
    max_tokens: int
    repeats: int

    @classmethod
    def of_size(
        cls,
        size: Literal["quick", "standard", "full"],
        *,
        num_tasks: int | None = None,
        repeats: int | None = None,
        max_tokens: int | None = None,
    ) -> AcceptanceSize:
        """quick takes some of the tasks, the others all of them; what is given overrides the size."""
        default_tasks, default_tokens, default_repeats = {
            "quick": (6, 48, 2),
            "standard": (20, 128, 3),
            "full": (20, 384, 5),
        }[size]
        return cls(
            num_tasks=num_tasks or default_tasks,
            max_tokens=max_tokens or default_tokens,
            repeats=repeats or default_repeats,
        )


def run_acceptance(
    *,
    model: str,
    dtype: Literal["auto", "bfloat16", "float16", "float32"],
    exact: bool,
    speculative: SpeculativeConfig,
    temperature: float,
    concurrency: int,
    size: AcceptanceSize,
    terminal: Terminal,
) -> EvalResult:
    """Measure every group and print the tables."""
    environment = describe_environment()
    config = EngineConfig(
        model=model,
        dtype=dtype,
        exact=exact,
        max_num_seqs=max(16, concurrency),
        kv_cache_memory=_MAX_KV_BYTES,
        enable_prefix_caching=False,
    )
    plain = build_engine(config)
    drafting = build_engine(msgspec.structs.replace(config, speculative=speculative))
    description = drafting.describe()
    environment = msgspec.structs.replace(environment, num_threads=description.num_threads)
    params = SamplingParams(temperature=temperature, max_tokens=size.max_tokens)
    failures: list[str] = []
    groups: list[GroupResult] = []
    workloads = _groups(size.num_tasks)
    with terminal.progress("acceptance", len(workloads) * size.repeats * 2) as steps:
        for name, tasks in workloads.items():
            steps.note(name)
            group, faults = measure_group(
                name, tasks, plain, drafting, params, size.repeats, concurrency, steps.advance
            )
            groups.append(group)
            failures += faults
    _show(groups, terminal, speculative)
    warning = load_warning(environment)
    return EvalResult(
        eval_name="acceptance",
        failures=tuple(failures),
        warnings=() if warning is None else (warning,),
        settings={
            "model": model,
            "dtype": description.dtype,
            "exact": exact,
            "speculative": speculative,
            "temperature": temperature,
            "concurrency": concurrency,
            "size": size,
        },
        figures={"groups": groups},
        environment=environment,
    )


def _groups(num_tasks: int) -> dict[str, list[Task]]:
    structured = spread_by_length(load_workload("structured"), num_tasks)
    return {
        "free text": spread_by_length(load_workload("free_text"), num_tasks),
        "structured, no schema": [task.without_schema() for task in structured],
        "structured, schema": structured,
    }


def _show(groups: Sequence[GroupResult], terminal: Terminal, speculative: SpeculativeConfig) -> None:
    drafter = speculative.method if speculative.model is None else f"{speculative.method} {speculative.model}"
    terminal.table(
        f"acceptance, {drafter}, at most {speculative.num_speculative_tokens} tokens a draft",
        (
            "workload",
            "accepted",
            "mean length",
            "tokens/pass",
            "plain tok/s",
            "drafting tok/s",
            "speed-up",
            "valid",
            "cut",
        ),
        (
            (
                each.group,
                _percent(each.rates.acceptance_rate),
                _number(each.rates.mean_acceptance_length),
                _number(each.rates.tokens_per_target_pass),
                str(each.plain_tokens_per_second),
                str(each.speculative_tokens_per_second),
                str(each.speedup),
                "" if each.validity is None else f"{each.validity['num_valid']}/{_num_finished(each.validity)}",
                "" if each.validity is None else str(each.validity["num_cut_by_length"]),
            )
            for each in groups
        ),
    )
    num_positions = max(len(each.rates.unconditional_rates) for each in groups)
    terminal.table(
        "acceptance by position: of all drafts that long (of those accepted so far)",
        ("workload", *(str(position + 1) for position in range(num_positions))),
        (
            (
                each.group,
                *(
                    f"{_percent(of_all)} ({_percent(of_accepted)})"
                    for of_all, of_accepted in zip(
                        each.rates.unconditional_rates, each.rates.conditional_rates, strict=True
                    )
                ),
            )
            for each in groups
        ),
    )


def _num_finished(validity: dict[str, object]) -> int:
    answers, cut = validity["num_answers"], validity["num_cut_by_length"]
    assert isinstance(answers, int)
    assert isinstance(cut, int)
    return answers - cut


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
