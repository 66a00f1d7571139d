"""The events of a /v1/responses stream, in the order in which OpenAI sends them."""

from __future__ import annotations

from specdec.server.event_stream import NamedEvent
from specdec.server.responses_wire import OutputItem, OutputText, ReasoningText, ResponseObject, TextLogprob


class ResponseEvent(NamedEvent, frozen=True, kw_only=True):
    """One event; they are numbered through."""

    sequence_number: int = 0


class StateEvent(ResponseEvent, frozen=True, kw_only=True):
    """response.created, .in_progress, .completed, .incomplete and .failed: the response as it is now."""

    response: ResponseObject


class ItemEvent(ResponseEvent, frozen=True, kw_only=True):
    """response.output_item.added and .done."""

    output_index: int
    item: OutputItem


class PartEvent(ResponseEvent, frozen=True, kw_only=True):
    """response.content_part.added and .done."""

    item_id: str
    output_index: int
    content_index: int = 0
    part: OutputText | ReasoningText


class TextDelta(ResponseEvent, frozen=True, kw_only=True):
    """How a text goes on."""

    type: str = "response.output_text.delta"
    item_id: str
    output_index: int
    content_index: int = 0
    delta: str
    logprobs: list[TextLogprob]


class TextDone(ResponseEvent, frozen=True, kw_only=True):
    """The whole text."""

    type: str = "response.output_text.done"
    item_id: str
    output_index: int
    content_index: int = 0
    text: str
    logprobs: list[TextLogprob]


class ReasoningDelta(ResponseEvent, frozen=True, kw_only=True):
    """How reasoning goes on."""

    type: str = "response.reasoning_text.delta"
    item_id: str
    output_index: int
    content_index: int = 0
    delta: str


class ReasoningDone(ResponseEvent, frozen=True, kw_only=True):
    """The whole reasoning."""

    type: str = "response.reasoning_text.done"
    item_id: str
    output_index: int
    content_index: int = 0
    text: str


class ArgumentsDelta(ResponseEvent, frozen=True, kw_only=True):
    """How the arguments of a call go on."""

    type: str = "response.function_call_arguments.delta"
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(ResponseEvent, frozen=True, kw_only=True):
    """All arguments of a call."""

    type: str = "response.function_call_arguments.done"
    item_id: str
    output_index: int
    name: str
    arguments: str
