"""From checked fields to a response: submit, then stream or gather, the same way for every endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from litestar import Request as HttpRequest
from litestar import Response

from specdec import DeltaStream, Request, TokenDelta
from specdec.server.access_log import log_prompts
from specdec.server.answer import Answer
from specdec.server.body import IGNORED_HEADER, answered, header_of
from specdec.server.connection import while_connected
from specdec.server.errors import ApiError, ErrorObject, fields_named
from specdec.server.event_stream import Chunks, event_frames, event_stream, gather_answer
from specdec.server.exchange import Exchange, exchange_of
from specdec.server.metrics import LatencyObserver
from specdec.server.service import Service, service_of


async def respond(
    http_request: HttpRequest[Any, Any, Any],
    requests: Sequence[Request],
    *,
    ignored: Sequence[str],
    params: Mapping[str, str],
    has_report: bool,
    has_prediction: bool,
    has_trace: bool,
    chunks: Callable[[Answer], Chunks] | None,
    whole: Callable[[Answer], msgspec.Struct],
) -> Response[Any]:
    """Generate, and answer in the endpoint's own words: by `chunks` if given, else as a `whole`.

    `params` has this endpoint's names of the engine's fields, `ignored` are the paths of fields without effect, for a
    header; with `has_report` the answer says what was enforced, with `has_prediction` what became of
    the prediction, with `has_trace` what was drafted. What is refused is refused before the status line, for a stream
    too.
    """
    service, exchange = service_of(http_request), exchange_of(http_request)
    answer = Answer(
        requests,
        keeps_content=chunks is None,
        has_report=has_report,
        has_prediction=has_prediction,
        has_trace=has_trace,
        has_steps=service.config.per_request_spec_decode_metrics == "detailed",
    )
    if service.config.log_requests:
        await asyncio.to_thread(log_prompts, requests, service.engine.tokenizer)
    with fields_named(params):
        deltas = await while_connected(_submit(service, exchange, requests), http_request.receive)
    exchange.account = answer.account
    if chunks is not None:
        headers = {IGNORED_HEADER: header_of(ignored)} if ignored else {}
        frames = event_frames(deltas, answer, chunks(answer), service.config.keep_alive_interval_s)
        return event_stream(frames, headers)
    await while_connected(gather_answer(deltas, answer), http_request.receive)
    return answered(whole(answer), ignored)


async def _submit(service: Service, exchange: Exchange, requests: Sequence[Request]) -> DeltaStream:
    """Start the requests; they end with the exchange at the latest."""
    ticket = service.admission.admit(exchange.caller, requests)
    exchange.at_end(ticket.close)
    observe_latency = LatencyObserver(service.metrics, requests)

    def observe(delta: TokenDelta) -> None:
        ticket.observe(delta)
        observe_latency(delta)

    deadline = _deadline(service, exchange)
    try:
        async with asyncio.timeout_at(deadline):
            of_caller = [msgspec.structs.replace(request, caller=exchange.caller) for request in requests]
            with service.metrics.compiling(requests):
                deltas = await service.engine.submit(*of_caller, observer=observe)
    except TimeoutError as error:
        raise _timed_out(service) from error
    exchange.at_end(deltas.close)
    if deadline is not None:
        timer = asyncio.get_running_loop().call_at(deadline, lambda: deltas.fail(_timed_out(service)))
        exchange.at_end(timer.cancel)
    return deltas


def _deadline(service: Service, exchange: Exchange) -> float | None:
    """On the event loop's clock."""
    timeout_s = service.config.request_timeout_s
    return None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s - exchange.seconds


def _timed_out(service: Service) -> ApiError:
    return ApiError(
        504,
        ErrorObject(
            message=f"the request took longer than the {service.config.request_timeout_s:g} s that this server allows",
            type="server_error",
            code="request_timeout",
        ),
        {"x-should-retry": "false"},
    )
