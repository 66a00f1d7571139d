"""`specdec serve`: load, serve, and say what a user needs to send the first request."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
from collections.abc import Mapping

import msgspec

from specdec.cli.console import say
from specdec.config import EngineConfig
from specdec.logs import FIELDS
from specdec.models.progress import ModelProgress, ProgressCallback, progress_bars
from specdec.server import RequestLimits, ServerConfig, ServerInfo, serve
from specdec.speculative import SpeculativeConfig, Verification

logger = logging.getLogger(__name__)

EXAMPLE_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}


def serve_until_stopped(
    engine_config: EngineConfig, server_config: ServerConfig, *, notes: Mapping[str, str], in_process: bool
) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code. `notes` are printed for the device that was chosen."""
    server_config = msgspec.structs.replace(server_config, limits=request_limits(engine_config))
    with contextlib.ExitStack() as stack:
        progress = log_progress() if server_config.log_format == "json" else stack.enter_context(progress_bars())

        def ready(info: ServerInfo) -> None:
            found = [notes[device]] if (device := info.engine.device.partition(":")[0]) in notes else []
            if not server_config.is_guarded and not _is_loopback(server_config.host):
                found.append(f"whoever reaches {server_config.host} can use this server; guard it with --api-key-file")
            if server_config.log_format == "json":
                logger.info("ready", extra={FIELDS: msgspec.to_builtins(info)})
                for note in found:
                    logger.warning("%s", note)
                return
            for line in banner(info, engine_config.speculative, guarded=server_config.is_guarded):
                say(line)
            for note in found:
                say(f"note: {note}", style="yellow")

        return serve(engine_config, server_config, on_ready=ready, progress=progress, in_process=in_process)


def log_progress() -> ProgressCallback:
    """A callback that logs each stage of pulling and loading once: bars are no lines of JSON."""
    logged: set[str] = set()

    def log(report: ModelProgress) -> None:
        if report.description not in logged:
            logged.add(report.description)
            logger.info("%s", report.description, extra={FIELDS: {"stage": report.stage}})

    return log


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name of this machine, which others may know
        return False


def request_limits(engine_config: EngineConfig) -> RequestLimits:
    """Those of the server, with room for the schemas that the engine was told to take."""
    limits = RequestLimits()
    if engine_config.grammar_limits is None:
        return limits
    max_schema_bytes = engine_config.grammar_limits.max_schema_bytes
    # In a body the schema may be written with escapes and whitespace, and there is a prompt beside it.
    max_body_bytes = max(limits.max_body_bytes, 2 * max_schema_bytes + limits.max_body_bytes // 2)
    return msgspec.structs.replace(limits, max_schema_bytes=max_schema_bytes, max_body_bytes=max_body_bytes)


def banner(info: ServerInfo, speculative: SpeculativeConfig | None, *, guarded: bool) -> list[str]:
    """The lines that greet a user: what runs, what it holds, where it listens, and a request to paste."""
    engine = info.engine
    where = f"{engine.device}, {engine.num_threads} threads" if engine.device == "cpu" else engine.device
    exact = ", exact" if engine.exact else ""
    memory = f"{engine.num_kv_blocks} blocks of {engine.block_size} tokens, {engine.kv_cache_bytes / 2**20:.0f} MiB"
    concurrency = f"{engine.max_concurrency:.1f} sequences of {engine.max_model_len} tokens at once"
    return [
        "",
        f"  model      {engine.model}{_aliases(info)}, {engine.dtype} on {where}{exact}",
        f"  KV cache   {memory}: {concurrency}",
        f"  drafts     {_drafts(speculative)}",
        f"  ready      {info.url}/v1 in {info.load_seconds:.1f} s; Ctrl-C stops",
        "",
        "Try it:",
        "",
        _curl(info, guarded=guarded),
        "",
    ]


def _aliases(info: ServerInfo) -> str:
    names = [name for name in info.model_names if name != info.engine.model]
    return f" as {', '.join(names)}" if names else ""


def _drafts(speculative: SpeculativeConfig | None) -> str:
    if speculative is None or not speculative.methods:
        return "none (--spec chain turns speculation on)"
    plan = speculative.plan
    method = speculative.method if speculative.model is None else f"{speculative.method} with {speculative.model}"
    length = f"{plan.max_tokens} tokens each" if plan.num_tokens else f"up to {plan.max_tokens} tokens, as many as pay"
    verification = "" if plan.verification is Verification.COUPLED else f", verification {plan.verification}"
    more = "; --spec chain drafts from everything" if speculative.method == "grammar" else ""
    return f"{method}, {length}{verification}{more}"


def _curl(info: ServerInfo, *, guarded: bool) -> str:
    body = {
        "model": info.model_names[0],
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": EXAMPLE_SCHEMA}},
    }
    key = " -H 'Authorization: Bearer YOUR_KEY'" if guarded else ""
    # Between single quotes a shell takes everything but a single quote as it is.
    text = json.dumps(body).replace("'", "'\\''")
    return f"curl {info.url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{text}'"
