"""A uvicorn on 127.0.0.1, in a thread of the test process, around an engine that the test can reach."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import patient_http  # noqa: F401
import uvicorn

from specdec import AsyncEngine, Engine, EngineHandle
from specdec.server import ServerConfig, create_app
from specdec.server.http_protocol import HttpProtocol

TIMEOUT_S = 60.0
"""Against hanging only: a busy machine may take its time."""
CHAT = "/v1/chat/completions"


class LiveServer:
    """Serves an engine, on a thread unless it comes with its process, until stopped; `url` is where."""

    def __init__(self, engine: Engine | EngineHandle, config: ServerConfig) -> None:
        self.engine = engine
        self.async_engine = engine if isinstance(engine, EngineHandle) else AsyncEngine(engine)
        limit = config.max_connections
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_app(self.async_engine, config), port=0,
                http=HttpProtocol if limit is None else HttpProtocol.limited_to(limit), ws="none", log_config=None,
                access_log=False, server_header=False, timeout_graceful_shutdown=5,
            )
        )  # fmt: skip
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, "the server to start")
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the server did not stop"

    def connections(self) -> set[object]:
        return self._server.server_state.connections

    def num_blocks_in_use(self) -> int:
        return self.async_engine.stats().num_kv_blocks_in_use


@contextmanager
def serving(engine: Engine | EngineHandle, config: ServerConfig | None = None) -> Iterator[LiveServer]:
    server = LiveServer(engine, config or ServerConfig(served_model_names=("tiny",)))
    try:
        yield server
    finally:
        server.stop()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIMEOUT_S:g} s for {what}"
        time.sleep(0.005)


def slowed(engine: Engine, seconds: float) -> Engine:
    """The same engine, each step of which takes longer: the edge at which tests inject time."""
    step = engine.step

    def slow_step() -> object:
        time.sleep(seconds)
        return step()

    engine.step = slow_step
    return engine


def dying(engine: Engine, when: Callable[[Engine], bool]) -> Engine:
    """The same engine, whose step raises once the condition holds."""
    step = engine.step

    def fatal_step() -> object:
        if when(engine):
            raise RuntimeError("injected: device lost at 0xdeadbeef")
        return step()

    engine.step = fatal_step
    return engine


def chat_body(**fields: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], **fields}


def raw_request(port: int, body: dict[str, object], path: str = CHAT) -> socket.socket:
    """A connection with a request on it, nothing of whose answer has been read."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    payload = json.dumps(body).encode()
    connection.sendall(
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (path.encode(), len(payload), payload)
    )
    return connection


def read_past(connection: socket.socket, mark: bytes) -> bytes:
    """What comes, up to a mark in it and a little more."""
    received = b""
    while mark not in received:
        piece = connection.recv(65536)
        assert piece, f"the connection was closed before {mark!r}: {received!r}"
        received += piece
    return received


def read_events(response: httpx.Response) -> Iterator[dict[str, object]]:
    """The JSON of each event of a stream; the stream must end with [DONE]."""
    is_done = False
    for line in response.iter_lines():
        if not line or line.startswith(":"):
            continue
        assert not is_done, f"after [DONE]: {line}"
        assert line.startswith("data: "), line
        if line == "data: [DONE]":
            is_done = True
        else:
            yield json.loads(line.removeprefix("data: "))
    assert is_done, "the stream ended without [DONE]"
