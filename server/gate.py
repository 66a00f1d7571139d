"""The gate around the whole application: request ids, API keys, timing, and what must end with the request."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

import msgspec
from litestar.enums import ScopeType
from litestar.utils.path import normalize_path

from specdec.logs import REQUEST_ID
from specdec.server.access_log import log_access
from specdec.server.allowed_hosts import AllowedHosts, unknown_host
from specdec.server.auth import METRICS_PATH, PUBLIC_PATHS, ApiKeys, cache_salt, presented_key
from specdec.server.config import ServerConfig
from specdec.server.connection_limit import is_refused, too_many_connections
from specdec.server.cors import Cors
from specdec.server.errors import ApiError, ErrorBody, ErrorObject
from specdec.server.exchange import Exchange
from specdec.server.metrics import ServerMetrics
from specdec.server.rate_limit import RateLimit

if TYPE_CHECKING:
    from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
ANY_HOST_PATHS = frozenset({"/health", "/ready"})
"""Asked by whatever watches the server, at its address."""
UNROUTED = "unrouted"
"""The metrics label of a request that reached no route; paths themselves are the clients' to choose."""


class Gate:
    """ASGI, outside of routing, so that an unknown path is guarded like a known one."""

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics
        self._api_keys = ApiKeys(config.api_keys, config.api_key_digests)
        self._metrics_keys = self._api_keys if config.metrics_key is None else ApiKeys([config.metrics_key])
        self._public_paths = PUBLIC_PATHS | ({METRICS_PATH} if config.has_public_metrics else set())
        self._rate_limit = None if config.rate_limit is None else RateLimit(config.rate_limit)
        self._cors = Cors(config.cors_origins)
        self._allowed_hosts = AllowedHosts(config.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        key = presented_key(scope["headers"]) if self._api_keys.guards or self._metrics_keys.guards else None
        salt = cache_salt(key if self._api_keys.guards else None)
        exchange = Exchange(_request_id(headers.get(b"x-request-id")), salt, caller=salt)
        exchange.enter(scope)
        method = scope["method"]
        if method == "HEAD":
            # Answered as GET; the server, which has the scope as it came, leaves out the body (RFC 9110, 9.3.2).
            scope = {**scope, "method": "GET"}
        # uvicorn runs each request in a context of its own.
        REQUEST_ID.set(exchange.request_id)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", exchange.request_id.encode()),
                    (b"openai-processing-ms", b"%d" % (1e3 * exchange.seconds)),
                    *self._cors.headers(origin),
                ]
            await send(message)

        try:
            with exchange.on_end:
                asked_method = headers.get(b"access-control-request-method")
                if scope["path"] not in ANY_HOST_PATHS and not self._allowed_hosts.admits(headers.get(b"host")):
                    await _send_error(unknown_host(headers.get(b"host")), send_marked)
                elif method == "OPTIONS" and asked_method is not None and self._cors.allows(origin):
                    asked_headers = headers.get(b"access-control-request-headers", b"")
                    await self._cors.answer_preflight(asked_headers, send_marked)
                elif is_refused(scope):
                    self._metrics.count_rejection("connections")
                    await _send_error(too_many_connections(), send_marked)
                elif not self._admits(scope, key):
                    await _send_error(_unauthorized(), send_marked)
                elif (retry_after_s := self._seconds_to_wait(scope, exchange)) is not None:
                    self._metrics.count_rejection("rate_limit")
                    await _send_error(_too_many(retry_after_s), send_marked)
                else:
                    await self._app(scope, receive, send_marked)
        finally:
            self._record(scope, method, exchange)

    def _admits(self, scope: HTTPScope, key: bytes | None) -> bool:
        if scope["path"] in self._public_paths:
            return True
        keys = self._metrics_keys if _routed_path(scope) == METRICS_PATH else self._api_keys
        return not keys.guards or (keys.admits(key or b"") and key is not None)

    def _seconds_to_wait(self, scope: HTTPScope, exchange: Exchange) -> int | None:
        """None where the rate limit lets a request pass; only what generates is counted, and that is posted."""
        if self._rate_limit is None or scope["method"] != "POST":
            return None
        client = scope.get("client")
        return self._rate_limit.take(exchange.caller or (client[0] if client else ""))

    def _record(self, scope: HTTPScope, method: str, exchange: Exchange) -> None:
        route = str(scope.get("path_template") or UNROUTED)
        self._metrics.observe_http(method, route, exchange.status, exchange.seconds)
        log_access(method, scope["path"], exchange)


def _routed_path(scope: HTTPScope) -> str:
    """The path as Litestar's router has it, for which /metrics/ and //metrics are /metrics."""
    path = scope["path"]
    if root_path := scope.get("root_path", ""):
        path = path.split(root_path, maxsplit=1)[-1]
    return normalize_path(path)


def _request_id(given: bytes | None) -> str:
    """The caller's own id where it is fit for a header and a log line."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    return f"req-{secrets.token_hex(16)}"


def _unauthorized() -> ApiError:
    return ApiError(
        401,
        ErrorObject(
            message="a valid API key is required, as `Authorization: Bearer KEY` or `x-api-key: KEY`",
            type="authentication_error",
            code="invalid_api_key",
        ),
        {"www-authenticate": "Bearer"},
    )


def _too_many(retry_after_s: int) -> ApiError:
    return ApiError(
        429,
        ErrorObject(
            message=f"too many requests in the last minute; the next one is served in {retry_after_s} s",
            type="rate_limit_error",
            code="rate_limit_exceeded",
        ),
        {"retry-after": str(retry_after_s)},
    )


async def _send_error(error: ApiError, send: Send) -> None:
    body = msgspec.json.encode(ErrorBody(error.error))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
