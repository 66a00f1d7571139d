"""Clients that leave, stop reading or never read: their blocks come back, and nobody else waits."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from live_server import (
    CHAT,
    TIMEOUT_S,
    LiveServer,
    chat_body,
    raw_request,
    read_events,
    read_past,
    serving,
    slowed,
    wait_until,
)
from served_process import FAULTY_CHILD
from step_gate import StepGate

from specdec import Engine, EngineConfig, EngineProcess
from specdec.grammars import Limits
from specdec.server.config import RequestLimits, ServerConfig

STEP_SECONDS = 0.01


@pytest.fixture(scope="module", params=["thread", "process"])
def slow_live(
    request: pytest.FixtureRequest, make_engine: Callable[..., Engine], tiny_model_folder: Path
) -> Iterator[LiveServer]:
    """Slow enough that an abandoned request is caught in the act."""
    if request.param == "thread":
        engine = slowed(make_engine(), STEP_SECONDS)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("specdec.engine_process.PROGRAM", (str(FAULTY_CHILD), str(STEP_SECONDS), "-1"))
            engine = EngineProcess.launch(EngineConfig(model=str(tiny_model_folder), num_kv_blocks=600))
    with serving(engine) as server:
        yield server


def reset(connection: socket.socket) -> None:
    """Close without a goodbye, as a killed client's kernel does with unread data."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.fixture
def num_finished(slow_live: LiveServer) -> Callable[[], int]:
    """Choices that ended by themselves since the test began: what an abandoned one must not do."""

    def count() -> int:
        finished = slow_live.async_engine.stats().num_finished
        return finished.get("stop", 0) + finished.get("length", 0)

    stats = slow_live.async_engine.stats
    wait_until(lambda: slow_live.async_engine.num_in_flight == 0, "earlier requests to be forgotten")
    wait_until(lambda: stats().num_requests_running == 0, "earlier requests to end")
    # A snapshot that shows this one running is younger than the end of all others.
    with raw_request(slow_live.port, chat_body(stream=True, ignore_eos=True)):
        wait_until(lambda: stats().num_requests_running == 1, "a new request to run")
        before = count()
    wait_until(lambda: stats().num_requests_running == 0, "the request to be ended")
    return lambda: count() - before


def assert_all_freed(server: LiveServer) -> None:
    wait_until(lambda: server.num_blocks_in_use() == 0, "every block to be freed")
    wait_until(lambda: server.async_engine.num_in_flight == 0, "every request to be forgotten")
    assert httpx.post(server.url + CHAT, json=chat_body(max_tokens=2), timeout=30).status_code == 200


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
def test_a_client_that_leaves_mid_stream_frees_its_blocks(
    slow_live: LiveServer, num_finished: Callable[[], int], leave: Callable[[socket.socket], None], n: int
) -> None:
    for _ in range(12):
        connection = raw_request(slow_live.port, chat_body(stream=True, ignore_eos=True, n=n))
        read_past(connection, b"data: ")
        leave(connection)
    wait_until(lambda: slow_live.num_blocks_in_use() == 0, "every block to be freed")
    assert num_finished() == 0
    assert_all_freed(slow_live)


def test_a_client_that_leaves_before_the_whole_answer_frees_its_blocks(
    slow_live: LiveServer, num_finished: Callable[[], int]
) -> None:
    prompts = {"model": "tiny", "prompt": ["a", "b"]}
    for path, asked in ((CHAT, chat_body()), ("/v1/completions", prompts)):
        for _ in range(10):
            body = {**asked, "ignore_eos": True, "max_tokens": 1500}
            connection = raw_request(slow_live.port, body, path)
            wait_until(lambda: slow_live.num_blocks_in_use() > 0, "the request to run")
            connection.close()
            wait_until(lambda: slow_live.num_blocks_in_use() == 0, "its blocks to be freed")
            assert num_finished() == 0
    assert_all_freed(slow_live)


def test_a_client_that_leaves_at_once_leaves_nothing_behind(slow_live: LiveServer) -> None:
    for _ in range(50):
        reset(raw_request(slow_live.port, chat_body(stream=True, ignore_eos=True)))
    assert_all_freed(slow_live)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_while_its_schema_is_compiled_ends_the_compilation(
    make_engine: Callable[..., Engine], stream: bool
) -> None:
    many = {"max_properties": 10**6, "max_refs": 10**6, "max_nodes": 10**6, "max_goals": 10**6}
    limits = Limits(max_schema_bytes=10**7, max_compile_seconds=100.0, **many)
    config = ServerConfig(
        served_model_names=("tiny",), limits=RequestLimits(max_body_bytes=10**7, max_schema_bytes=10**7)
    )
    definitions = {f"d{i}": {"type": "array", "items": {"const": i}, "minItems": i} for i in range(20_000)}
    schema = {"properties": {name: {"$ref": f"#/$defs/{name}"} for name in definitions}, "$defs": definitions}
    with serving(make_engine(grammar_limits=limits, num_compile_workers=1), config) as server:
        stats = server.async_engine.stats
        compiler = server.async_engine._engine._compiler
        wait_until(lambda: compiler._pool._idle[-1:] not in ([], [None]), "the worker to start")
        connection = raw_request(server.port, chat_body(stream=stream, structured_outputs={"json": schema}))
        wait_until(lambda: server.async_engine.num_in_flight == 1, "the request to arrive")
        wait_until(lambda: compiler._pool.num_running == 1, "its schema to be compiled")
        connection.close()
        wait_until(lambda: compiler.num_killed == 1, "the compilation to be ended")
        assert_all_freed(server)
        wait_until(lambda: stats().num_compilations_killed == 1, "the count to be published")
        assert "specdec:grammar_compile_kills_total" in httpx.get(server.url + "/metrics").text


def test_a_killed_client_process_frees_its_blocks(slow_live: LiveServer, num_finished: Callable[[], int]) -> None:
    script = (
        "import httpx, sys\n"
        f"with httpx.stream('POST', '{slow_live.url}{CHAT}', json={chat_body(stream=True, ignore_eos=True)!r}) as r:\n"
        "    for line in r.iter_lines():\n"
        "        print(line, flush=True)\n"
    )
    clients = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline().startswith("data: ")
        client.kill()
        client.wait(TIMEOUT_S)
        client.stdout.close()
    wait_until(lambda: slow_live.num_blocks_in_use() == 0, "every block to be freed")
    assert num_finished() == 0
    assert_all_freed(slow_live)


@pytest.mark.slow
def test_a_reader_that_stands_still_stalls_nobody_and_in_the_end_gets_everything(live: LiveServer) -> None:
    """Its socket buffers are small, so that the server's send blocks early on."""
    still = socket.socket()
    still.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    still.settimeout(TIMEOUT_S)
    still.connect(("127.0.0.1", live.port))
    body = json.dumps(chat_body(stream=True, ignore_eos=True, seed=1, logprobs=True, top_logprobs=20)).encode()
    still.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    answer = httpx.post(live.url + CHAT, json=chat_body(max_tokens=50), timeout=TIMEOUT_S)
    assert answer.status_code == 200
    wait_until(lambda: live.num_blocks_in_use() == 0, "the engine to finish what nobody reads")
    received = bytearray()
    while piece := still.recv(65536):
        received += piece
    still.close()
    assert b"data: [DONE]" in received
    assert b'"finish_reason":"length"' in received
    whole = httpx.post(live.url + CHAT, json=chat_body(ignore_eos=True, seed=1), timeout=30).json()["choices"][0][
        "message"
    ]["content"]
    assert streamed_text(bytes(received)) == whole


def streamed_text(response: bytes) -> str:
    """The text of a raw chunked response."""
    _, _, rest = response.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    events = [json.loads(event[6:]) for event in body.split(b"\n\n") if event.startswith(b"data: {")]
    return "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])


def test_a_silent_stream_sends_comments_until_its_first_token(make_engine: Callable[..., Engine]) -> None:
    from specdec.server import ServerConfig

    config = ServerConfig(served_model_names=("tiny",), keep_alive_interval_s=0.05)
    gate = StepGate(make_engine())
    with (
        serving(gate.engine, config) as server,
        gate,
        httpx.stream("POST", server.url + CHAT, json=chat_body(stream=True, max_tokens=2)) as response,
    ):
        lines = response.iter_lines()
        assert next(lines).startswith(":")
        gate.open()
        rest = list(lines)
    assert rest[-2:] == ["data: [DONE]", ""]


@pytest.mark.slow
def test_ten_thousand_chunks_of_one_stream_all_arrive(live: LiveServer) -> None:
    """Of many choices in fact: the tiny model's context holds two thousand tokens."""
    body = {"model": "tiny", "prompt": ["Once"] * 6, "stream": True, "ignore_eos": True, "max_tokens": 1700}
    with httpx.stream("POST", live.url + "/v1/completions", json=body, timeout=120) as response:
        finished = [
            choice["index"] for event in read_events(response) for choice in event["choices"] if choice["finish_reason"]
        ]
    assert sorted(finished) == list(range(6))
