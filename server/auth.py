"""API keys: compared in constant time, every route but the public ones behind them."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from specdec import ConfigError

PUBLIC_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
METRICS_PATH = "/metrics"

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ApiKeys:
    """The keys that open the server, kept as digests."""

    def __init__(self, keys: Iterable[str], digests: Iterable[str] = ()) -> None:
        """`digests` are SHA-256 digests, in hexadecimal, of further keys."""
        self._digests = (*(bytes.fromhex(digest_of(key)) for key in keys), *map(bytes.fromhex, digests))

    @property
    def guards(self) -> bool:
        """Whether there is any key at all."""
        return bool(self._digests)

    def admits(self, key: bytes) -> bool:
        """Whether `key` is one of ours; every one is compared, whichever it is."""
        digest = hashlib.sha256(key).digest()
        matches = [secrets.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def digest_of(key: str) -> str:
    """The SHA-256 digest of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_key_file(path: Path) -> tuple[str, ...]:
    """The digests of the keys in a file: one key, or `sha256:` and the digest of one, a line.

    Empty lines and those that begin with # are passed over. Raises ConfigError for a file that cannot be read or has
    no keys, and for a line that is none.
    """
    flag = "--api-key-file"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", flag=flag) from error
    digests = []
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        digest = entry.removeprefix("sha256:").lower() if entry.startswith("sha256:") else digest_of(entry)
        if not _DIGEST.fullmatch(digest) or not is_header_text(entry):
            raise ConfigError(
                f"line {number} of {path} is no key: it must be printable ASCII, or sha256: and 64 hexadecimal digits",
                flag=flag,
            )
        digests.append(digest)
    if not digests:
        raise ConfigError(f"{path} holds no keys; write one a line", flag=flag)
    return tuple(digests)


def is_header_text(key: str) -> bool:
    """Whether an HTTP header can carry a key as it is."""
    return bool(key) and key.isascii() and key.isprintable() and key == key.strip()


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
