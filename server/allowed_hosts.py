"""AllowedHosts: by which names the server answers.

A page whose own name was made to lead here, after a browser had loaded it, names that host in its requests; refusing
names that are not ours keeps such pages out where no key does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from specdec.server.errors import ApiError, bad_request

_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_PORT = re.compile(r":\d+$")


def is_host(text: str) -> bool:
    """Whether a configured host can be one: a name, *.name, or an address, without a port."""
    return _HOST.fullmatch(text) is not None


class AllowedHosts:
    """The names, in any case; without any, every name is one."""

    def __init__(self, hosts: Iterable[str]) -> None:
        """`*.example.org` is every name below example.org."""
        names = {host.lower() for host in hosts}
        self._names = frozenset(name for name in names if not name.startswith("*."))
        self._endings = tuple(name[1:] for name in names if name.startswith("*."))

    def admits(self, host: bytes | None) -> bool:
        """Whether a Host header, with or without a port, names one of them."""
        if not self._names and not self._endings:
            return True
        name = _PORT.sub("", (host or b"").decode("latin-1")).lower()
        return name in self._names or name.endswith(self._endings)


def unknown_host(host: bytes | None) -> ApiError:
    """400: the request was meant for somebody else."""
    shown = (host or b"").decode("latin-1")[:100]
    return bad_request(
        f"the server does not answer as {shown!r}; send a Host header that --allowed-host names", code="unknown_host"
    )
