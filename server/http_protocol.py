"""HttpProtocol: uvicorn's HTTP/1.1 with bounds on how long, and how large, a request may be in coming.

uvicorn itself waits for ever: for a first byte, for the end of headers of any size, for a body that drips in, and for
the rest of a body that was refused. Every such client holds a connection, and with headers memory.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from specdec.server.connection_limit import NUM_REFUSALS, mark_beyond_limit, too_many_connections
from specdec.server.errors import ErrorBody, ErrorObject

_TIMEOUT: Final = "request_timeout"
_NUM_PROBES: Final = 4
_CLOSING: Final = {"connection": "close"}


class HttpProtocol(HttpToolsProtocol):
    """One connection. What is out of bounds is answered in OpenAI's shape, if no answer has begun, and closed."""

    max_head_bytes = 64 * 2**10
    """Of the request line and the headers, to within what is read at once."""
    head_timeout_s = 30.0
    """From the connection, or from a request's first byte, to the end of its headers."""
    body_timeout_s = 120.0
    """From there to the end of the body: 4 MiB may come with 35 kB a second."""
    silence_timeout_s = 60
    """After so long without a sign of life the other end is asked for one, and given as long again to show it."""
    max_connections: int | None = None
    """Connections at once; those beyond it get one answer, and in less time. None does not limit."""
    refusal_timeout_s = 5.0
    """What a connection beyond the limit has in place of head_timeout_s."""

    @classmethod
    def limited_to(cls, max_connections: int) -> type[HttpProtocol]:
        """The same protocol with a limit."""
        return type("LimitedHttpProtocol", (cls,), {"max_connections": max_connections})

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # Any: what uvicorn gives to its own protocol is its own matter.
        super().__init__(*arguments, **named)
        self._reading: Literal["nothing", "head", "body"] = "nothing"
        self._num_head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_beyond_limit = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._notice_silence(transport)
        self._is_beyond_limit = self._has_too_many()
        if self._has_too_many(NUM_REFUSALS):
            refusal = too_many_connections()
            self._send_error(refusal.status, refusal.error, refusal.headers)
            self.transport.close()
            return
        self._wait(self.refusal_timeout_s if self._is_beyond_limit else self.head_timeout_s, self._head_timed_out)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        was_reading = self._reading
        super().data_received(data)
        if self._reading == "head" and was_reading != "body":
            self._num_head_bytes += len(data)
            if self._num_head_bytes > self.max_head_bytes:
                message = f"the headers have more than {self.max_head_bytes} bytes"
                self._refuse(431, message, "request_header_fields_too_large")
        elif self._reading == was_reading == "nothing" and self._timer is None and not self._is_answering():
            # Line ends, which may stand before a request, have ended uvicorn's wait for the next one.
            self._wait(self.head_timeout_s, self._head_timed_out)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_beyond_limit = self._is_beyond_limit and self._has_too_many()
        if self._is_beyond_limit:
            mark_beyond_limit(self.scope)
        self._reading = "head"
        self._wait(self.head_timeout_s, self._head_timed_out)

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()
        self._reading = "body"
        self._num_head_bytes = 0

    def on_message_complete(self) -> None:
        self._stop_waiting()
        super().on_message_complete()
        self._reading = "nothing"

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for bytes that are no HTTP."""
        self._refuse(400, msg, "invalid_http")

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing to warn of: whoever asks for another protocol is answered in this one (RFC 9110, 7.8)."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # Of a request that was sent ahead, which waits with its body for the answer before, the time begins here.
        if cycle.more_body:
            self._wait(self.body_timeout_s, self._body_timed_out)
        super()._start_asgi_task(cycle, app)

    def _notice_silence(self, transport: asyncio.Transport) -> None:
        """Have the system end a connection whose other end is gone without a word, as after a cut in the network."""
        connection = transport.get_extra_info("socket")
        if connection is None or connection.family not in {socket.AF_INET, socket.AF_INET6}:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", self.silence_timeout_s),
            ("TCP_KEEPINTVL", max(1, self.silence_timeout_s // _NUM_PROBES)),
            ("TCP_KEEPCNT", _NUM_PROBES),
            ("TCP_USER_TIMEOUT", 2000 * self.silence_timeout_s),
        ):
            # Not every system has all of them.
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_timed_out(self) -> None:
        if self._is_answering():
            # The next request is late, and the answer to the one before is not to suffer for it.
            self._wait(self.head_timeout_s, self._head_timed_out)
        elif self._reading == "nothing":
            self.transport.close()
        else:
            self._refuse(408, f"the headers did not come within {self.head_timeout_s:g} s", _TIMEOUT)

    def _body_timed_out(self) -> None:
        self._refuse(408, f"the body did not come within {self.body_timeout_s:g} s", _TIMEOUT)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Close, with an error where this request has no answer yet and no other's is being sent."""
        self._stop_waiting()
        is_due = not self.cycle.response_started if self._reading == "body" else not self._is_answering()
        if is_due:
            self._send_error(status, ErrorObject(message=message, type="invalid_request_error", code=code))
        self.transport.close()

    def _send_error(self, status: int, error: ErrorObject, headers: Mapping[str, str] = _CLOSING) -> None:
        body = msgspec.json.encode(ErrorBody(error))
        lines = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.transport.write(STATUS_LINE[status] + head.encode() + b"\r\n" + body)

    def _has_too_many(self, num_more: int = 0) -> bool:
        return self.max_connections is not None and len(self.connections) > self.max_connections + num_more
