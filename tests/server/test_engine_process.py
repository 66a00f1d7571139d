"""The engine's process and the one that serves: neither outlives the other, and each says why it ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from live_server import CHAT, TIMEOUT_S, chat_body, raw_request, read_events, serving, wait_until
from served_process import Served, wait_for_running

from specdec import ConfigError, Engine, EngineConfig, EngineProcess, Request, SamplingParams
from specdec.delta_stream import MAX_WAITING_DELTAS
from specdec.errors import ModelNotFoundError
from specdec.grammars import Limits
from specdec.server import ServerConfig
from specdec.server.config import RequestLimits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def descendants_of(pid: int) -> list[int]:
    return [each for child in children_of(pid) for each in (child, *descendants_of(child))]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def engine_of(server: Served) -> int:
    (engine,) = children_of(server.process.pid)
    return engine


def stream_events(url: str, **fields: object) -> list[dict]:
    body = chat_body(stream=True, ignore_eos=True, **fields)
    with httpx.stream("POST", url + CHAT, json=body, timeout=60) as response:
        return list(read_events(response))


def test_killing_the_engine_tells_every_client_and_turns_health_503(served: Callable[..., Served]) -> None:
    server = served(death_notice_s=600)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(stream_events, server.url) for _ in range(3)]
        body = chat_body(ignore_eos=True)
        wholes = [pool.submit(httpx.post, server.url + CHAT, json=body, timeout=60) for _ in range(3)]
        wait_for_running(server.url, 6)
        os.kill(engine_of(server), signal.SIGKILL)
        for stream in streams:
            *chunks, last = stream.result(TIMEOUT_S)
            assert chunks
            assert last["error"]["code"] == "engine_dead"
        assert httpx.get(server.url + "/health").status_code == 503
        for whole in wholes:
            assert whole.result(TIMEOUT_S).status_code == 500
            assert whole.result().json()["error"]["code"] == "engine_dead"


def test_killing_the_engine_ends_the_server_with_1(served: Callable[..., Served]) -> None:
    server = served()
    os.kill(engine_of(server), signal.SIGKILL)
    code, log = server.end()
    assert code == 1
    assert "SIGKILL" in log


def test_killing_the_server_leaves_no_process_behind(served: Callable[..., Served]) -> None:
    server = served(num_compile_workers=2)
    # With a schema, so that there are workers that compile.
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    httpx.post(server.url + CHAT, json=chat_body(response_format=schema, max_tokens=50), timeout=30)
    family = descendants_of(server.process.pid)
    assert len(family) >= 3, "the engine, what the compilers are forked from, and a compiler"
    server.process.kill()
    wait_until(lambda: not any(map(is_running, family)), "every process to end")


def test_the_engine_outlasts_signals_meant_for_the_whole_group_and_the_serving_process_has_no_torch(
    served: Callable[..., Served],
) -> None:
    server = served()
    engine = engine_of(server)
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{engine}/maps").read_text()
    body = chat_body(stream=True, ignore_eos=True, max_tokens=200)
    with httpx.stream("POST", server.url + CHAT, json=body) as response:
        events = read_events(response)
        next(events)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine, number)
        *_, last = events
    assert last["choices"][0]["finish_reason"] == "length"
    assert server.stop()[0] == 0
    assert not is_running(engine)


def test_an_engine_that_says_nothing_turns_health_503_and_back(served: Callable[..., Served]) -> None:
    server = served(stall_timeout_s=1.0)
    engine = engine_of(server)
    os.kill(engine, signal.SIGSTOP)
    wait_until(lambda: httpx.get(server.url + "/health").status_code == 503, "the silence to show")
    assert httpx.get(server.url + "/health").json()["error"]["code"] == "engine_stalled"
    os.kill(engine, signal.SIGCONT)
    wait_until(lambda: httpx.get(server.url + "/health").status_code == 200, "the engine to be heard again")
    assert httpx.post(server.url + CHAT, json=chat_body(max_tokens=2), timeout=30).status_code == 200


@pytest.mark.parametrize(
    ("how", "is_background"),
    [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGKILL, False)],
    ids=["ctrl-c", "interrupted background job", "kill"],
)
def test_a_signal_while_loading_ends_both_processes(
    tiny_model_folder: Path, how: signal.Signals, is_background: bool
) -> None:
    command = [sys.executable, str(Path(sys.executable).with_name("specdec")), "serve", str(tiny_model_folder)]
    # A shell without job control starts what ends in & so; it is inherited.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_background else signal.getsignal(signal.SIGINT)
    try:
        process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, handler)
    with process:
        wait_until(lambda: bool(children_of(process.pid)), "the engine's process to start")
        (engine,) = children_of(process.pid)
        # As a terminal does: to the whole foreground group.
        os.killpg(process.pid, how)
        try:
            _, log = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # A server that the signal did not end would otherwise be waited for without end.
            os.killpg(process.pid, signal.SIGKILL)
            raise
        wait_until(lambda: not is_running(engine), "the engine's process to end")
        assert process.returncode != 0
        assert "Traceback" not in log


@pytest.mark.parametrize(
    ("fields", "kind", "flag"),
    [
        ({"max_model_len": 10**6}, ConfigError, "--max-model-len"),
        ({"model": "no-such-model"}, ModelNotFoundError, None),
    ],
)
def test_what_the_engine_refuses_to_load_is_the_same_error_here(
    tiny_model_folder: Path, fields: dict[str, object], kind: type[Exception], flag: str | None
) -> None:
    config = EngineConfig(**{"model": str(tiny_model_folder), **fields})
    with pytest.raises(kind) as from_engine:
        Engine(config)
    with pytest.raises(kind) as refused:
        EngineProcess.launch(config)
    assert type(refused.value) is kind
    assert str(refused.value) == str(from_engine.value)
    assert getattr(refused.value, "flag", None) == flag


def test_progress_is_reported_while_the_process_loads(tiny_model_folder: Path) -> None:
    reports = []
    engine = EngineProcess.launch(EngineConfig(model=str(tiny_model_folder)), progress=reports.append)
    engine.kill()
    assert [report.stage for report in reports if report.completed == report.total] == ["loading", "preparing"]
    assert not is_running(engine.pid)


@pytest.mark.slow
def test_a_client_that_leaves_while_its_schema_is_compiled_ends_the_compilation(tiny_model_folder: Path) -> None:
    many = {"max_properties": 10**6, "max_refs": 10**6, "max_nodes": 10**6, "max_goals": 10**6}
    limits = Limits(max_schema_bytes=10**7, max_compile_seconds=100.0, **many)
    engine_config = EngineConfig(
        model=str(tiny_model_folder), num_kv_blocks=600, num_compile_workers=1, grammar_limits=limits
    )
    config = ServerConfig(
        served_model_names=("tiny",), limits=RequestLimits(max_body_bytes=10**7, max_schema_bytes=10**7)
    )
    definitions = {f"d{i}": {"type": "array", "items": {"const": i}, "minItems": i} for i in range(20_000)}
    schema = {"properties": {name: {"$ref": f"#/$defs/{name}"} for name in definitions}, "$defs": definitions}
    with serving(EngineProcess.launch(engine_config), config) as server:
        small = chat_body(structured_outputs={"json": {"type": "null"}})
        assert httpx.post(server.url + CHAT, json=small, timeout=60).status_code == 200, "a compiler is there"
        compilers = descendants_of(server.async_engine.pid)
        ticks_before = sum(map(cpu_ticks, compilers))
        with raw_request(server.port, chat_body(structured_outputs={"json": schema})):
            wait_until(lambda: sum(map(cpu_ticks, compilers)) > ticks_before + 20, "the schema to be compiled")
            assert server.async_engine.num_in_flight == 1
        wait_until(lambda: server.async_engine.num_in_flight == 0, "the request to be forgotten")

        def num_killed() -> int:
            httpx.post(server.url + CHAT, json=chat_body(max_tokens=1), timeout=30)
            return server.async_engine.stats().num_compilations_killed

        wait_until(lambda: num_killed() == 1, "the compilation to be ended")


async def test_while_nobody_reads_the_engine_goes_on_and_what_waits_is_joined(tiny_model_folder: Path) -> None:
    num_tokens, num_choices = 600, 8
    engine = EngineProcess.launch(EngineConfig(model=str(tiny_model_folder), num_kv_blocks=1000))
    # So small that the first steps fill it.
    engine._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await engine.start()
    num_deltas = 0

    def count(_: object) -> None:
        nonlocal num_deltas
        num_deltas += 1

    params = SamplingParams(max_tokens=num_tokens, n=num_choices, ignore_eos=True, logprobs=20, seed=1)
    stream = await engine.submit(
        Request(request_id="a", prompt_token_ids=(1, 2), sampling_params=params), observer=count
    )
    # Blocking the event loop is the point: nothing is read meanwhile.
    cpu_at_start, deadline = cpu_ticks(engine.pid), time.monotonic() + 240
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < 0.5:
        assert time.monotonic() < deadline
        time.sleep(0.02)  # noqa: ASYNC251
        # One that waits for a processor is not idle.
        if (ticks := cpu_ticks(engine.pid)) > cpu_at_start + 1 or not is_asleep(engine.pid):
            cpu_at_start, idle_since = ticks, time.monotonic()
    answers: dict[int, int] = {}
    async for delta in stream:
        answers[delta.choice_index] = answers.get(delta.choice_index, 0) + len(delta.token_ids)
    assert answers == dict.fromkeys(range(num_choices), num_tokens)
    assert num_deltas < 3 * num_choices * num_tokens / MAX_WAITING_DELTAS + num_tokens
    async with asyncio.timeout(TIMEOUT_S):
        while not engine.stats().num_finished:  # noqa: ASYNC110, what is waited for happens in another process
            await asyncio.sleep(0.01)
    assert engine.stats().num_finished == {"length": num_choices}
    await engine.close()


def is_asleep(pid: int) -> bool:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(") ")[2][0] == "S" for task in tasks)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])
