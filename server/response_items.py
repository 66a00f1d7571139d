"""ResponseItems: the output items of a response while they grow, and the events that say so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from specdec.server.answer import new_id
from specdec.server.answer_reader import AnswerPiece, ReasoningPiece
from specdec.server.responses_events import (
    ArgumentsDelta,
    ArgumentsDone,
    ItemEvent,
    PartEvent,
    ReasoningDelta,
    ReasoningDone,
    ResponseEvent,
    TextDelta,
    TextDone,
)
from specdec.server.responses_wire import (
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    TextLogprob,
)
from specdec.server.tool_calls import ArgumentsPiece, CallBegin, TextPiece


class ResponseItems:
    """`done` are the finished ones; text and calls follow one another, so that at most one item is open."""

    def __init__(self) -> None:
        self.done: list[OutputItem] = []
        self._id = ""
        self._call: CallBegin | None = None
        self._is_text = self._is_reasoning = False
        self._pieces: list[str] = []
        self._logprobs: list[TextLogprob] = []
        self._unsent: list[TextLogprob] = []
        """Of tokens whose text is held back."""

    def add(self, pieces: Iterable[AnswerPiece], logprobs: list[TextLogprob]) -> Iterator[ResponseEvent]:
        """What the answer goes on with; the log-probabilities are those of text, which alone has a place for them."""
        self._unsent += logprobs
        for piece in pieces:
            match piece:
                case ReasoningPiece(text):
                    if not self._is_reasoning:
                        yield from self._begin_reasoning()
                    self._pieces.append(text)
                    yield ReasoningDelta(item_id=self._id, output_index=len(self.done), delta=text)
                case TextPiece(text):
                    if not self._is_text:
                        yield from self.end("completed")
                        yield from self._begin_text()
                    yield self._text_delta(text)
                case CallBegin():
                    yield from self.end("completed")
                    yield from self._begin_call(piece)
                case ArgumentsPiece(text=text):
                    self._pieces.append(text)
                    yield ArgumentsDelta(item_id=self._id, output_index=len(self.done), delta=text)

    def finish(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """The end of the answer, which has one item at least, be it an empty text."""
        if not (self.done or self._is_text or self._is_reasoning or self._call is not None):
            yield from self._begin_text()
        yield from self.end(status)

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """The end of the open item, if there is one."""
        index, text = len(self.done), "".join(self._pieces)
        if self._is_text:
            if self._unsent:
                yield self._text_delta("")
            part = OutputText(text=text, logprobs=self._logprobs)
            item: OutputItem = OutputMessage(id=self._id, status=status, content=[part])
            yield TextDone(item_id=self._id, output_index=index, text=text, logprobs=self._logprobs)
            yield PartEvent(type="response.content_part.done", item_id=self._id, output_index=index, part=part)
        elif self._is_reasoning:
            thought = ReasoningText(text=text)
            item = OutputReasoning(id=self._id, status=status, content=[thought])
            yield ReasoningDone(item_id=self._id, output_index=index, text=text)
            yield PartEvent(type="response.content_part.done", item_id=self._id, output_index=index, part=thought)
        elif self._call is not None:
            item = self._call_item(self._call, text, status)
            yield ArgumentsDone(item_id=self._id, output_index=index, name=self._call.name, arguments=text)
        else:
            return
        yield ItemEvent(type="response.output_item.done", output_index=index, item=item)
        self.done.append(item)
        self._is_text = self._is_reasoning = False
        self._call, self._pieces, self._logprobs = None, [], []

    def _begin_text(self) -> Iterator[ResponseEvent]:
        self._is_text, self._id = True, new_id("msg")
        index = len(self.done)
        item = OutputMessage(id=self._id, status="in_progress", content=[])
        yield ItemEvent(type="response.output_item.added", output_index=index, item=item)
        part = OutputText(text="")
        yield PartEvent(type="response.content_part.added", item_id=self._id, output_index=index, part=part)

    def _begin_reasoning(self) -> Iterator[ResponseEvent]:
        self._is_reasoning, self._id = True, new_id("rs")
        index = len(self.done)
        item = OutputReasoning(id=self._id, status="in_progress", content=[])
        yield ItemEvent(type="response.output_item.added", output_index=index, item=item)
        part = ReasoningText(text="")
        yield PartEvent(type="response.content_part.added", item_id=self._id, output_index=index, part=part)

    def _begin_call(self, call: CallBegin) -> Iterator[ResponseEvent]:
        self._call, self._id = call, new_id("fc")
        item = self._call_item(call, "", "in_progress")
        yield ItemEvent(type="response.output_item.added", output_index=len(self.done), item=item)

    def _text_delta(self, text: str) -> ResponseEvent:
        logprobs, self._unsent = self._unsent, []
        self._pieces.append(text)
        self._logprobs += logprobs
        return TextDelta(item_id=self._id, output_index=len(self.done), delta=text, logprobs=logprobs)

    def _call_item(self, call: CallBegin, arguments: str, status: ItemStatus) -> OutputCall:
        return OutputCall(id=self._id, call_id=call.id, name=call.name, arguments=arguments, status=status)
