"""From checked fields to a response: submit, then stream or gather, the same way for every endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from litestar import Request as HttpRequest
from litestar import Response

from specdec import DeltaStream, Request, RequestError, TokenDelta
from specdec.server.answer import Answer
from specdec.server.body import IGNORED_HEADER
from specdec.server.connection import while_connected
from specdec.server.event_stream import Chunks, event_frames, event_stream, gather_answer
from specdec.server.exchange import Exchange, exchange_of
from specdec.server.metrics import LatencyObserver
from specdec.server.service import Service, service_of


async def respond(
    http_request: HttpRequest[Any, Any, Any],
    requests: Sequence[Request],
    *,
    ignored: str,
    params: Mapping[str, str],
    has_report: bool,
    has_prediction: bool,
    has_trace: bool,
    chunks: Callable[[Answer], Chunks] | None,
    whole: Callable[[Answer], msgspec.Struct],
) -> Response[Any]:
    """Generate, and answer in the endpoint's own words: by `chunks` if given, else as a `whole`.

    `params` has this endpoint's names of the engine's fields, `ignored` the value of the header that names
    fields without effect; with `has_report` the answer says what was enforced, with `has_prediction` what became of
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
    try:
        deltas = await while_connected(_submit(service, exchange, requests, answer), http_request.receive)
    except RequestError as error:
        if error.param is not None:
            error.param = params.get(error.param, error.param)
        raise
    headers = {IGNORED_HEADER: ignored} if ignored else {}
    if chunks is not None:
        frames = event_frames(deltas, answer, chunks(answer), service.config.keep_alive_interval_s)
        return event_stream(frames, headers)
    await while_connected(gather_answer(deltas, answer), http_request.receive)
    return Response(whole(answer), status_code=200, media_type="application/json", headers=headers)


async def _submit(service: Service, exchange: Exchange, requests: Sequence[Request], answer: Answer) -> DeltaStream:
    """Start the requests; they end with the exchange at the latest."""
    observe_latency = LatencyObserver(service.metrics, requests)

    def observe(delta: TokenDelta) -> None:
        answer.trace(delta)
        observe_latency(delta)

    deltas = await service.engine.submit(*requests, observer=observe)
    exchange.at_end(deltas.close)
    return deltas
