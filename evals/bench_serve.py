"""`specdec bench serve`: load on a server, point by point, and a verdict on how it was answered.

It fails where a request is answered with another status than is due, a finished constrained answer is no instance of
its schema, or specdec's own server holds blocks or requests once nothing runs. How fast it was fails nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import httpx
import msgspec

from specdec.evals.bench_arrivals import LoadPoint
from specdec.evals.bench_load import Load
from specdec.evals.bench_memory import MemoryUse, MemoryWatch
from specdec.evals.bench_metrics import held_after, resident_bytes, scrape
from specdec.evals.bench_point import PointResult, point_result
from specdec.evals.bench_tables import show
from specdec.evals.bench_target import Target, client_of, find_target
from specdec.evals.bench_traffic import Endpoint, Generation, Mix, Planned, Switch, Traffic
from specdec.evals.environment import describe_environment
from specdec.evals.progress import Steps
from specdec.evals.result import EvalResult
from specdec.evals.terminal import Terminal
from specdec.evals.workload import Task

_MAX_PROCESSOR_SHARE = 0.8
_MAX_LATENESS_MS = 50.0
_WARM_UP_SEED = 1_000_003
"""Added to the seed: what warms up is not what is measured."""


class BenchRun(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the server."""

    url: str
    model: str | None
    endpoint: Endpoint
    points: tuple[LoadPoint, ...]
    mix: Mix
    max_tokens: int
    temperature: float
    ignore_eos: bool
    speculative: Switch
    are_prompts_unique: bool
    num_warm_up: int
    seed: int
    objectives: dict[str, float]
    """Seconds by name."""
    timeout_s: float
    """Without a byte from the server."""
    max_mb_per_minute: float | None = None
    """Growth of the server's memory that fails the run."""


def run_bench(
    run: BenchRun, tasks: Sequence[Task], *, api_key: str | None, watch_pid: int | None, terminal: Terminal
) -> EvalResult:
    """Raises EngineError for a server that does not answer, ValueError for a mix that the tasks do not hold, and
    ProcessLookupError for a process that is not there."""
    environment = describe_environment()
    watch = None if watch_pid is None else MemoryWatch.of_process(watch_pid)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        target, points, memory = runner.run(_run(run, tasks, api_key, watch, terminal))
    show(points, memory, terminal)
    return EvalResult(
        eval_name="bench-serve",
        failures=tuple(_failures(run, points, memory)),
        warnings=tuple(_warnings(target, points)),
        settings={"run": run, "num_tasks": len(tasks)},
        figures={"target": target, "points": points, "memory": memory},
        environment=environment,
    )


async def _run(
    run: BenchRun, tasks: Sequence[Task], api_key: str | None, watch: MemoryWatch | None, terminal: Terminal
) -> tuple[Target, list[PointResult], MemoryUse | None]:
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(client_of(run.url, api_key, run.timeout_s))
        target = await find_target(client, run.model, run.endpoint)
        if watch is None:
            watch = MemoryWatch(functools.partial(resident_bytes, client), "the server's processes, as it says")
        await stack.enter_async_context(watch.running())
        load = Load(client, _generation(run, target).path, is_specdec=target.is_specdec)
        if run.num_warm_up:
            await _warm_up(run, tasks, target, load, terminal)
        requests = Traffic(tasks, run.mix, _generation(run, target), run.seed).requests()
        points = [await _run_point(run, point, requests, target, client, load, terminal) for point in run.points]
    return target, points, watch.use()


async def _warm_up(run: BenchRun, tasks: Sequence[Task], target: Target, load: Load, terminal: Terminal) -> None:
    mix = msgspec.structs.replace(run.mix, aborted=0.0, malformed=0.0)
    requests = Traffic(tasks, mix, _generation(run, target), run.seed + _WARM_UP_SEED).requests()
    point = LoadPoint(concurrency=run.num_warm_up, request_rate=float("inf"), num_requests=run.num_warm_up)
    with terminal.progress("warm-up", run.num_warm_up) as steps:
        await load.run(point, requests, seed=run.seed, on_end=steps.advance)


async def _run_point(
    run: BenchRun,
    point: LoadPoint,
    requests: Iterator[Planned],
    target: Target,
    client: httpx.AsyncClient,
    load: Load,
    terminal: Terminal,
) -> PointResult:
    before = await scrape(client) if target.has_metrics else None
    with terminal.progress("bench serve", point.num_requests or round(point.duration_s or 0)) as steps:
        steps.note(point.label)
        async with _progress(point, steps) as on_end:
            done = await load.run(point, requests, seed=run.seed, on_end=on_end)
    held = await held_after(client) if target.is_specdec and target.has_metrics else {}
    after = await scrape(client) if target.has_metrics else None
    meanwhile = None if before is None or after is None else (before, after)
    return point_result(point, done, objectives=run.objectives, meanwhile=meanwhile, held=held)


@contextlib.asynccontextmanager
async def _progress(point: LoadPoint, steps: Steps) -> AsyncIterator[Callable[[], None]]:
    """What to call at the end of a request: it moves the bar, unless only time ends the point, which moves it then."""
    if point.num_requests is not None:
        yield steps.advance
        return

    async def tick() -> None:
        while True:
            await asyncio.sleep(1.0)
            steps.advance()

    ticking = asyncio.create_task(tick())
    try:
        yield lambda: None
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


def _generation(run: BenchRun, target: Target) -> Generation:
    return Generation(
        model=target.model,
        endpoint=run.endpoint,
        max_tokens=run.max_tokens,
        temperature=run.temperature,
        ignore_eos=run.ignore_eos,
        speculative=run.speculative,
        has_running_usage=target.has_running_usage,
        has_predictions=target.is_specdec,
        are_prompts_unique=run.are_prompts_unique,
    )


def _failures(run: BenchRun, points: Sequence[PointResult], memory: MemoryUse | None) -> Iterator[str]:
    for point in points:
        yield from (f"{point.label}: {wrong}" for wrong in point.wrong)
        if point.num_failed > len(point.wrong):
            yield f"{point.label}: {point.num_failed - len(point.wrong)} more requests were answered wrongly"
        if not point.num_completed:
            yield f"{point.label}: no request was completed"
        if point.num_violations:
            yield f"{point.label}: {point.num_violations} finished answers are no instances of their schemas"
        if point.held:
            held = ", ".join(f"{name} is {value:g}" for name, value in point.held.items())
            yield f"{point.label}: nothing runs any more, and {held}"
    if run.max_mb_per_minute is not None:
        if memory is None:
            yield "how the server's memory grows is not known: it does not say; give --watch-pid where it runs here"
        elif memory.mb_per_minute is None:
            yield "the run was too short to say how the server's memory grows; it takes a minute and a half"
        elif memory.mb_per_minute > run.max_mb_per_minute:
            yield (
                f"the server's memory grew by {memory.mb_per_minute:.2f} MB a minute; {run.max_mb_per_minute:g} is the "
                "limit"
            )


def _warnings(target: Target, points: Sequence[PointResult]) -> Iterator[str]:
    for point in points:
        if point.processor_share > _MAX_PROCESSOR_SHARE:
            yield (
                f"{point.label}: the generator itself took {100 * point.processor_share:.0f} % of a processor; what it "
                "measures is partly itself, so run several of them"
            )
        if point.lateness_ms is not None and point.lateness_ms.p99 > _MAX_LATENESS_MS:
            yield f"{point.label}: requests left up to {point.lateness_ms.max:.0f} ms after they were due"
        if point.are_tokens_chunks:
            yield f"{point.label}: the server counts no tokens; every chunk was taken for one"
        if point.num_turned_away:
            yield f"{point.label}: {point.num_turned_away} requests were turned away by a full server"
    if not target.has_running_usage:
        yield "the server does not count the tokens of each chunk: latency between tokens is known per request alone"
    if target.is_specdec and not target.has_metrics:
        yield "/metrics cannot be read: whether the server leaks is not known"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it can be had: a chunk costs it half of the time."""
    try:
        import uvloop  # noqa: PLC0415, not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
