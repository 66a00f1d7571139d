"""API keys: compared in constant time, every route but the public ones behind them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable

PUBLIC_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})


class ApiKeys:
    """The keys that open the server, kept as digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    @property
    def guards(self) -> bool:
        """Whether there is any key at all."""
        return bool(self._digests)

    def admits(self, key: bytes) -> bool:
        """Whether `key` is one of ours; every one is compared, whichever it is."""
        digest = hashlib.sha256(key).digest()
        matches = [secrets.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key in `Authorization: Bearer` or, without that header, in `x-api-key`."""
    by_name = dict(headers)
    authorization = by_name.get(b"authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(b" ")
        return key.strip() if scheme.lower() == b"bearer" else None
    return by_name.get(b"x-api-key")


def cache_salt(key: bytes | None) -> str:
    """What keeps the cached prefixes of one key's holder out of the timing that another can measure."""
    return "" if key is None else hashlib.sha256(b"cache-salt:" + key).hexdigest()
