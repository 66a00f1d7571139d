"""`specdec bench faults`: what clients see when a part of the server is killed under load, and how soon.

It fails where a client is left without an answer or an error, a dead engine does not show in time, the server ends
later or otherwise than it should, or a compile worker's end is noticed beyond its request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Literal

from specdec.evals.environment import describe_environment
from specdec.evals.fault_scenarios import Fault, kill_engine, kill_worker, terminate
from specdec.evals.result import EvalResult
from specdec.evals.terminal import Terminal

ScenarioName = Literal["engine", "worker", "sigterm"]
SCENARIOS: Final[tuple[ScenarioName, ...]] = ("engine", "worker", "sigterm")


def run_faults(
    model: str, scenarios: Sequence[ScenarioName], *, num_clients: int, grace_s: float, terminal: Terminal
) -> EvalResult:
    """A server of its own for each scenario. Raises EngineError for one that does not start."""
    environment = describe_environment()
    # Any: what a coroutine is sent is asyncio's.
    begin: dict[ScenarioName, Callable[[], Coroutine[Any, Any, Fault]]] = {
        "engine": lambda: kill_engine(model, num_clients),
        "worker": lambda: kill_worker(model, num_clients),
        "sigterm": lambda: terminate(model, num_clients, grace_s),
    }
    faults = []
    with terminal.progress("bench faults", len(scenarios)) as steps:
        for scenario in scenarios:
            steps.note(scenario)
            faults.append(asyncio.run(begin[scenario]()))
            steps.advance()
    for fault in faults:
        _show(fault, terminal)
    return EvalResult(
        eval_name="bench-faults",
        failures=tuple(f"{fault.name}: {failure}" for fault in faults for failure in fault.failures),
        warnings=(),
        settings={"model": model, "num_clients": num_clients, "grace_s": grace_s},
        figures={"faults": faults},
        environment=environment,
    )


def _show(fault: Fault, terminal: Terminal) -> None:
    terminal.table(
        f"{fault.name}: requests in flight, and how soon they ended, s",
        ("what the client saw", "requests", "soonest", "median", "latest"),
        [
            (outcome, str(count.num), *(f"{each:.3f}" for each in (count.soonest_s, count.median_s, count.latest_s)))
            for outcome, count in fault.in_flight.items()
        ],
    )
    rows = [(f"sent afterwards: {outcome}", str(num)) for outcome, num in fault.sent_later.items()]
    rows += [(f"longest gap of a stream {when}, ms", f"{gap:.0f}") for when, gap in fault.longest_gap_ms.items()]
    if fault.seconds_to_503 is not None:
        rows.append(("/health is 503 after, s", f"{fault.seconds_to_503:.3f}"))
    if fault.seconds_to_exit is not None:
        rows.append(("the server has ended after, s", f"{fault.seconds_to_exit:.3f}"))
        rows.append(("with exit code", str(fault.exit_code)))
    terminal.table(f"{fault.name}: the server", ("", ""), rows)
