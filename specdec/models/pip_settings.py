"""What pip is configured to fetch packages with: its files and its environment, read through pip itself."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from urllib.parse import urlsplit

import msgspec

DEFAULT_INDEX = "https://pypi.org/simple"

_SETTING = re.compile(r"(?:(global|install|download|:env:)\.)?([\w-]+)=(.*)")
# Later ones win, as with pip.
_SECTIONS = ("global", "install", "download", ":env:")
_TRUE = {"1", "true", "yes", "on", "y", "t"}
_NETWORK_TIMEOUT_S = 30.0


class PipSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where packages come from, in the order in which they are looked up, and how the network is reached."""

    index_urls: tuple[str, ...] = (DEFAULT_INDEX,)
    find_links: tuple[str, ...] = ()
    """Folders, or pages of links."""
    trusted_hosts: tuple[str, ...] = ()
    """Hosts, with or without a port, whose certificate is not checked; digests are, always."""
    proxy: str | None = None
    cert: str | None = None
    client_cert: str | None = None
    timeout_s: float = _NETWORK_TIMEOUT_S

    @classmethod
    def read(cls) -> PipSettings:
        """The settings of this interpreter's pip, or of the PIP_ variables alone where it has no pip."""
        return cls.of(_through_pip() if find_spec("pip") else _through_environment())

    @classmethod
    def of(cls, values: dict[str, str]) -> PipSettings:
        """The settings that pip's options, by name, amount to."""
        no_index = values.get("no-index", "").lower() in _TRUE
        indexes = [values.get("index-url") or DEFAULT_INDEX, *values.get("extra-index-url", "").split()]
        return cls(
            index_urls=() if no_index else tuple(dict.fromkeys(url.rstrip("/") for url in indexes)),
            find_links=tuple(values.get("find-links", "").split()),
            trusted_hosts=tuple(values.get("trusted-host", "").split()),
            proxy=values.get("proxy") or None,
            cert=values.get("cert") or None,
            client_cert=values.get("client-cert") or None,
            timeout_s=max(_NETWORK_TIMEOUT_S, float(values.get("timeout") or values.get("default-timeout") or 0)),
        )

    def trusts(self, url: str) -> bool:
        """Whether the host of a URL needs no valid certificate."""
        parts = urlsplit(url)
        return bool({parts.hostname, f"{parts.hostname}:{parts.port}"} & set(self.trusted_hosts))


def redacted(text: str) -> str:
    """The text without the user and password of any URL in it."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1", text)


def _through_pip() -> dict[str, str]:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    by_section: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listed.splitlines():
        if match := _SETTING.fullmatch(line.strip()):
            section, name, value = match.groups()
            if section in by_section:
                by_section[section][name.lower().replace("_", "-")] = str(ast.literal_eval(value))
    merged: dict[str, str] = {}
    for section in _SECTIONS:
        merged |= by_section[section]
    return merged


def _through_environment() -> dict[str, str]:
    return {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith("PIP_")
    }
