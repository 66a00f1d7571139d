"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request as HttpRequest
from litestar import Response, post

from specdec import SamplingParams
from specdec.server.answer_shape import answer_shape
from specdec.server.body import read_body
from specdec.server.call_families import call_family
from specdec.server.chat_answer import ChatSpelling
from specdec.server.chat_wire import ChatRequest
from specdec.server.constraint import refuse_conflicts, requested_constraint
from specdec.server.conversation import encode_conversation, template_messages
from specdec.server.errors import bad_request
from specdec.server.metadata import check_metadata
from specdec.server.sampling import sampling_params
from specdec.server.service import Service, service_of
from specdec.server.speculation import requested_speculation
from specdec.server.template_options import template_options
from specdec.server.tools import requested_tools
from specdec.server.turn import answer_turn
from specdec.server.unsupported import CHAT_REFUSED, WITHOUT_EFFECT


@post("/v1/chat/completions", status_code=200)
async def chat_completions(request: HttpRequest[Any, Any, Any]) -> Response[Any]:
    """Answer a conversation."""
    service = service_of(request)
    chat, ignored = await read_body(request, ChatRequest, refused=CHAT_REFUSED, without_effect=WITHOUT_EFFECT)
    service.check_model(chat.model)
    check_metadata(chat.metadata)
    params = _sampling_params(chat, service)
    requested = requested_constraint(
        chat.response_format,
        chat.structured_outputs,
        max_schema_bytes=service.config.limits.max_schema_bytes,
    )
    tokenizer = service.engine.tokenizer
    template = tokenizer.chat_template(has_tools=bool(chat.tools))
    tools = requested_tools(
        chat.tools,
        chat.tool_choice,
        chat.parallel_tool_calls,
        family=call_family(template),
        limits=service.config.limits,
    ).beside(requested)
    refuse_conflicts(params, tools.constraint or requested.constraint, "tools" if tools.constraint else requested.param)
    speculation = requested_speculation(
        chat.prediction,
        chat.speculative,
        chat.specdec_trace,
        config=service.engine.config.speculative,
    )
    messages = template_messages(chat.messages, max_messages=service.config.limits.max_messages)
    options = template_options(chat.chat_template_kwargs, chat.reasoning_effort, template=template)
    prompt = await asyncio.to_thread(encode_conversation, messages, tools.for_template, tokenizer, options)
    shape = answer_shape(
        tools,
        requested,
        tokenizer=tokenizer,
        template=template,
        prompt=prompt.text,
        reasoning_parser=service.config.reasoning_parser,
    )
    spelling = ChatSpelling(service, chat, params, speculation, shape, prompt.token_ids)
    return await answer_turn(
        request,
        spelling,
        prompt.token_ids,
        params,
        speculation,
        cache_salt=chat.cache_salt,
        ignored=ignored,
        params={
            "prompt": "messages",
            "max_tokens": "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens",
        },
        is_streamed=bool(chat.stream),
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
