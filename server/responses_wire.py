"""Responses on the wire: the request, and the object that answers it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from specdec import SpeculativeParams
from specdec.server.response_format import ABSENT
from specdec.server.sampling import SamplingFields
from specdec.server.schema_options import Options
from specdec.server.speculation import Prediction
from specdec.server.usage import Extension, RequestMetrics


class PlainText(msgspec.Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Anything goes."""


class AnyObject(msgspec.Struct, frozen=True, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class SchemaText(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """An instance of the schema, whatever `strict` says; `options` and `report` are extensions."""

    name: str
    schema: msgspec.Raw
    description: str | None = None
    strict: bool | None = None
    options: Options | msgspec.UnsetType | None = msgspec.UNSET
    report: bool | msgspec.UnsetType | None = msgspec.UNSET


class TextConfig(msgspec.Struct, frozen=True):
    """What text the answer is."""

    format: PlainText | AnyObject | SchemaText | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class FunctionTool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A function and the schema of its arguments, which is enforced whatever `strict` says.

    `options` and `report` are extensions.
    """

    name: str
    parameters: msgspec.Raw = msgspec.field(default_factory=lambda: ABSENT)
    strict: bool | None = None
    description: str | None = None
    options: Options | msgspec.UnsetType | None = msgspec.UNSET
    report: bool | msgspec.UnsetType | None = msgspec.UNSET


class ForcedFunction(msgspec.Struct, frozen=True, tag_field="type", tag="function", forbid_unknown_fields=True):
    """This function has to be called."""

    name: str


class AllowedFunctions(msgspec.Struct, frozen=True, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True):
    """The functions that may be called, and whether one has to be."""

    mode: Literal["auto", "required"]
    tools: list[ForcedFunction]


FunctionChoice = Literal["none", "auto", "required"] | ForcedFunction | AllowedFunctions


class EventOptions(msgspec.Struct, frozen=True):
    """What a stream carries besides the answer."""

    include_obfuscation: bool | None = None


class AskedReasoning(msgspec.Struct, frozen=True):
    """How hard the model shall think; summaries are never written."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of POST /v1/responses; what it has of sampling beyond OpenAI's is as in chat completions."""

    model: str
    input: str | list[msgspec.Raw]
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    reasoning: AskedReasoning | None = None
    chat_template_kwargs: dict[str, bool | str] | None = None
    prediction: Prediction | None = None
    speculative: SpeculativeParams | None = None
    specdec_trace: bool | None = None
    cache_salt: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    stream: bool | None = None
    stream_options: EventOptions | None = None


class TopTextLogprob(msgspec.Struct, frozen=True):
    """A token that was likely at some position."""

    token: str
    logprob: float
    bytes: list[int]


class TextLogprob(msgspec.Struct, frozen=True):
    """The token that was drawn at a position, and those that were likely."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopTextLogprob]


class OutputText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """A message's one part."""

    text: str
    annotations: list[None] = []
    logprobs: list[TextLogprob] = []


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """Text of the answer."""

    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


class ReasoningText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"):
    """The reasoning's one part."""

    text: str


class OutputReasoning(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """What came between think tags."""

    id: str
    status: ItemStatus
    summary: list[None] = []
    content: list[ReasoningText]


OutputItem = OutputMessage | OutputCall | OutputReasoning


class InputTokensDetails(msgspec.Struct, frozen=True):
    """Tokens whose KV came from the prefix cache; to write there costs nothing."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """Tokens of reasoning, and what became of a prediction's."""

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int | msgspec.UnsetType = msgspec.UNSET
    rejected_prediction_tokens: int | msgspec.UnsetType = msgspec.UNSET


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer cost."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Incomplete(msgspec.Struct, frozen=True):
    """Why the answer is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseFailure(msgspec.Struct, frozen=True):
    """Why there is no answer."""

    message: str
    code: Literal["server_error"] = "server_error"


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's response, with every key that its specification requires."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseFailure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    model: str
    output: list[OutputItem] = []
    previous_response_id: None = None
    tools: list[FunctionTool]
    tool_choice: FunctionChoice
    parallel_tool_calls: bool
    max_output_tokens: int | None
    max_tool_calls: int | None
    truncation: Literal["disabled"] = "disabled"
    text: TextConfig
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    reasoning: None = None
    usage: ResponseUsage | None = None
    store: bool = False
    background: bool = False
    service_tier: Literal["default"] = "default"
    metadata: dict[str, str]
    safety_identifier: str | None
    prompt_cache_key: str | None
    specdec: Extension | msgspec.UnsetType = msgspec.UNSET
    metrics: RequestMetrics | msgspec.UnsetType | None = msgspec.UNSET
