"""httpx as tests on a busy machine want it: with patience, and with the authorities' certificates read once."""

from __future__ import annotations

import functools

import httpx

# Where a test names no other limit: httpx's own 5 s are few on a machine that does much else.
for _kind in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, _kind, 60.0)

# Every client would read them, a tenth of a second each time, for servers that have none.
httpx._transports.default.create_ssl_context = functools.cache(httpx._config.create_ssl_context)
