"""Fault scenarios: the engine killed, a compile worker killed, the server told to end; each under load."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import httpx
import msgspec

from specdec.evals.fault_bodies import COMPILE_FLAGS, bodies, quick_to_compile, slow_to_compile
from specdec.evals.fault_clients import ARRIVAL_S, FINISHED, FaultClients, Seen
from specdec.evals.fault_server import FaultServer

SOON_S: Final = 2.0
"""Within which a dead engine has to show, and its server to end."""
_SILENCE_S: Final = 120.0
_END_S: Final = 60.0
_PROBE_S: Final = 0.005
_BESIDE_S: Final = 2.0
"""How long the load goes on before and after a worker is killed."""


class OutcomeCount(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that ended in one way, in seconds after the fault."""

    num: int
    soonest_s: float
    median_s: float
    latest_s: float


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What a fault did to whom."""

    name: str
    in_flight: dict[str, OutcomeCount]
    """Requests that were in flight, by kind and outcome."""
    sent_later: dict[str, int]
    """Those that were sent afterwards, or were on their way."""
    seconds_to_503: float | None
    """Until /health said so; None where it never did."""
    seconds_to_exit: float | None
    """None where the server goes on."""
    exit_code: int | None
    longest_gap_ms: dict[str, float] = {}
    """Between two chunks of a stream, before the fault and after it."""
    failures: tuple[str, ...]


async def kill_engine(model: str, num_clients: int) -> Fault:
    """SIGKILL to the engine's process while every client reads a long answer."""
    with FaultServer(model) as server:
        clients = await _clients(server, num_clients, long_every=1)
        async with clients.asking():
            await clients.all_answered()
            await asyncio.sleep(ARRIVAL_S)
            probing = asyncio.create_task(_first_503(server.url))
            os.kill(server.engine_pid, signal.SIGKILL)
            moment = time.perf_counter()
            exit_code, seconds_to_exit = await _end_of(server, moment)
            await clients.stop()
            answered_503 = await probing
        seconds_to_503 = None if answered_503 is None else answered_503 - moment
        in_flight = [each for each in clients.seen if each.was_in_flight(moment)]
        failures = list(_unlike(in_flight, {FINISHED, "error frame engine_dead", "status 500 engine_dead"}))
        if seconds_to_503 is None or seconds_to_503 > SOON_S:
            failures.append(f"/health was 503 after {_seconds(seconds_to_503)}; {SOON_S:g} s is the limit")
        if seconds_to_exit is None or seconds_to_exit > SOON_S:
            failures.append(f"the server ended after {_seconds(seconds_to_exit)}; {SOON_S:g} s is the limit")
        if exit_code == 0:
            failures.append("the server whose engine was killed ended with 0")
        return Fault(
            name="the engine killed",
            in_flight=_counts(in_flight, moment),
            sent_later=_later(clients.seen, moment),
            seconds_to_503=seconds_to_503,
            seconds_to_exit=seconds_to_exit,
            exit_code=exit_code,
            failures=tuple(failures),
        )


async def kill_worker(model: str, num_clients: int) -> Fault:
    """SIGKILL to the compile worker that is busy with one request's schema, beside answers and another new schema."""
    with FaultServer(model, COMPILE_FLAGS) as server:
        clients = await _clients(server, num_clients, long_every=0)
        async with clients.asking():
            await clients.all_answered()
            begin = time.perf_counter()
            await asyncio.sleep(_BESIDE_S)
            name = await _model_name(server.url)
            victim = asyncio.create_task(clients.ask("victim", slow_to_compile(name)))
            worker = await asyncio.to_thread(server.busy_worker, _END_S)
            beside = asyncio.create_task(clients.ask("new schema", quick_to_compile(name, "beside")))
            os.kill(worker, signal.SIGKILL)
            moment = time.perf_counter()
            noticed, others = await victim, [await beside]
            others.append(await clients.ask("new schema", quick_to_compile(name, "after")))
            await asyncio.sleep(_BESIDE_S)
            await clients.stop()
        others = [each for each in clients.seen if each is not noticed]
        failures = list(_unlike(others, {FINISHED}))
        if not noticed.outcome.startswith("status 503 "):
            failures.append(f"the request whose compiler was killed saw: {noticed.outcome}")
        return Fault(
            name="a compile worker killed",
            in_flight=_counts([each for each in clients.seen if each.was_in_flight(moment)], moment),
            sent_later=_later(clients.seen, moment),
            seconds_to_503=None,
            seconds_to_exit=None,
            exit_code=None,
            longest_gap_ms={
                "before": 1000 * _longest_gap(clients.seen, begin, moment),
                "after": 1000 * _longest_gap(clients.seen, moment, time.perf_counter()),
            },
            failures=tuple(failures),
        )


async def terminate(model: str, num_clients: int, grace_s: float) -> Fault:
    """SIGTERM while half of the clients read answers that are longer than the grace period, and half short ones."""
    with FaultServer(model, ("--shutdown-grace", str(grace_s))) as server:
        clients = await _clients(server, num_clients, long_every=2)
        async with clients.asking():
            await clients.all_answered()
            server.signal(signal.SIGTERM)
            moment = time.perf_counter()
            exit_code, seconds_to_exit = await _end_of(server, moment)
            await clients.stop()
        in_flight = [each for each in clients.seen if each.was_in_flight(moment)]
        expected = {FINISHED, "error frame shutting_down", "status 503 shutting_down"}
        failures = list(_unlike(in_flight, expected))
        if exit_code != 0:
            failures.append(f"the server ended with {exit_code}")
        if seconds_to_exit is None or seconds_to_exit > grace_s + SOON_S:
            failures.append(f"the server ended after {_seconds(seconds_to_exit)}; its grace period is {grace_s:g} s")
        return Fault(
            name=f"SIGTERM, {grace_s:g} s of grace",
            in_flight=_counts(in_flight, moment),
            sent_later=_later(clients.seen, moment),
            seconds_to_503=None,
            seconds_to_exit=seconds_to_exit,
            exit_code=exit_code,
            failures=tuple(failures),
        )


async def _clients(server: FaultServer, num_clients: int, *, long_every: int) -> FaultClients:
    async with httpx.AsyncClient(base_url=server.url) as client:
        served = (await client.get("/v1/models")).json()["data"][0]
    asked = bodies(served["id"], long_every=long_every, max_model_len=served["max_model_len"])
    return FaultClients(server.url, asked, num_clients, _SILENCE_S)


async def _model_name(url: str) -> str:
    async with httpx.AsyncClient(base_url=url) as client:
        return str((await client.get("/v1/models")).json()["data"][0]["id"])


async def _first_503(url: str) -> float | None:
    """When /health was first answered so; None where the server was gone before."""
    async with httpx.AsyncClient(base_url=url, timeout=_END_S) as client:
        while True:
            try:
                response = await client.get("/health")
            except httpx.HTTPError:
                return None
            if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                return time.perf_counter()
            await asyncio.sleep(_PROBE_S)


async def _end_of(server: FaultServer, moment: float) -> tuple[int | None, float | None]:
    exit_code = await asyncio.to_thread(server.wait, _END_S)
    return exit_code, None if exit_code is None else time.perf_counter() - moment


def _unlike(seen: Iterable[Seen], expected: set[str]) -> Iterator[str]:
    for outcome, num in Counter(each.outcome for each in seen if each.outcome not in expected).items():
        yield f"{num} clients saw: {outcome}"


def _counts(in_flight: Sequence[Seen], moment: float) -> dict[str, OutcomeCount]:
    times: dict[str, list[float]] = {}
    for each in in_flight:
        times.setdefault(f"{each.name}, {each.kind}: {each.outcome}", []).append(each.ended_at - moment)
    return {
        outcome: OutcomeCount(
            num=len(after), soonest_s=min(after), median_s=statistics.median(after), latest_s=max(after)
        )
        for outcome, after in sorted(times.items())
    }


def _later(seen: Iterable[Seen], moment: float) -> dict[str, int]:
    return dict(
        sorted(
            Counter(each.outcome for each in seen if each.ended_at > moment and not each.was_in_flight(moment)).items()
        )
    )


def _longest_gap(seen: Iterable[Seen], begin: float, end: float) -> float:
    """Seconds between two chunks that both came in that time."""
    return max((each.longest_gap_s(begin, end) for each in seen), default=0.0)


def _seconds(value: float | None) -> str:
    return f"{_END_S:g} s and more" if value is None else f"{value:.2f} s"
