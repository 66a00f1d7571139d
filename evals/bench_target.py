"""Target: the server under load: where it is, what it serves, and what of the API it knows."""

from __future__ import annotations

import contextlib

import httpx
import msgspec

from specdec.errors import EngineError
from specdec.evals.bench_metrics import ServerMetrics, scrape
from specdec.evals.bench_traffic import PATHS, Endpoint

_CONNECT_TIMEOUT_S = 30.0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out before the load."""

    url: str
    """Without /v1."""
    model: str
    is_specdec: bool
    has_metrics: bool
    """Whether it has /metrics with vLLM's names."""
    has_running_usage: bool
    """Whether its streams may count tokens as they go."""


class _Model(msgspec.Struct):
    id: str
    owned_by: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


def client_of(url: str, api_key: str | None, timeout_s: float) -> httpx.AsyncClient:
    """A client with as many connections as it is asked to have at once. `url` is the server's, with or without /v1."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        _raise_file_limit()
    return httpx.AsyncClient(
        base_url=url.rstrip("/").removesuffix("/v1"),
        headers={"authorization": f"Bearer {api_key}"} if api_key else {},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        timeout=httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S),
    )


async def find_target(client: httpx.AsyncClient, model: str | None, endpoint: Endpoint) -> Target:
    """Ask the server what it is, with one request for a token. Raises EngineError where it does not answer that."""
    try:
        response = await client.get("/v1/models")
        response.raise_for_status()
        models = msgspec.json.decode(response.content, type=_Models).data
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        raise EngineError(
            f"{client.base_url} does not name its models ({error}); is a server running there, and --api-key right?"
        ) from error
    if not models:
        raise EngineError(f"{client.base_url} serves no model")
    name = model or models[0].id
    metrics: ServerMetrics | None = await scrape(client)
    is_specdec = any(each.owned_by == "specdec" for each in models)
    return Target(
        url=str(client.base_url).rstrip("/"),
        model=name,
        is_specdec=is_specdec,
        has_metrics=metrics is not None,
        has_running_usage=await _takes_running_usage(client, name, endpoint),
    )


async def _takes_running_usage(client: httpx.AsyncClient, model: str, endpoint: Endpoint) -> bool:
    body: dict[str, object] = {"model": model, "max_tokens": 1, "stream": True}
    body |= {"messages": [{"role": "user", "content": "Hello"}]} if endpoint == "chat" else {"prompt": "Hello"}
    refusal = ""
    for options in ({"include_usage": True, "continuous_usage_stats": True}, {"include_usage": True}):
        try:
            response = await client.post(PATHS[endpoint], json={**body, "stream_options": options})
        except httpx.HTTPError as error:
            raise EngineError(f"{client.base_url} does not answer: {type(error).__name__}: {error}") from error
        if response.status_code == httpx.codes.OK:
            return len(options) > 1
        refusal = f"status {response.status_code}: {response.text[:500]}"
    raise EngineError(f"{client.base_url} does not answer a request for one token of {model!r}: {refusal}")


def _raise_file_limit() -> None:
    """Every connection is a file, and the usual limit of 1024 is not the highest that a process may set."""
    import resource  # noqa: PLC0415, not on every platform

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
