"""ResponsesSpelling: an answer in the words of /v1/responses, whole or in events."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from specdec import FinishReason, SamplingParams, TokenDelta, TokenLogprob
from specdec.server.answer import Answer, Choice, new_id
from specdec.server.answer_reader import AnswerPiece, AnswerReader
from specdec.server.answer_shape import AnswerShape
from specdec.server.chat_wire import MIN_LOGPROB
from specdec.server.errors import ErrorObject
from specdec.server.response_items import ResponseItems
from specdec.server.responses_events import ResponseEvent, StateEvent
from specdec.server.responses_wire import (
    Incomplete,
    InputTokensDetails,
    OutputTokensDetails,
    PlainText,
    ResponseFailure,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
    TextConfig,
    TextLogprob,
    TopTextLogprob,
)
from specdec.server.service import Service
from specdec.server.speculation import RequestedSpeculation
from specdec.server.usage import Usage


class ResponsesSpelling:
    """What the answer and the events of one call have in common."""

    def __init__(
        self,
        service: Service,
        asked: ResponsesRequest,
        params: SamplingParams,
        speculation: RequestedSpeculation,
        shape: AnswerShape,
    ) -> None:
        self.id = new_id("resp")
        self.shape = shape
        self.max_draft_tokens = speculation.max_draft_tokens
        self.has_metrics = service.config.per_request_spec_decode_metrics != "none"
        text = asked.text or TextConfig()
        self._blank = ResponseObject(
            id=self.id,
            created_at=0,
            status="in_progress",
            instructions=asked.instructions,
            model=asked.model,
            tools=asked.tools or [],
            tool_choice=asked.tool_choice or "auto",
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            max_output_tokens=asked.max_output_tokens,
            max_tool_calls=asked.max_tool_calls,
            text=msgspec.structs.replace(text, format=text.format or PlainText()),
            temperature=params.temperature,
            top_p=params.top_p,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            top_logprobs=params.logprobs or 0,
            metadata=asked.metadata or {},
            safety_identifier=asked.safety_identifier,
            prompt_cache_key=asked.prompt_cache_key,
        )

    def begun(self, answer: Answer) -> ResponseObject:
        """The response before its first token."""
        return msgspec.structs.replace(self._blank, created_at=answer.created)

    def ended(self, answer: Answer, reason: FinishReason, items: ResponseItems) -> ResponseObject:
        """The response with all of its output."""
        is_cut = reason is FinishReason.LENGTH
        return msgspec.structs.replace(
            self.begun(answer),
            status="incomplete" if is_cut else "completed",
            completed_at=None if is_cut else int(time.time()),
            incomplete_details=Incomplete() if is_cut else None,
            output=items.done,
            usage=_usage(answer.usage()),
            specdec=self.shape.in_request(answer.extension()),
            metrics=answer.metrics(self.max_draft_tokens) if self.has_metrics else msgspec.UNSET,
        )

    def whole(self, answer: Answer) -> ResponseObject:
        """The answer to a request that does not stream."""
        [choice] = answer.choices
        assert choice.finish_reason is not None, "a stream of deltas ends when its choice has"
        items = ResponseItems()
        reader = self.shape.reader()
        pieces = _pieces(reader, choice.text, is_last=True)
        logprobs = self.shape.text_logprobs()
        logprobs.add(choice.logprobs)
        of_text = _wired(logprobs.of_text(reader, is_last=True))
        for _ in itertools.chain(items.add(pieces, of_text), items.finish(_item_status(choice.finish_reason))):
            pass
        self.shape.count(answer=answer, choice=choice, reader=reader)
        return self.ended(answer, choice.finish_reason, items)

    def chunks(self, answer: Answer) -> _Events:
        """The events of a stream."""
        return _Events(self, answer)


class _Events:
    """The response, its items as they grow, and the response again, with all of them."""

    def __init__(self, spelling: ResponsesSpelling, answer: Answer) -> None:
        self._spelling = spelling
        self._answer = answer
        self._reader = spelling.shape.reader()
        self._logprobs = spelling.shape.text_logprobs()
        self._items = ResponseItems()
        self._num_events = 0

    def begin(self) -> Iterator[ResponseEvent]:
        response = self._spelling.begun(self._answer)
        for name in ("response.created", "response.in_progress"):
            yield self._numbered(StateEvent(type=name, response=response))

    def add(self, choice: Choice, delta: TokenDelta) -> Iterator[ResponseEvent]:
        reason = delta.finish_reason
        pieces = _pieces(self._reader, delta.text, is_last=reason is not None)
        self._logprobs.add(delta.logprobs or ())
        of_text = _wired(self._logprobs.of_text(self._reader, is_last=reason is not None))
        events: Iterable[ResponseEvent] = self._items.add(pieces, of_text)
        if reason is not None:
            events = itertools.chain(events, self._items.finish(_item_status(reason)))
        for event in events:
            yield self._numbered(event)
        if reason is not None:
            self._spelling.shape.count(answer=self._answer, choice=choice, reader=self._reader)

    def end(self) -> Iterator[ResponseEvent]:
        [choice] = self._answer.choices
        assert choice.finish_reason is not None, "a stream of deltas ends when its choice has"
        response = self._spelling.ended(self._answer, choice.finish_reason, self._items)
        yield self._numbered(StateEvent(type=f"response.{response.status}", response=response))

    def fail(self, error: ErrorObject) -> Iterator[ResponseEvent]:
        if not self._num_events:
            # A response is created before anything else is said of it, that it failed included.
            yield from self.begin()
        response = msgspec.structs.replace(
            self._spelling.begun(self._answer),
            status="failed",
            error=ResponseFailure(error.message),
            output=self._items.done,
        )
        yield self._numbered(StateEvent(type="response.failed", response=response))

    def _numbered(self, event: ResponseEvent) -> ResponseEvent:
        numbered = msgspec.structs.replace(event, sequence_number=self._num_events)
        self._num_events += 1
        return numbered


def _pieces(reader: AnswerReader, text: str, *, is_last: bool) -> list[AnswerPiece]:
    return [*reader.read(text), *(reader.end() if is_last else ())]


def _item_status(reason: FinishReason) -> Literal["completed", "incomplete"]:
    return "incomplete" if reason is FinishReason.LENGTH else "completed"


def _wired(entries: Iterable[TokenLogprob]) -> list[TextLogprob]:
    return [
        TextLogprob(
            entry.token,
            max(entry.logprob, MIN_LOGPROB),
            list(entry.token_bytes),
            [
                TopTextLogprob(likely.token, max(likely.logprob, MIN_LOGPROB), list(likely.token_bytes))
                for likely in entry.top
            ],
        )
        for entry in entries
    ]


def _usage(counts: Usage) -> ResponseUsage:
    predicted = counts.completion_tokens_details
    details = OutputTokensDetails()
    if predicted is not msgspec.UNSET:
        details = OutputTokensDetails(
            reasoning_tokens=predicted.reasoning_tokens,
            accepted_prediction_tokens=predicted.accepted_prediction_tokens,
            rejected_prediction_tokens=predicted.rejected_prediction_tokens,
        )
    return ResponseUsage(
        input_tokens=counts.prompt_tokens,
        input_tokens_details=InputTokensDetails(counts.prompt_tokens_details.cached_tokens),
        output_tokens=counts.completion_tokens,
        output_tokens_details=details,
        total_tokens=counts.total_tokens,
    )
