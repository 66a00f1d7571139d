"""ChatSpelling: an answer in the words of /v1/chat/completions, whole or in chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec

from specdec import FinishReason, SamplingParams, TokenDelta
from specdec.server.answer import Answer, Choice, new_id
from specdec.server.answer_reader import AnswerPiece, AnswerReader, ReasoningPiece
from specdec.server.answer_shape import AnswerShape
from specdec.server.chat_wire import (
    AnswerCall,
    AnswerEnd,
    AnswerFunction,
    AnswerMessage,
    CallDelta,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatRequest,
    FunctionDelta,
    chat_logprobs,
)
from specdec.server.errors import ErrorBody, ErrorObject
from specdec.server.service import Service
from specdec.server.speculation import RequestedSpeculation
from specdec.server.tool_calls import ArgumentsPiece, CallBegin, TextPiece


class ChatSpelling:
    """What the answer and the chunks of one call have in common."""

    def __init__(
        self,
        service: Service,
        chat: ChatRequest,
        params: SamplingParams,
        speculation: RequestedSpeculation,
        shape: AnswerShape,
        prompt_token_ids: list[int],
    ) -> None:
        self.id = new_id("chatcmpl")
        self.model = chat.model
        self.fingerprint = service.fingerprint
        self.stream_options = chat.stream_options
        self.has_logprobs = params.logprobs is not None
        self.has_metrics = service.config.per_request_spec_decode_metrics != "none"
        self.max_draft_tokens = speculation.max_draft_tokens
        self.shape = shape
        self.has_token_ids = bool(chat.return_token_ids)
        self.prompt_token_ids = prompt_token_ids if self.has_token_ids else msgspec.UNSET
        self.metadata = chat.metadata or msgspec.UNSET

    def whole(self, answer: Answer) -> ChatCompletion:
        """The answer to a request that does not stream."""
        choices = []
        for choice in answer.choices:
            assert choice.finish_reason is not None, "a stream of deltas ends when every choice has"
            reader = self.shape.reader()
            message = _message(reader, choice.text)
            self.shape.count(answer=answer, choice=choice, reader=reader)
            choices.append(
                ChatChoice(
                    index=choice.index,
                    message=message,
                    logprobs=chat_logprobs(choice.logprobs) if self.has_logprobs else None,
                    finish_reason=answer_end(choice.finish_reason, reader),
                    token_ids=choice.token_ids if self.has_token_ids else msgspec.UNSET,
                )
            )
        return ChatCompletion(
            id=self.id,
            created=answer.created,
            model=self.model,
            choices=choices,
            usage=answer.usage(),
            system_fingerprint=self.fingerprint,
            metadata=self.metadata,
            prompt_token_ids=self.prompt_token_ids,
            specdec=self.shape.in_request(answer.extension()),
            metrics=answer.metrics(self.max_draft_tokens) if self.has_metrics else msgspec.UNSET,
        )

    def chunks(self, answer: Answer) -> _ChatChunks:
        """The chunks of a stream."""
        return _ChatChunks(self, answer)


def answer_end(reason: FinishReason, reader: AnswerReader) -> AnswerEnd:
    """Why an answer ended: with its calls, if it has some and they are whole."""
    return "tool_calls" if reader.has_whole_calls and reason is FinishReason.STOP else reason.value


def _message(reader: AnswerReader, text: str) -> AnswerMessage:
    texts: list[str] = []
    thoughts: list[str] = []
    begun: list[CallBegin] = []
    arguments: list[str] = []
    for piece in itertools.chain(reader.read(text), reader.end()):
        match piece:
            case ReasoningPiece(thought):
                thoughts.append(thought)
            case TextPiece(shown):
                texts.append(shown)
            case CallBegin():
                begun.append(piece)
                arguments.append("")
            case ArgumentsPiece(index, added):
                arguments[index] += added
    calls = [AnswerCall(call.id, AnswerFunction(call.name, arguments[call.index])) for call in begun]
    content = "".join(texts)
    reasoning = "".join(thoughts) or msgspec.UNSET
    return AnswerMessage(
        content if content or not calls else None,
        tool_calls=calls or msgspec.UNSET,
        reasoning_content=reasoning,
        reasoning=reasoning,
    )


def _delta_of(piece: AnswerPiece) -> ChatDelta:
    match piece:
        case ReasoningPiece(text):
            return ChatDelta(reasoning_content=text, reasoning=text)
        case TextPiece(text):
            return ChatDelta(content=text)
        case CallBegin(index, call_id, name):
            call = CallDelta(index, FunctionDelta("", name=name), id=call_id, type="function")
        case ArgumentsPiece(index, text):
            call = CallDelta(index, FunctionDelta(text))
    return ChatDelta(tool_calls=[call])


class _ChatChunks:
    """The role, then text and calls as they come, then why it ended, then what it cost."""

    def __init__(self, spelling: ChatSpelling, answer: Answer) -> None:
        options = spelling.stream_options
        self._spelling = spelling
        self._answer = answer
        self._has_usage = options is not None and bool(options.include_usage)
        self._has_running_usage = self._has_usage and bool(options and options.continuous_usage_stats)
        self._readers = [spelling.shape.reader() for _ in answer.choices]

    def begin(self) -> Iterator[ChatChunk]:
        content = "" if self._spelling.shape.tools.constraint is None else None
        prompt_token_ids = self._spelling.prompt_token_ids
        for choice in self._answer.choices:
            chunk = self._chunk(ChatChunkChoice(choice.index, ChatDelta(role="assistant", content=content)))
            yield msgspec.structs.replace(chunk, prompt_token_ids=prompt_token_ids)
            prompt_token_ids = msgspec.UNSET

    def add(self, choice: Choice, delta: TokenDelta) -> Iterator[ChatChunk]:
        reader = self._readers[choice.index]
        logprobs = chat_logprobs(delta.logprobs)
        token_ids = list(delta.token_ids) if self._spelling.has_token_ids else msgspec.UNSET
        for added in self._added(reader, delta, has_tokens=bool(delta.logprobs or token_ids)):
            yield self._chunk(ChatChunkChoice(choice.index, added, logprobs=logprobs, token_ids=token_ids))
            logprobs, token_ids = None, msgspec.UNSET
        if delta.finish_reason is not None:
            self._spelling.shape.count(answer=self._answer, choice=choice, reader=reader)
            end = answer_end(delta.finish_reason, reader)
            yield self._chunk(ChatChunkChoice(choice.index, ChatDelta(), finish_reason=end), last=choice)

    @staticmethod
    def _added(reader: AnswerReader, delta: TokenDelta, *, has_tokens: bool) -> Iterator[ChatDelta]:
        """What a delta of the engine says; at least one where its tokens are to be told one by one."""
        has_said = False
        pieces = reader.read(delta.text)
        for piece in itertools.chain(pieces, reader.end()) if delta.finish_reason is not None else pieces:
            has_said = True
            yield _delta_of(piece)
        if has_tokens and not has_said:
            yield ChatDelta(content="")

    def end(self) -> Iterator[ChatChunk]:
        if self._has_usage:
            metrics = self._answer.metrics(self._spelling.max_draft_tokens)
            yield msgspec.structs.replace(
                self._chunk(None),
                usage=self._answer.usage(),
                metrics=metrics if self._spelling.has_metrics else msgspec.UNSET,
            )

    def fail(self, error: ErrorObject) -> Iterator[ErrorBody]:
        yield ErrorBody(error)

    def _chunk(self, choice: ChatChunkChoice | None, *, last: Choice | None = None) -> ChatChunk:
        usage = self._answer.usage() if self._has_running_usage else None
        return ChatChunk(
            id=self._spelling.id,
            created=self._answer.created,
            model=self._spelling.model,
            choices=[] if choice is None else [choice],
            system_fingerprint=self._spelling.fingerprint,
            usage=usage if self._has_usage else msgspec.UNSET,
            specdec=msgspec.UNSET if last is None else self._spelling.shape.in_request(self._answer.extension(last)),
        )
