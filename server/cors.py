"""CORS: which pages of other origins a browser lets call the server. Without any configured, none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from litestar.types import Send

_MAX_AGE_S = 600


class Cors:
    """The answers that a browser asks for (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)

    def allows(self, origin: bytes | None) -> bool:
        """Whether pages of this origin may read answers."""
        return origin is not None and bool({"*", origin.decode("latin-1")} & self._origins)

    def headers(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        """What every answer to an allowed origin has."""
        if not self._origins:
            return []
        # What depends on the origin must not be cached for another.
        vary = [(b"vary", b"origin")]
        if origin is None or not self.allows(origin):
            return vary
        exposed = b"x-request-id, retry-after, openai-processing-ms"
        return [*vary, (b"access-control-allow-origin", origin), (b"access-control-expose-headers", exposed)]

    async def answer_preflight(self, asked_headers: bytes, send: Send) -> None:
        """Before a request that needs leave; the request itself needs its key as ever."""
        headers = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", asked_headers),
            (b"access-control-max-age", b"%d" % _MAX_AGE_S),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
