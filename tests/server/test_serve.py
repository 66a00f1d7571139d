"""serve() as a process: the banner's facts, signals, exit codes."""

from __future__ import annotations

import concurrent.futures
import json
import signal
import socket
from collections.abc import Callable

import httpx
import psutil
import pytest
from live_server import TIMEOUT_S, chat_body, wait_until
from served_process import Served, last_event, wait_for_running

from specdec import ConfigError, EngineConfig
from specdec.server import ServerConfig, serve
from specdec.server.run import num_threads


def test_on_ready_tells_what_is_served_and_sigterm_ends_it_with_0(served: Callable[..., Served]) -> None:
    server = served(shutdown_grace_s=600)
    assert server.info["model_names"] == ["tiny"]
    assert server.info["engine"]["num_kv_blocks"] == 600
    assert httpx.get(server.url + "/ready").status_code == 200
    with httpx.Client(base_url=server.url) as client:  # an idle connection holds nothing up
        client.get("/health")
        code, log, _ = server.stop()
    assert code == 0, log
    assert "Traceback" not in log


def test_no_load_takes_more_threads_than_it_may(served: Callable[..., Served]) -> None:
    server = served()
    process = psutil.Process(server.process.pid)
    num_before = process.num_threads()
    with concurrent.futures.ThreadPoolExecutor(32) as pool, httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"prompt": "many words " * 2000}
        answers = list(pool.map(lambda _: client.post("/tokenize", json=body), range(64)))
    assert {answer.status_code for answer in answers} == {200}
    assert process.num_threads() - num_before <= num_threads()


@pytest.mark.slow
def test_sigterm_lets_running_requests_finish_within_the_grace(served: Callable[..., Served]) -> None:
    server = served(shutdown_grace_s=600)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(last_event, server.url, max_tokens=500, ignore_eos=True) for _ in range(4)]
        wait_for_running(server.url, 4)
        code, log, _ = server.stop()
        assert [stream.result(TIMEOUT_S)["choices"][0]["finish_reason"] for stream in streams] == ["length"] * 4
    assert code == 0, log
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/health")


@pytest.mark.parametrize("in_process", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sigterm_ends_what_outlasts_the_grace_with_an_error_frame(
    served: Callable[..., Served], in_process: bool
) -> None:
    server = served(in_process=in_process, shutdown_grace_s=0.5)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(last_event, server.url, ignore_eos=True) for _ in range(2)]
        whole = pool.submit(
            httpx.post, server.url + "/v1/chat/completions", json=chat_body(ignore_eos=True), timeout=60
        )
        wait_for_running(server.url, 3)
        code, log, seconds = server.stop()
        assert [stream.result(TIMEOUT_S)["error"]["code"] for stream in streams] == ["shutting_down"] * 2
        assert whole.result(TIMEOUT_S).status_code == 503
        assert whole.result().headers["retry-after"] == "1"
    assert code == 0, log
    assert "Traceback" not in log
    assert seconds >= 0.5


@pytest.mark.slow
def test_a_second_signal_cuts_the_grace_short(served: Callable[..., Served]) -> None:
    server = served(shutdown_grace_s=600)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stream = pool.submit(last_event, server.url, ignore_eos=True)
        wait_for_running(server.url, 1)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: not accepts(server.url), "the server to accept nothing more")
        code, log, _ = server.stop()
        assert stream.result(TIMEOUT_S)["error"]["code"] == "shutting_down"
    assert code == 0, log


def accepts(url: str) -> bool:
    try:
        httpx.get(url + "/health")
    except httpx.TransportError:
        return False
    return True


@pytest.mark.slow
def test_a_client_that_never_reads_does_not_hold_the_end_up_for_ever(served: Callable[..., Served]) -> None:
    server = served(shutdown_grace_s=0.2)
    body = json.dumps(chat_body(stream=True, ignore_eos=True, logprobs=True, top_logprobs=20)).encode()
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as still:
        still.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        wait_for_running(server.url, 1)
        code, log, _ = server.stop()
    assert code == 0, log


# With a process of its own, test_engine_process.py kills it, and test_logs.py reads why it died.
@pytest.mark.parametrize("in_process", [pytest.param(False, marks=pytest.mark.slow), True])
def test_when_the_engine_dies_the_process_soon_ends_with_1(served: Callable[..., Served], in_process: bool) -> None:
    server = served(in_process=in_process, die_at=50)
    assert last_event(server.url, ignore_eos=True)["error"]["code"] == "engine_dead"
    code, log = server.end()
    assert code == 1
    assert "injected" in log, "the cause is in the log"


def test_a_taken_port_is_refused_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServerConfig(port=taken.getsockname()[1])
        with pytest.raises(ConfigError) as refused:
            serve(EngineConfig(model="/nowhere"), config)
    assert refused.value.flag == "--port"


def test_a_host_without_an_address_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        serve(EngineConfig(model="/nowhere"), ServerConfig(host="no such host"))
    assert refused.value.flag == "--host"
