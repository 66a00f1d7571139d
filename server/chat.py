"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
from litestar import Request as HttpRequest
from litestar import Response, post

from specdec import Request, SamplingParams, TokenDelta
from specdec.server.answer import Answer, Choice, new_id
from specdec.server.body import read_body
from specdec.server.chat_wire import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatRequest,
    Message,
    chat_logprobs,
)
from specdec.server.constraint import refuse_conflicts, requested_constraint
from specdec.server.content import RefusalPart
from specdec.server.errors import bad_request
from specdec.server.exchange import exchange_of
from specdec.server.generation import respond
from specdec.server.sampling import sampling_params
from specdec.server.service import Service, service_of
from specdec.server.speculation import RequestedSpeculation, requested_speculation
from specdec.server.unsupported import CHAT_REFUSED, WITHOUT_EFFECT


@post("/v1/chat/completions", status_code=200)
async def chat_completions(request: HttpRequest[Any, Any, Any]) -> Response[Any]:
    """Answer a conversation."""
    service = service_of(request)
    chat, ignored = await read_body(request, ChatRequest, refused=CHAT_REFUSED, without_effect=WITHOUT_EFFECT)
    service.check_model(chat.model)
    params = _sampling_params(chat, service)
    requested = requested_constraint(
        chat.response_format,
        chat.structured_outputs,
        max_schema_bytes=service.config.limits.max_schema_bytes,
    )
    refuse_conflicts(params, requested)
    speculation = requested_speculation(
        chat.prediction,
        chat.speculative,
        chat.specdec_trace,
        config=service.engine.config.speculative,
    )
    messages = _template_messages(chat.messages, service.config.limits.max_messages)
    prompt = await asyncio.to_thread(service.engine.tokenizer.encode_chat, messages)
    spelling = _Spelling(service, chat, params, speculation)
    return await respond(
        request,
        [
            Request(
                request_id=spelling.id,
                prompt_token_ids=tuple(prompt),
                sampling_params=params,
                constraint=requested.constraint,
                cache_salt=exchange_of(request).salted(chat.cache_salt),
                speculative=speculation.params,
                prediction=speculation.prediction,
                trace=speculation.trace or service.config.per_request_spec_decode_metrics == "detailed",
            )
        ],
        ignored=ignored,
        params={
            "prompt": "messages",
            "logprobs": "top_logprobs",
            "max_tokens": "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens",
            **requested.params,
        },
        has_report=requested.has_report,
        has_prediction=speculation.has_prediction,
        has_trace=speculation.trace,
        chunks=spelling.chunks if chat.stream else None,
        whole=spelling.whole,
    )


def _sampling_params(chat: ChatRequest, service: Service) -> SamplingParams:
    if chat.top_logprobs is not None and not chat.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", param="top_logprobs")
    if chat.stream_options is not None and not chat.stream:
        raise bad_request("stream_options needs stream to be true", param="stream_options")
    if chat.top_logprobs is not None and not 0 <= chat.top_logprobs <= 20:
        raise bad_request(f"top_logprobs is {chat.top_logprobs}; it must be between 0 and 20", param="top_logprobs")
    if chat.max_completion_tokens is not None and chat.max_completion_tokens < 1:
        raise bad_request(
            f"max_completion_tokens is {chat.max_completion_tokens}; it must be at least 1",
            param="max_completion_tokens",
        )
    return sampling_params(
        chat,
        max_tokens=chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        limits=service.config.limits,
        vocab_size=service.engine.tokenizer.vocab_size,
    )


def _template_messages(messages: list[Message], max_messages: int) -> list[dict[str, object]]:
    """The conversation as chat templates take it."""
    if not messages:
        raise bad_request("messages is empty; it needs at least one", param="messages")
    if len(messages) > max_messages:
        raise bad_request(
            f"messages has {len(messages)} entries; at most {max_messages} are accepted",
            param="messages",
            code="limit_exceeded",
        )
    return [_template_message(index, message) for index, message in enumerate(messages)]


def _template_message(index: int, message: Message) -> dict[str, object]:
    where = f"messages[{index}]"
    if message.role in {"tool", "function"}:
        raise bad_request(
            f"{where}.role is {message.role}; tools are not supported",
            param=f"{where}.role",
            code="unsupported_field",
        )
    if message.tool_calls:
        raise bad_request(
            f"{where}.tool_calls: tools are not supported",
            param=f"{where}.tool_calls",
            code="unsupported_field",
        )
    content = message.content
    if content is None and message.role == "assistant" and message.refusal is not None:
        content = message.refusal
    if content is None:
        raise bad_request(f"{where}.content is missing; it must be text, or parts of text", param=f"{where}.content")
    if not isinstance(content, str):
        content = "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    spelt: dict[str, object] = {"role": role, "content": content}
    if message.name is not None:
        spelt["name"] = message.name
    return spelt


class _Spelling:
    """What the answer and the chunks of one call have in common."""

    def __init__(
        self, service: Service, chat: ChatRequest, params: SamplingParams, speculation: RequestedSpeculation
    ) -> None:
        self.id = new_id("chatcmpl")
        self.model = chat.model
        self.fingerprint = service.fingerprint
        self.stream_options = chat.stream_options
        self.has_logprobs = params.logprobs is not None
        self.has_metrics = service.config.per_request_spec_decode_metrics != "none"
        self.max_draft_tokens = speculation.max_draft_tokens

    def whole(self, answer: Answer) -> ChatCompletion:
        """The answer to a request that does not stream."""
        choices = []
        for choice in answer.choices:
            assert choice.finish_reason is not None, "a stream of deltas ends when every choice has"
            choices.append(
                ChatChoice(
                    index=choice.index,
                    message=AnswerMessage(choice.text),
                    logprobs=chat_logprobs(choice.logprobs) if self.has_logprobs else None,
                    finish_reason=choice.finish_reason,
                )
            )
        return ChatCompletion(
            id=self.id,
            created=answer.created,
            model=self.model,
            choices=choices,
            usage=answer.usage(),
            system_fingerprint=self.fingerprint,
            specdec=answer.extension(),
            metrics=answer.metrics(self.max_draft_tokens) if self.has_metrics else msgspec.UNSET,
        )

    def chunks(self, answer: Answer) -> _ChatChunks:
        """The chunks of a stream."""
        return _ChatChunks(self, answer)


class _ChatChunks:
    """The role, then text as it comes, then why it ended, then what it cost."""

    def __init__(self, spelling: _Spelling, answer: Answer) -> None:
        options = spelling.stream_options
        self._spelling = spelling
        self._answer = answer
        self._has_usage = options is not None and bool(options.include_usage)
        self._has_running_usage = self._has_usage and bool(options and options.continuous_usage_stats)

    def begin(self) -> Iterator[ChatChunk]:
        for choice in self._answer.choices:
            yield self._chunk(ChatChunkChoice(choice.index, ChatDelta(role="assistant", content="")))

    def add(self, choice: Choice, delta: TokenDelta) -> Iterator[ChatChunk]:
        if delta.text or delta.logprobs:
            yield self._chunk(
                ChatChunkChoice(choice.index, ChatDelta(content=delta.text), logprobs=chat_logprobs(delta.logprobs))
            )
        if delta.finish_reason is not None:
            yield self._chunk(
                ChatChunkChoice(choice.index, ChatDelta(), finish_reason=delta.finish_reason), last=choice
            )

    def end(self) -> Iterator[ChatChunk]:
        if self._has_usage:
            metrics = self._answer.metrics(self._spelling.max_draft_tokens)
            yield msgspec.structs.replace(
                self._chunk(None),
                usage=self._answer.usage(),
                metrics=metrics if self._spelling.has_metrics else msgspec.UNSET,
            )

    def _chunk(self, choice: ChatChunkChoice | None, *, last: Choice | None = None) -> ChatChunk:
        usage = self._answer.usage() if self._has_running_usage else None
        return ChatChunk(
            id=self._spelling.id,
            created=self._answer.created,
            model=self._spelling.model,
            choices=[] if choice is None else [choice],
            system_fingerprint=self._spelling.fingerprint,
            usage=usage if self._has_usage else msgspec.UNSET,
            specdec=msgspec.UNSET if last is None else self._answer.extension(last),
        )
