"""The routes that say how the server is: health, readiness, version, models, metrics."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
from litestar import Request as HttpRequest
from litestar import Response, get
from litestar.params import FromPath

from specdec import __version__
from specdec.server.config import RequestLimits
from specdec.server.errors import ApiError, ErrorObject
from specdec.server.metrics import CONTENT_TYPE
from specdec.server.service import Service, service_of


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that requests can name. `root`, vLLM's addition, is the first name: paths are nobody's business."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["specdec"] = "specdec"
    root: str
    parent: None = None
    """vLLM's as well: of an adapter, what it adapts."""
    max_model_len: int


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class Status(msgspec.Struct, frozen=True):
    """The short answer of a probe."""

    status: Literal["ok"] = "ok"


class Version(msgspec.Struct, frozen=True):
    """What is running."""

    version: str = __version__


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """The engine that answers, and the limits of a request; no paths, and nothing of other requests."""

    version: str = __version__
    models: list[str]
    max_model_len: int
    vocab_size: int
    dtype: str
    device: str
    num_kv_blocks: int
    block_size: int
    """Tokens of a KV block."""
    max_num_seqs: int
    max_num_batched_tokens: int
    proposer: str
    num_speculative_tokens: int
    """The longest draft."""
    is_exact: bool
    limits: RequestLimits


@get("/health", status_code=200)
async def health(request: HttpRequest[Any, Any, Any]) -> Status:
    """Liveness: 503 once the engine has died or one of its steps takes longer than the limit."""
    service = service_of(request)
    busy_s, limit_s = service.engine.busy_seconds(), service.config.stall_timeout_s
    if not service.engine.is_alive:
        raise _unavailable("the engine is not running", "engine_dead")
    if busy_s > limit_s:
        raise _unavailable(f"the engine has been at one step for {busy_s:.0f} s", "engine_stalled")
    return Status()


@get("/ready", status_code=200)
async def ready(request: HttpRequest[Any, Any, Any]) -> Status:
    """Readiness: 503 before the engine runs and from the moment it shuts down."""
    if not service_of(request).engine.is_healthy:
        raise _unavailable("the server accepts no requests", "not_ready")
    return Status()


@get("/version", status_code=200)
async def version() -> Version:
    """The version."""
    return Version()


@get("/v1/specdec/info", status_code=200)
async def info(request: HttpRequest[Any, Any, Any]) -> Capabilities:
    """What serves, and what a request may ask of it."""
    service = service_of(request)
    built = service.engine.describe()
    return Capabilities(
        models=list(service.model_names),
        max_model_len=built.max_model_len,
        vocab_size=service.engine.tokenizer.vocab_size,
        dtype=built.dtype,
        device=built.device,
        num_kv_blocks=built.num_kv_blocks,
        block_size=built.block_size,
        max_num_seqs=built.max_num_seqs,
        max_num_batched_tokens=built.max_num_batched_tokens,
        proposer=built.proposer,
        num_speculative_tokens=built.num_speculative_tokens,
        is_exact=built.exact,
        limits=service.config.limits,
    )


@get("/v1/models", status_code=200)
async def models(request: HttpRequest[Any, Any, Any]) -> ModelList:
    """The names that `model` may have."""
    service = service_of(request)
    return ModelList(data=[_model(service, name) for name in service.model_names])


@get("/v1/models/{name:path}", status_code=200)
async def model(request: HttpRequest[Any, Any, Any], name: FromPath[str]) -> Model:
    """One of them; names may hold slashes."""
    service = service_of(request)
    return _model(service, service.check_model(name.removeprefix("/")))


@get("/metrics", status_code=200)
async def metrics(request: HttpRequest[Any, Any, Any]) -> Response[bytes]:
    """Prometheus exposition."""
    # Looking for the engine's children takes a while where a machine has many processes.
    text = await asyncio.to_thread(service_of(request).metrics.text)
    return Response(text, media_type=CONTENT_TYPE)


def _model(service: Service, name: str) -> Model:
    return Model(
        id=name,
        created=service.created,
        root=service.model_names[0],
        max_model_len=service.engine.max_model_len,
    )


def _unavailable(message: str, code: str) -> ApiError:
    return ApiError(503, ErrorObject(message=message, type="service_unavailable", code=code))
