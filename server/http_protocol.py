"""HttpProtocol: uvicorn's HTTP/1.1 with bounds on how long, and how large, a request may be in coming.

uvicorn itself waits for ever: for a first byte, for the end of headers of any size, for a body that drips in, and for
the rest of a body that was refused. Every such client holds a connection, and with headers memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from specdec.server.errors import ErrorBody, ErrorObject

_TIMEOUT: Final = "request_timeout"


class HttpProtocol(HttpToolsProtocol):
    """One connection. What is out of bounds is answered in OpenAI's shape, if no answer has begun, and closed."""

    max_head_bytes = 64 * 2**10
    """Of the request line and the headers, to within what is read at once."""
    head_timeout_s = 30.0
    """From the connection, or from a request's first byte, to the end of its headers."""
    body_timeout_s = 120.0
    """From there to the end of the body: 4 MiB may come with 35 kB a second."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # Any: what uvicorn gives to its own protocol is its own matter.
        super().__init__(*arguments, **named)
        self._reading: Literal["nothing", "head", "body"] = "nothing"
        self._num_head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._wait(self.head_timeout_s, self._head_timed_out)

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

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # Of a request that was sent ahead, which waits with its body for the answer before, the time begins here.
        if cycle.more_body:
            self._wait(self.body_timeout_s, self._body_timed_out)
        super()._start_asgi_task(cycle, app)

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
            body = msgspec.json.encode(ErrorBody(ErrorObject(message=message, type="invalid_request_error", code=code)))
            headers = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + headers + body)
        self.transport.close()
