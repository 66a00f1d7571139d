"""Chat completions on the wire: the request, the answer, the chunks of a stream."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from specdec import SpeculativeParams, TokenLogprob
from specdec.server.conversation import Message
from specdec.server.response_format import ResponseFormat
from specdec.server.sampling import SamplingFields
from specdec.server.speculation import Prediction
from specdec.server.structured_outputs import StructuredOutputs
from specdec.server.tool_wire import Tool, ToolChoice
from specdec.server.usage import Extension, RequestMetrics, Usage

MIN_LOGPROB = -9999.0
"""OpenAI's stand-in for a log-probability of minus infinity, which JSON cannot say."""


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream carries besides text; the second is vLLM's."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions; structured_outputs is vLLM's, speculative and specdec_trace are ours."""

    model: str
    messages: list[Message]
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    metadata: dict[str, str] | None = None
    chat_template_kwargs: dict[str, bool | str] | None = None
    """vLLM's: whether and how hard the model thinks, in the words of its chat template."""
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


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that was likely at some position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct, frozen=True):
    """The token that was drawn at a position, and those that were likely."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """One entry per token of the content; of an answer with calls, per token of its text as the model wrote it."""

    content: list[ChatLogprob]
    refusal: None = None


AnswerEnd = Literal["stop", "length", "tool_calls", "abort", "error"]
"""Why an answer ended."""


class AnswerFunction(msgspec.Struct, frozen=True):
    """The function of a call, and its arguments as JSON text."""

    name: str
    arguments: str


class AnswerCall(msgspec.Struct, frozen=True):
    """A call."""

    id: str
    function: AnswerFunction
    type: Literal["function"] = "function"


class AnswerMessage(msgspec.Struct, frozen=True):
    """The assistant's turn: text, calls, or both."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[AnswerCall] | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    """What came between think tags; under both names that clients know."""
    reasoning: str | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: AnswerEnd
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    """All tokens that the usage counts, those of a stop string included."""


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request that does not stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    service_tier: Literal["default"] = "default"
    metadata: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    """As the request has them."""
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    specdec: Extension
    metrics: RequestMetrics | msgspec.UnsetType | None = msgspec.UNSET


class FunctionDelta(msgspec.Struct, frozen=True):
    """The name of a call's function, once, and how its arguments go on."""

    arguments: str
    name: str | msgspec.UnsetType = msgspec.UNSET


class CallDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to one call; the first has its id."""

    index: int
    function: FunctionDelta
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to its choice."""

    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType | None = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[CallDelta] | msgspec.UnsetType = msgspec.UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """A chunk's one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: AnswerEnd | None = None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream; `usage` is absent unless asked for, then null until the last.

    Only the first has `prompt_token_ids`.
    """

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    specdec: Extension | msgspec.UnsetType = msgspec.UNSET
    metrics: RequestMetrics | msgspec.UnsetType | None = msgspec.UNSET


def chat_logprobs(entries: list[TokenLogprob] | tuple[TokenLogprob, ...] | None) -> ChatLogprobs | None:
    """The engine's log-probabilities in the chat shape; None stays None."""
    if entries is None:
        return None
    return ChatLogprobs(
        [
            ChatLogprob(
                token=entry.token,
                logprob=max(entry.logprob, MIN_LOGPROB),
                bytes=list(entry.token_bytes),
                top_logprobs=[
                    TopLogprob(likely.token, max(likely.logprob, MIN_LOGPROB), list(likely.token_bytes))
                    for likely in entry.top
                ],
            )
            for entry in entries
        ]
    )
