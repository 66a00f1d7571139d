"""How many connections a server keeps, and what those beyond that are told."""

from __future__ import annotations

import sys
from typing import Any, Final

from specdec import ConfigError
from specdec.server.errors import RETRY_AFTER_S, ApiError, ErrorObject

DEFAULT_CONNECTIONS: Final = 1024
NUM_REFUSALS: Final = 64
"""Connections beyond the limit that are kept for as long as it takes to refuse them one request, or answer a probe."""
_NUM_OTHER_FILES: Final = 64
"""What the process has open besides connections."""
PROBES: Final = frozenset({"/health", "/ready", "/metrics"})
"""Answered on every connection: what watches a server has to be told that it is full."""

_SCOPE_KEY = "specdec_beyond_limit"


def connection_limit(asked: int | None) -> int:
    """What was asked for, or what the process may have open. Raises ConfigError for more than that."""
    room = _max_open_files() - NUM_REFUSALS - _NUM_OTHER_FILES
    if asked is None:
        return max(1, min(DEFAULT_CONNECTIONS, room))
    if asked > room:
        raise ConfigError(
            f"{asked} connections need {asked + NUM_REFUSALS + _NUM_OTHER_FILES} open files, and this process may have "
            f"{room + NUM_REFUSALS + _NUM_OTHER_FILES}; raise that (ulimit -n, LimitNOFILE), or ask for {max(1, room)}",
            flag="--max-connections",
        )
    return asked


def mark_beyond_limit(scope: Any) -> None:
    """Say in an ASGI scope that its connection is one too many (Any: uvicorn and Litestar type scopes apart)."""
    scope[_SCOPE_KEY] = True


def is_refused(scope: Any) -> bool:
    """Whether an ASGI scope's connection is one too many, and it asks for something else than how the server is."""
    return _SCOPE_KEY in scope and scope["path"] not in PROBES


def too_many_connections() -> ApiError:
    """503: the client may come again, on a connection of its own."""
    return ApiError(
        503,
        ErrorObject(
            message="the server has as many connections as it takes; try again later",
            type="service_unavailable",
            code="too_many_connections",
        ),
        {"retry-after": str(RETRY_AFTER_S), "connection": "close"},
    )


def _max_open_files() -> int:
    if sys.platform == "win32":
        return sys.maxsize
    import resource  # noqa: PLC0415, not on every platform

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
