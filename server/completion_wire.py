"""Text completions on the wire: the request, and the one shape that answers and stream chunks share."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from specdec import FinishReason, SpeculativeParams, TokenLogprob
from specdec.server.chat_wire import MIN_LOGPROB, StreamOptions
from specdec.server.response_format import ResponseFormat
from specdec.server.sampling import SamplingFields
from specdec.server.speculation import Prediction
from specdec.server.structured_outputs import StructuredOutputs
from specdec.server.usage import Extension, RequestMetrics, Usage


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of POST /v1/completions; structured_outputs is vLLM's, what stands around it is an extension."""

    model: str
    prompt: str | list[str | int | list[int]]
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    prediction: Prediction | None = None
    speculative: SpeculativeParams | None = None
    specdec_trace: bool | None = None
    """Whether the answer says what was drafted, by whom, and how much of it was accepted."""
    return_token_ids: bool | None = None
    """vLLM's: whether the answer has the token ids of its prompt and of its choices."""
    cache_salt: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """vLLM's: requests with different ones share no cached prefixes, and draft from none of each other's answers."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One answer, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    """All tokens that the usage counts, those of a stop string included; what is echoed is none of them."""
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    """In a stream, of the first chunk of the choice."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, or one event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    specdec: Extension | msgspec.UnsetType = msgspec.UNSET
    metrics: RequestMetrics | msgspec.UnsetType | None = msgspec.UNSET


class TextOffsets:
    """Where in the text of a choice each token begins, for tokens that come in pieces."""

    def __init__(self, start: int = 0) -> None:
        self._offset = start

    def logprobs(
        self, entries: list[TokenLogprob] | tuple[TokenLogprob, ...] | None, *, has_top: bool
    ) -> CompletionLogprobs | None:
        """The engine's log-probabilities in the legacy shape; None stays None."""
        if entries is None:
            return None
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry.token)
        return CompletionLogprobs(
            tokens=[entry.token for entry in entries],
            token_logprobs=[max(entry.logprob, MIN_LOGPROB) for entry in entries],
            top_logprobs=[
                {likely.token: max(likely.logprob, MIN_LOGPROB) for likely in reversed(entry.top)} for entry in entries
            ]
            if has_top
            else None,
            text_offset=offsets,
        )
