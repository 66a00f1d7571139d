"""One turn of a conversation: a prompt, and an answer in an endpoint's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
from litestar import Request as HttpRequest
from litestar import Response

from specdec import Request, RequestError, SamplingParams
from specdec.server.answer import Answer
from specdec.server.answer_shape import AnswerShape
from specdec.server.event_stream import Chunks
from specdec.server.exchange import exchange_of
from specdec.server.generation import respond
from specdec.server.service import service_of
from specdec.server.speculation import RequestedSpeculation


class TurnSpelling(Protocol):
    """How one endpoint spells the answer."""

    id: str
    shape: AnswerShape

    def chunks(self, answer: Answer) -> Chunks:
        """Of a stream."""

    def whole(self, answer: Answer) -> msgspec.Struct:
        """Of an answer that is not streamed."""


async def answer_turn(
    http_request: HttpRequest[Any, Any, Any],
    spelling: TurnSpelling,
    prompt_token_ids: Sequence[int],
    sampling_params: SamplingParams,
    speculation: RequestedSpeculation,
    *,
    cache_salt: str | None,
    ignored: Sequence[str],
    params: Mapping[str, str],
    is_streamed: bool,
) -> Response[Any]:
    """Generate and answer; `params` and `ignored` are as `respond` has them. Errors name fields of the request."""
    shape = spelling.shape
    has_steps = service_of(http_request).config.per_request_spec_decode_metrics == "detailed"
    request = Request(
        request_id=spelling.id,
        prompt_token_ids=tuple(prompt_token_ids),
        sampling_params=sampling_params,
        constraint=shape.constraint,
        cache_salt=exchange_of(http_request).salted(cache_salt),
        speculative=speculation.params,
        prediction=speculation.prediction,
        trace=speculation.trace or has_steps,
    )
    try:
        return await respond(
            http_request,
            [request],
            ignored=ignored,
            params={"logprobs": "top_logprobs", **params, **shape.requested.params},
            has_report=shape.has_report,
            has_prediction=speculation.has_prediction,
            has_trace=speculation.trace,
            chunks=spelling.chunks if is_streamed else None,
            whole=spelling.whole,
        )
    except RequestError as error:
        raise shape.located(error) from None
