"""One HTTP request and its response, as the gate and the handlers share them."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from litestar import Request as HttpRequest

_STATE_KEY = "specdec_exchange"


@dataclass(slots=True)
class Exchange:
    """Lives from the first byte of a request to the end of its response, however that ends."""

    request_id: str
    cache_salt: str = ""
    """Of the caller's API key: callers with different keys share no prefix-cache blocks."""
    caller: str = ""
    """The holder of the API key, without showing it; without keys everybody is one."""
    start: float = field(default_factory=time.monotonic)
    status: int = 0
    account: Callable[[], dict[str, object]] | None = None
    """What the access line says of the answer, once there is one."""
    on_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def at_end(self, close: Callable[[], None]) -> None:
        """Have `close` called when the response is complete, has failed, or its client is gone."""
        self.on_end.callback(close)

    def salted(self, cache_salt: str | None) -> str:
        """The caller's salt with a request's own, which callers may choose alike."""
        if cache_salt is None:
            return self.cache_salt
        return hashlib.sha256(f"{self.cache_salt}:{cache_salt}".encode()).hexdigest()

    @property
    def seconds(self) -> float:
        """Since the request arrived."""
        return time.monotonic() - self.start

    def enter(self, scope: Any) -> None:
        """Make this the exchange of an ASGI scope (Any: uvicorn and Litestar type scopes apart)."""
        scope.setdefault("state", {})[_STATE_KEY] = self


def exchange_of(http_request: HttpRequest[Any, Any, Any]) -> Exchange:
    """The exchange that the gate opened for this request."""
    exchange = http_request.scope["state"][_STATE_KEY]
    assert isinstance(exchange, Exchange)
    return exchange
