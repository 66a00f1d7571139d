"""ServerConfig: how the HTTP side is bound, guarded and bounded."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

import msgspec

from specdec import ConfigError
from specdec.logs import LogFormat
from specdec.server.allowed_hosts import is_host
from specdec.server.auth import is_header_text

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9.\-\[\]:]+")

SpecDecodeMetrics: TypeAlias = Literal["none", "summary", "detailed"]

REASONING_PARSERS = ("auto", "none", "deepseek_r1", "qwen3")


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request may ask for; each excess is a 400 that names the field, or a 413 for the body."""

    max_body_bytes: int = 4 * 2**20
    max_choices: int = 16
    max_prompts: int = 64
    max_messages: int = 2048
    max_stop_strings: int = 16
    max_stop_bytes: int = 256
    max_stop_token_ids: int = 128
    max_logit_bias: int = 1024
    max_schema_bytes: int = 256 * 2**10
    """Of one constraint; the schemas of all tools count together."""
    max_tools: int = 128


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about the server that is not about the engine. Raises ConfigError for a value that cannot work."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free port; ServerInfo.url says which."""
    api_keys: tuple[str, ...] = ()
    """Any of them opens every route; without any, nothing is guarded."""
    api_key_digests: tuple[str, ...] = ()
    """SHA-256 digests, in hexadecimal, of further keys (auth.read_key_file)."""
    metrics_key: str | None = None
    """What opens /metrics, and nothing else; None has it opened by the other keys."""
    has_public_metrics: bool = False
    """Whether /metrics needs no key."""
    metrics_compat: Literal["none", "vllm"] = "none"
    """vllm has /metrics give every metric a second time, under vLLM's prefix."""
    cors_origins: tuple[str, ...] = ()
    """Origins, as https://example.org, whose pages may call the server from a browser; * is all of them."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that requests may give as their host, as llm.example.org or *.example.org; none takes every name. Probes
    (/health, /ready) may give any."""
    served_model_names: tuple[str, ...] = ()
    """Names that requests may give as `model`, the first one is reported; none takes the engine's own."""
    limits: RequestLimits = RequestLimits()
    per_request_spec_decode_metrics: SpecDecodeMetrics = "none"
    """summary adds `metrics.speculative_decoding`, in vLLM's shape, to every answer with one choice; detailed adds to
    that what each pass of the target drafted and accepted."""
    max_num_queued_reqs: int | None = 1024
    """Choices in flight, running or waiting; beyond it a request is a 503. None does not limit."""
    max_num_queued_tokens: int | None = None
    """Prompt tokens that wait to be computed; beyond it a request is a 503. None does not limit."""
    max_connections: int | None = None
    """Connections at once; beyond it a request is a 503, but for /health, /ready and /metrics. None is 1024, or fewer
    where the limit of open files leaves no room."""
    rate_limit: int | None = None
    """Requests per minute of one API key, or without keys of one address; beyond it a request is a 429."""
    request_timeout_s: float | None = None
    """What takes longer from its arrival to its last token ends with an error; a 504 where none was sent."""
    reasoning_parser: str = "auto"
    """Whether answers begin with reasoning between think tags: auto goes by the model's chat template, none says no,
    deepseek_r1 and qwen3 say yes."""
    keep_alive_interval_s: float = 15.0
    """A stream that has nothing to say sends a comment this often, so that no proxy takes it for dead."""
    shutdown_grace_s: float = 30.0
    """What a SIGTERM leaves running requests before they end with an error."""
    stall_timeout_s: float = 300.0
    """One engine step that takes longer turns /health to 503."""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    """Of specdec's own records; libraries log from warnings on."""
    log_format: LogFormat = "text"
    """How serve() writes its log, one line per record."""
    log_requests: bool = False
    """Whether prompts are logged; without it nothing of a request's content is."""

    @property
    def is_guarded(self) -> bool:
        """Whether requests need a key."""
        return bool(self.api_keys or self.api_key_digests)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must be between 0 and 65535", flag="--port")
        for key, flag in (
            *((key, "--api-key") for key in self.api_keys),
            *(((self.metrics_key, "--metrics-key"),) if self.metrics_key is not None else ()),
        ):
            if not is_header_text(key):
                raise ConfigError(
                    "an API key is empty or holds characters that no HTTP header can carry; use printable ASCII",
                    flag=flag,
                )
        if self.metrics_key is not None and self.has_public_metrics:
            raise ConfigError("public metrics need no key; drop one of the two", flag="--public-metrics")
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"{origin!r} is no origin; write it as https://example.org, without a path, or *",
                    flag="--cors-origin",
                )
        for host in self.allowed_hosts:
            if not is_host(host):
                raise ConfigError(
                    f"{host!r} is no host; write it as llm.example.org or *.example.org, without a port",
                    flag="--allowed-host",
                )
        if any(not name for name in self.served_model_names):
            raise ConfigError("a served model name is empty", flag="--served-model-name")
        for name, flag in (
            ("max_num_queued_reqs", "--max-num-queued-reqs"),
            ("max_num_queued_tokens", "--max-num-queued-tokens"),
            ("max_connections", "--max-connections"),
            ("rate_limit", "--rate-limit"),
            ("request_timeout_s", "--request-timeout"),
            ("keep_alive_interval_s", None),
            ("stall_timeout_s", None),
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value:g}; it must be positive", flag=flag)
        if self.reasoning_parser not in REASONING_PARSERS:
            raise ConfigError(
                f"the reasoning parser {self.reasoning_parser!r} does not exist; choose {', '.join(REASONING_PARSERS)}",
                flag="--reasoning-parser",
            )
        if self.shutdown_grace_s < 0:
            raise ConfigError(f"shutdown_grace_s is {self.shutdown_grace_s:g}; it must not be negative")
        if self.limits.max_body_bytes < 1024:
            raise ConfigError(f"max_body_bytes is {self.limits.max_body_bytes}; it must be at least 1024")
