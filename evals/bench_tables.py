"""Tables of a load, for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specdec.evals.bench_cost import ServingCost
from specdec.evals.bench_latency import Latencies
from specdec.evals.bench_memory import MemoryUse, PartUse
from specdec.evals.bench_metrics import SpeculationCounts
from specdec.evals.bench_point import PointResult
from specdec.evals.terminal import Terminal

Row = tuple[str, Callable[[PointResult], str]]


def show(points: Sequence[PointResult], memory: MemoryUse | None, terminal: Terminal) -> None:
    """One column a point."""
    if not points:
        return
    columns = ("", *(point.label for point in points))
    terminal.table("requests", columns, _rows(points, _REQUESTS))
    terminal.table("latency in ms, p50 / p90 / p99 (mean)", columns, _rows(points, _LATENCIES))
    terminal.table("answers", columns, _rows(points, _ANSWERS))
    if any(point.cost is not None for point in points):
        terminal.table("ms for each token that was generated", columns, _rows(points, _COSTS))
    if memory is not None:
        uses = {"all": memory, **(memory.parts if len(memory.parts) > 1 else {})}
        terminal.table(
            f"resident memory of {memory.source}, MB",
            ("", "first", "last", "peak", "a minute, after the first"),
            [(name, *_memory(use)) for name, use in uses.items()],
        )


def _memory(use: PartUse) -> tuple[str, ...]:
    slope = "-" if use.mb_per_minute is None else f"{use.mb_per_minute:+.2f}"
    return f"{use.first_mb:.0f}", f"{use.last_mb:.0f}", f"{use.peak_mb:.0f}", slope


def _rows(points: Sequence[PointResult], rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [(name, *(figure(point) for point in points)) for name, figure in rows]


def _latency(of: Callable[[PointResult], Latencies | None]) -> Callable[[PointResult], str]:
    def figure(point: PointResult) -> str:
        found = of(point)
        if found is None:
            return "-"
        return f"{found.p50:.1f} / {found.p90:.1f} / {found.p99:.1f} ({found.mean:.1f})"

    return figure


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _failed(point: PointResult) -> str:
    wrong = ", ".join(f"{num}x {status}" for status, num in point.statuses.items())
    return f"{point.num_failed} (statuses: {wrong})" if point.num_failed else "0"


def _valid(point: PointResult) -> str:
    if point.validity is None:
        return "-"
    found = point.validity
    return f"{found['num_valid']} of {found['num_answers']}, {found['num_cut_by_length']} cut by length"


def _acceptance(point: PointResult) -> SpeculationCounts:
    return SpeculationCounts() if point.acceptance is None else point.acceptance.counts


def _cost(of: Callable[[ServingCost], float | None]) -> Callable[[PointResult], str]:
    return lambda point: _number(None if point.cost is None else of(point.cost), 3)


def _held(point: PointResult) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in point.held.items()) or "nothing"


_REQUESTS: Sequence[Row] = (
    ("completed", lambda point: str(point.num_completed)),
    ("aborted by us", lambda point: str(point.num_aborted)),
    ("malformed, refused as due", lambda point: str(point.num_refused)),
    ("turned away (429, 503)", lambda point: str(point.num_turned_away)),
    ("answered wrongly", _failed),
    ("seconds", lambda point: _number(point.seconds)),
    ("requests a second", lambda point: _number(point.requests_per_s)),
    ("output tokens a second", lambda point: _number(point.output_tokens_per_s, 1)),
    ("all tokens a second", lambda point: _number(point.total_tokens_per_s, 1)),
    ("goodput, requests a second", lambda point: _number(point.goodput_requests_per_s)),
)
_LATENCIES: Sequence[Row] = (
    ("to the first token (TTFT)", _latency(lambda point: point.ttft_ms)),
    ("per token after it (TPOT)", _latency(lambda point: point.tpot_ms)),
    ("between chunks (ITL)", _latency(lambda point: point.itl_chunk_ms)),
    ("between tokens (ITL)", _latency(lambda point: point.itl_token_ms)),
    ("whole request", _latency(lambda point: point.e2e_ms)),
)
_COSTS: Sequence[Row] = (
    ("on the clock", _cost(lambda cost: cost.wall_ms)),
    ("of it in steps of the engine", _cost(lambda cost: cost.engine_ms)),
    ("the rest: overhead of the API", _cost(lambda cost: cost.overhead_ms)),
    ("processor time of the server's process", _cost(lambda cost: cost.server_cpu_ms)),
    ("processor time of the engine's", _cost(lambda cost: cost.engine_cpu_ms)),
)
_ANSWERS: Sequence[Row] = (
    ("valid under their schema", _valid),
    ("invalid", lambda point: "-" if point.validity is None else str(point.num_violations)),
    ("tokens a chunk", lambda point: _number(point.tokens_per_chunk)),
    ("acceptance rate", lambda point: _share(_acceptance(point).acceptance_rate)),
    ("mean acceptance length", lambda point: _number(_acceptance(point).mean_acceptance_length)),
    ("held by the idle server", _held),
    ("generator's share of a processor", lambda point: _share(point.processor_share)),
)
