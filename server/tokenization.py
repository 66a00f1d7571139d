"""POST /tokenize and /detokenize, in vLLM's shapes: a prompt or a conversation as token ids, and ids as text."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import Request as HttpRequest
from litestar import Response, post

from specdec.server.body import Refused, answered, read_body
from specdec.server.call_families import call_family
from specdec.server.conversation import Message, encode_conversation, template_messages
from specdec.server.errors import bad_request
from specdec.server.service import Service, service_of
from specdec.server.template_options import template_options
from specdec.server.tool_wire import Tool
from specdec.server.tools import requested_tools

_REFUSED = {
    "chat_template": Refused((), "the model's own template is used"),
    "continue_final_message": Refused((False,), "every answer is a message of its own"),
}


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A text as `prompt`, or a conversation as `messages`, perhaps with tools."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, bool | str] | None = None
    add_special_tokens: bool | None = None
    """Of a prompt: as /v1/completions does, if left out. A conversation has those that its template spells."""
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    """The ids, and on request each one's own text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids."""

    tokens: list[int]
    model: str | None = None


class Detokenized(msgspec.Struct, frozen=True):
    """Their text, special tokens by their names."""

    prompt: str


@post("/tokenize", status_code=200)
async def tokenize(request: HttpRequest[Any, Any, Any]) -> Response[Tokenized]:
    """What a prompt or a conversation is in tokens."""
    service = service_of(request)
    body, ignored = await read_body(request, TokenizeRequest, refused=_REFUSED, without_effect=())
    if body.model is not None:
        service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either prompt or messages", param="prompt")
    return answered(await asyncio.to_thread(_tokenized, body, service), ignored)


@post("/detokenize", status_code=200)
async def detokenize(request: HttpRequest[Any, Any, Any]) -> Response[Detokenized]:
    """What tokens are as text."""
    service = service_of(request)
    body, ignored = await read_body(request, DetokenizeRequest, refused={}, without_effect=())
    if body.model is not None:
        service.check_model(body.model)
    return answered(await asyncio.to_thread(_detokenized, body.tokens, service), ignored)


def _tokenized(body: TokenizeRequest, service: Service) -> Tokenized:
    tokens = _encoded(body, service)
    text_of = service.engine.tokenizer.token_text
    return Tokenized(
        count=len(tokens),
        max_model_len=service.engine.max_model_len,
        tokens=tokens,
        token_strs=[text_of(token_id) for token_id in tokens] if body.return_token_strs else None,
    )


def _detokenized(tokens: list[int], service: Service) -> Detokenized:
    tokenizer = service.engine.tokenizer
    for index, token_id in enumerate(tokens):
        if not 0 <= token_id < tokenizer.vocab_size:
            raise bad_request(
                f"tokens[{index}] is {token_id}; the vocabulary has ids 0 to {tokenizer.vocab_size - 1}",
                param=f"tokens[{index}]",
            )
    return Detokenized(tokenizer.decode(tokens, skip_special_tokens=False))


def _encoded(body: TokenizeRequest, service: Service) -> list[int]:
    tokenizer, limits = service.engine.tokenizer, service.config.limits
    if body.messages is None:
        for name in ("tools", "chat_template_kwargs", "reasoning_effort", "add_generation_prompt"):
            if getattr(body, name):
                raise bad_request(
                    f"{name} is for messages: a prompt has no template", param=name, code="conflicting_fields"
                )
        assert body.prompt is not None, "it is either of them"
        return tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
    if body.add_special_tokens:
        raise bad_request(
            "add_special_tokens is for a prompt: a conversation has those that the model's template spells",
            param="add_special_tokens",
            code="conflicting_fields",
        )
    template = tokenizer.chat_template(has_tools=bool(body.tools))
    family = call_family(template)
    return encode_conversation(
        template_messages(body.messages, max_messages=limits.max_messages),
        requested_tools(body.tools, None, None, family=family, limits=limits).for_template,
        tokenizer,
        template_options(body.chat_template_kwargs, body.reasoning_effort, template=template),
        add_generation_prompt=body.add_generation_prompt is not False,
    ).token_ids
