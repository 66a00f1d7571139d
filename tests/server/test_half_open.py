"""Connections of which one end is gone: the server finds out, and what was done for it ends."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator

import httpx
import pytest
from live_server import LiveServer, chat_body, raw_request, serving, slowed, wait_until

from specdec import Engine
from specdec.server import ServerConfig
from specdec.server.http_protocol import HttpProtocol

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
TCP_REPAIR = 19
"""Linux: a socket that is closed in this mode goes without a word, as if its machine had lost its power."""


@pytest.fixture(scope="module")
def endless(make_engine: Callable[..., Engine]) -> Iterator[LiveServer]:
    """A server whose answers take minutes."""
    with serving(slowed(make_engine(), 0.1), ServerConfig(served_model_names=("tiny",))) as server:
        yield server


def asked(server: LiveServer, *, stream: bool) -> socket.socket:
    """A connection with a request that is being answered."""
    connection = raw_request(server.port, chat_body(stream=stream, ignore_eos=True, max_tokens=1500))
    wait_until(lambda: server.num_blocks_in_use() > 0, "the request to run")
    return connection


def assert_all_freed(server: LiveServer) -> None:
    wait_until(lambda: server.num_blocks_in_use() == 0, "every block to be freed")
    wait_until(lambda: server.async_engine.num_in_flight == 0, "the request to be forgotten")
    assert httpx.get(server.url + "/health").status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_REPAIR")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_vanishes_without_a_word_frees_its_blocks(
    endless: LiveServer, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    monkeypatch.setattr(HttpProtocol, "silence_timeout_s", 1)
    connection = asked(endless, stream=stream)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    except PermissionError:
        connection.close()
        pytest.skip("only root may let a connection vanish")
    connection.close()
    assert_all_freed(endless)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_shuts_its_side_has_left(endless: LiveServer, *, stream: bool) -> None:
    with asked(endless, stream=stream) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert_all_freed(endless)


def test_a_thousand_connections_that_were_reset_leave_nothing_behind(endless: LiveServer) -> None:
    for _ in range(1000):
        connection = socket.create_connection(("127.0.0.1", endless.port), timeout=20)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.sendall(HEAD)
        connection.close()
    wait_until(lambda: not endless.connections(), "the server to forget them")
    assert_all_freed(endless)
