"""ServerConfig: how the HTTP side is bound, guarded and bounded."""

from __future__ import annotations

from typing import Literal

import msgspec

from specdec import ConfigError

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
    max_prediction_bytes: int = 64 * 2**10
    """Each choice indexes its prediction on the engine's thread: about 0.3 s at worst for so many bytes."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about the server that is not about the engine. Raises ConfigError for a value that cannot work."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free port; ServerInfo.url says which."""
    api_keys: tuple[str, ...] = ()
    """Any of them opens every route; without one, nothing is guarded."""
    served_model_names: tuple[str, ...] = ()
    """Names that requests may give as `model`, the first one is reported; none takes the engine's own."""
    limits: RequestLimits = RequestLimits()
    per_request_spec_decode_metrics: Literal["off", "summary"] = "off"
    """summary adds `metrics.speculative_decoding`, in vLLM's shape, to every answer with one choice."""
    reasoning_parser: str = "auto"
    """Whether answers begin with reasoning between think tags: auto goes by the model's chat template, none says no,
    deepseek_r1 and qwen3 say yes."""
    keep_alive_interval_s: float = 15.0
    """A stream that has nothing to say sends a comment this often, so that no proxy takes it for dead."""
    shutdown_grace_s: float = 30.0
    """What a SIGTERM leaves running requests before they end with an error."""
    stall_timeout_s: float = 300.0
    """One engine step that takes longer turns /health to 503."""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "warning"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must be between 0 and 65535", flag="--port")
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or key != key.strip():
                raise ConfigError(
                    "an API key is empty or holds characters that no HTTP header can carry; use printable ASCII",
                    flag="--api-key",
                )
        if any(not name for name in self.served_model_names):
            raise ConfigError("a served model name is empty", flag="--served-model-name")
        if self.reasoning_parser not in REASONING_PARSERS:
            raise ConfigError(
                f"the reasoning parser {self.reasoning_parser!r} does not exist; choose {', '.join(REASONING_PARSERS)}",
                flag="--reasoning-parser",
            )
        for name in ("keep_alive_interval_s", "stall_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name):g}; it must be positive")
        if self.shutdown_grace_s < 0:
            raise ConfigError(f"shutdown_grace_s is {self.shutdown_grace_s:g}; it must not be negative")
        if self.limits.max_body_bytes < 1024:
            raise ConfigError(f"max_body_bytes is {self.limits.max_body_bytes}; it must be at least 1024")
