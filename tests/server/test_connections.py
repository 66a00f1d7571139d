"""More connections than a server takes: their requests are refused, and whoever watches it is still told how it is."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest
from live_server import LiveServer, chat_body, serving, wait_until

from specdec import ConfigError, Engine
from specdec.server import ServerConfig
from specdec.server.connection_limit import DEFAULT_CONNECTIONS, NUM_REFUSALS, connection_limit
from specdec.server.http_protocol import HttpProtocol

CHAT = "/v1/chat/completions"
LIMIT = 5


@pytest.fixture(scope="module")
def limited(make_engine: Callable[..., Engine]) -> Iterator[LiveServer]:
    config = ServerConfig(served_model_names=("tiny",), max_connections=LIMIT)
    with serving(make_engine(), config) as server:
        yield server


@contextlib.contextmanager
def idle(live: LiveServer, num: int) -> Iterator[list[socket.socket]]:
    """Connections that ask for nothing, and no others."""
    wait_until(lambda: not live.connections(), "earlier connections to end")
    with contextlib.ExitStack() as stack:
        connections = [socket.create_connection(("127.0.0.1", live.port), timeout=20) for _ in range(num)]
        for connection in connections:
            stack.enter_context(connection)
        wait_until(lambda: len(live.connections()) == num, "the server to take them")
        yield connections


def ask(live: LiveServer) -> httpx.Response:
    return httpx.post(live.url + CHAT, json=chat_body(max_tokens=2), timeout=20)


def num_turned_away(live: LiveServer) -> float:
    name = 'specdec:admission_rejections_total{model_name="tiny",reason="connections"} '
    return sum(
        float(line.removeprefix(name)) for line in httpx.get(live.url + "/metrics").text.splitlines() if name in line
    )


def test_requests_beyond_the_limit_are_a_503_and_probes_are_answered(limited: LiveServer) -> None:
    num_before = num_turned_away(limited)
    with idle(limited, LIMIT - 1):
        assert ask(limited).status_code == 200
    with idle(limited, LIMIT):
        refused = ask(limited)
        assert refused.status_code == 503
        assert refused.json()["error"] == {
            "message": "the server has as many connections as it takes; try again later",
            "type": "service_unavailable", "param": None, "code": "too_many_connections",
        }  # fmt: skip
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        assert refused.headers["x-request-id"]
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(limited.url + path).status_code == 200
        assert httpx.get(limited.url + "/v1/models").status_code == 503
        assert num_turned_away(limited) == num_before + 2
    wait_until(lambda: ask(limited).status_code == 200, "the room of those that left")


def test_a_refused_connection_is_closed_and_its_body_never_read(limited: LiveServer) -> None:
    with idle(limited, LIMIT), socket.create_connection(("127.0.0.1", limited.port), timeout=20) as late:
        late.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 1000000\r\n\r\n{"
        )
        received = b""
        while piece := late.recv(65536):
            received += piece
        assert received.startswith(b"HTTP/1.1 503 ")


def test_what_comes_after_the_refusals_is_turned_away_without_a_request(
    limited: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HttpProtocol, "refusal_timeout_s", 60.0)
    with idle(limited, LIMIT + NUM_REFUSALS):
        with socket.create_connection(("127.0.0.1", limited.port), timeout=20) as late:
            head, _, body = late.makefile("rb").read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head
        assert json.loads(body)["error"]["code"] == "too_many_connections"


def test_connections_beyond_the_limit_that_ask_for_nothing_are_closed_soon(
    limited: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HttpProtocol, "head_timeout_s", 300.0)
    monkeypatch.setattr(HttpProtocol, "refusal_timeout_s", 0.5)
    with idle(limited, LIMIT) as within, contextlib.ExitStack() as stack:
        for _ in range(NUM_REFUSALS):
            beyond = stack.enter_context(socket.create_connection(("127.0.0.1", limited.port), timeout=20))
        assert beyond.recv(1) == b""
        wait_until(lambda: httpx.get(limited.url + "/health").status_code == 200, "the probe to be answered")
        for connection in within:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)


def test_a_connection_that_came_too_early_is_served_once_there_is_room(limited: LiveServer) -> None:
    with httpx.Client(base_url=limited.url) as client:
        with idle(limited, LIMIT):
            assert client.get("/health").status_code == 200
        wait_until(lambda: client.post(CHAT, json=chat_body(max_tokens=2)).status_code == 200, "room")


def test_the_default_leaves_room_for_other_files_and_more_than_that_is_refused() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 1 <= connection_limit(None) <= DEFAULT_CONNECTIONS
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
        assert connection_limit(None) < 600 - NUM_REFUSALS
        assert connection_limit(100) == 100
        with pytest.raises(ConfigError, match="ulimit -n") as refused:
            connection_limit(600)
        assert refused.value.flag == "--max-connections"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(ConfigError, match="positive"):
        ServerConfig(max_connections=0)
