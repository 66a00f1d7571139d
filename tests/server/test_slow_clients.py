"""Clients that send slowly, endlessly or nothing, and very many at once: they are cut off, and nobody else waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest
from live_server import TIMEOUT_S, LiveServer, chat_body, serving, slowed, wait_until

from specdec import Engine
from specdec.server.config import RequestLimits
from specdec.server.http_protocol import HttpProtocol

CHAT = "/v1/chat/completions"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
MIB = 2**20


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds that requests have to come in, instead of many."""
    for name in ("head_timeout_s", "body_timeout_s"):
        monkeypatch.setattr(HttpProtocol, name, 0.8)
    return 0.8


@contextlib.contextmanager
def connected(live: LiveServer, num: int = 1) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", live.port), timeout=TIMEOUT_S))
            for _ in range(num)
        ]


def rest_of(connection: socket.socket) -> bytes:
    """What the server still sends until it closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def drip(connections: list[socket.socket], piece: bytes, seconds: float, url: str) -> None:
    """Send the piece again and again on all of them, and ask something else meanwhile, which must be answered."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for connection in connections:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(piece)
        assert httpx.post(url + CHAT, json=chat_body(max_tokens=2), timeout=TIMEOUT_S).status_code == 200


def error_of(response: bytes, status: int) -> dict:
    assert response.startswith(b"HTTP/1.1 %d " % status), response[:200]
    assert response.count(b"HTTP/1.1") == 1
    return json.loads(response.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize(
    ("begin", "piece", "says"),
    [
        (HEAD, b"x-drip: y\r\n", "headers"),
        (HEAD + b"x-endless: ", b"y", "headers"),
        (b"", b"P", "headers"),
        (HEAD + b"content-length: 100000\r\n\r\n", b" ", "body"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n", "body"),
    ],
    ids=["headers", "one header", "method", "body", "chunks"],
)
def test_a_request_that_drips_in_is_cut_off_and_holds_up_nobody(
    live: LiveServer, hurried: float, begin: bytes, piece: bytes, says: str
) -> None:
    with connected(live, 20) as connections:
        for connection in connections:
            connection.sendall(begin)
        drip(connections, piece, hurried + 0.3, live.url)
        for connection in connections:
            answer = rest_of(connection)
            if piece != b"P":  # PPP is no method, which is said earlier
                error = error_of(answer, 408)
                assert (error["code"], error["type"]) == ("request_timeout", "invalid_request_error")
                assert says in error["message"]


def test_a_connection_without_a_request_is_closed_without_a_word(live: LiveServer, hurried: float) -> None:
    with connected(live, 50) as connections:
        drip([], b"", 0.1, live.url)
        for connection in connections:
            assert rest_of(connection) == b""


def test_line_ends_do_not_keep_an_idle_connection_open(live: LiveServer, hurried: float) -> None:
    with connected(live) as [connection]:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        received = b""
        while not received.endswith(b'{"status":"ok"}'):
            received += connection.recv(65536)
        drip([connection], b"\r\n", hurried + 0.3, live.url)
        assert rest_of(connection) == b""


def test_a_request_that_is_slow_within_the_limit_is_answered(live: LiveServer) -> None:
    body = json.dumps(chat_body(max_tokens=2)).encode()
    request = HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with connected(live) as [connection]:
        for start in range(0, len(request), 20):
            connection.sendall(request[start : start + 20])
            time.sleep(0.01)
        assert rest_of(connection).startswith(b"HTTP/1.1 200")


def test_an_answer_outlasts_the_time_that_requests_have_to_come_in(
    make_engine: Callable[..., Engine], hurried: float
) -> None:
    """Also where the next request has begun to come meanwhile: it is that one which is late."""
    body = json.dumps(chat_body(stream=True, ignore_eos=True, max_tokens=100)).encode()
    with serving(slowed(make_engine(), 0.02)) as live, connected(live) as [connection]:
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body + b"GET /he")
        start = time.monotonic()
        received = b""
        while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            received += connection.recv(65536)
        assert time.monotonic() - start > hurried, "the answer took too little to show anything"
        assert error_of(rest_of(connection), 408)["code"] == "request_timeout"


@pytest.mark.parametrize("many", [b"x-%d: y\r\n", b"y" * 1000], ids=["many headers", "one header"])
def test_headers_without_end_are_refused_before_they_fill_the_memory(live: LiveServer, many: bytes) -> None:
    with connected(live) as [connection]:
        connection.sendall(HEAD + (b"" if b"%d" in many else b"x-long: "))
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 64 * MIB:
                sent += connection.send((many % sent if b"%d" in many else many) * 16)
        assert sent < 32 * MIB, "what the sockets hold, and no more"
        answer = rest_of(connection)
        if answer:  # a reset may come before it
            assert error_of(answer, 431)["code"] == "request_header_fields_too_large"
    assert httpx.get(live.url + "/health").status_code == 200


def test_what_is_no_http_is_a_400_in_the_usual_shape(live: LiveServer) -> None:
    for noise in (b"\x16\x03\x01\x02\x00\x01", b"HELLO\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"):
        with connected(live) as [connection]:
            connection.sendall(noise)
            assert error_of(rest_of(connection), 400)["code"] == "invalid_http"


def test_a_large_body_is_refused_before_any_of_it_is_sent(live: LiveServer) -> None:
    with connected(live) as [connection]:
        connection.sendall(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % (64 * MIB))
        assert error_of(rest_of(connection), 413)["code"] == "request_too_large"


def test_a_body_of_unknown_length_is_refused_at_the_limit_and_never_held(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that goes on after the refusal is thrown away, and cut off in the end."""
    monkeypatch.setattr(HttpProtocol, "body_timeout_s", 3.0)
    chunk = b"%x\r\n" % MIB + b" " * MIB + b"\r\n"
    memory = psutil.Process(os.getpid())
    with connected(live) as [connection]:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        num_sent, peak, before = 0, 0, memory.memory_info().rss
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                connection.sendall(chunk)
                num_sent += 1
                peak = max(peak, memory.memory_info().rss)
                if num_sent > 64:
                    time.sleep(0.02)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            answer = connection.recv(65536)
    assert num_sent > RequestLimits().max_body_bytes // MIB
    assert peak - before < 24 * MIB
    if answer:  # a reset may come before it
        assert error_of(answer, 413)["code"] == "request_too_large"
    assert httpx.get(live.url + "/health").status_code == 200


def test_a_client_that_leaves_within_its_body_is_no_fault_of_the_server(
    live: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        with connected(live, 5) as connections:
            for connection in connections:
                connection.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
            assert httpx.get(live.url + "/health").status_code == 200
        wait_until(lambda: live.async_engine.num_in_flight == 0, "the server to notice")
        assert httpx.get(live.url + "/health").status_code == 200
    assert [record.getMessage() for record in caplog.records] == []


async def test_five_hundred_clients_at_once_are_all_answered(live: LiveServer) -> None:
    body = json.dumps(chat_body(stream=True, ignore_eos=True, max_tokens=3)).encode()
    request = HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    connections = [await asyncio.open_connection("127.0.0.1", live.port) for _ in range(500)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(request)
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
        return received

    async with asyncio.timeout(4 * TIMEOUT_S):
        answers = await asyncio.gather(*(answer(*connection) for connection in connections))
    assert all(each.startswith(b"HTTP/1.1 200") for each in answers)
    assert all(each.count(b"data: [DONE]") == 1 for each in answers)
    wait_until(lambda: live.num_blocks_in_use() == 0, "every block to be freed")
