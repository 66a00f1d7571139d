"""POST /v1/responses, without a store: what a conversation needs comes in with each request."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request as HttpRequest
from litestar import Response, post

from specdec import SamplingParams
from specdec.server.answer_shape import answer_shape
from specdec.server.body import read_body
from specdec.server.call_families import call_family
from specdec.server.constraint import RequestedConstraint, refuse_conflicts
from specdec.server.conversation import encode_conversation
from specdec.server.errors import bad_request
from specdec.server.metadata import check_metadata
from specdec.server.response_format import ANY_OBJECT, json_schema
from specdec.server.responses_answer import ResponsesSpelling
from specdec.server.responses_input import input_conversation
from specdec.server.responses_wire import (
    AllowedFunctions,
    AnyObject,
    ForcedFunction,
    FunctionChoice,
    FunctionTool,
    ResponsesRequest,
    SchemaText,
)
from specdec.server.sampling import sampling_params
from specdec.server.service import Service, service_of
from specdec.server.speculation import requested_speculation
from specdec.server.template_options import template_options
from specdec.server.tool_wire import (
    AllowedToolChoice,
    AllowedTools,
    FunctionDefinition,
    FunctionName,
    NamedTool,
    Tool,
    ToolChoice,
)
from specdec.server.tools import requested_tools
from specdec.server.turn import answer_turn
from specdec.server.unsupported import RESPONSES_REFUSED, RESPONSES_WITHOUT_EFFECT

_LOGPROBS = "message.output_text.logprobs"


@post("/v1/responses", status_code=200)
async def responses(request: HttpRequest[Any, Any, Any]) -> Response[Any]:
    """Answer a conversation of items."""
    service = service_of(request)
    asked, ignored = await read_body(
        request, ResponsesRequest, refused=RESPONSES_REFUSED, without_effect=RESPONSES_WITHOUT_EFFECT
    )
    service.check_model(asked.model)
    _refuse_state(asked)
    check_metadata(asked.metadata)
    ignored += [f"include.{value}" for value in asked.include or () if value != _LOGPROBS]
    limits = service.config.limits
    params = _sampling_params(asked, service)
    requested = _requested_constraint(asked, max_schema_bytes=limits.max_schema_bytes)
    tokenizer = service.engine.tokenizer
    template = tokenizer.chat_template(has_tools=bool(asked.tools))
    tools = requested_tools(
        [_tool(tool) for tool in asked.tools or ()],
        _tool_choice(asked.tool_choice),
        asked.parallel_tool_calls,
        family=call_family(template),
        limits=limits,
        path="",
    ).beside(requested)
    refuse_conflicts(params, tools.constraint or requested.constraint, "tools" if tools.constraint else requested.param)
    speculation = requested_speculation(
        asked.prediction,
        asked.speculative,
        asked.specdec_trace,
        config=service.engine.config.speculative,
    )
    conversation = input_conversation(asked.input, asked.instructions, max_items=limits.max_messages)
    effort = None if asked.reasoning is None else asked.reasoning.effort
    options = template_options(asked.chat_template_kwargs, effort, template=template, effort_param="reasoning.effort")
    prompt = await asyncio.to_thread(
        encode_conversation, conversation.messages, tools.for_template, tokenizer, options, field="input"
    )
    shape = answer_shape(
        tools,
        requested,
        tokenizer=tokenizer,
        template=template,
        prompt=prompt.text,
        reasoning_parser=service.config.reasoning_parser,
    )
    spelling = ResponsesSpelling(service, asked, params, speculation, shape)
    return await answer_turn(
        request,
        spelling,
        prompt.token_ids,
        params,
        speculation,
        cache_salt=asked.cache_salt,
        ignored=[*ignored, *conversation.ignored],
        params={
            "prompt": "input",
            "max_tokens": "max_output_tokens",
        },
        is_streamed=bool(asked.stream),
    )


def _refuse_state(asked: ResponsesRequest) -> None:
    if asked.previous_response_id is not None:
        raise bad_request(
            f"there is no response {asked.previous_response_id[:100]!r}: this server keeps none; send its output items "
            "as part of input",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if asked.truncation == "auto":
        raise bad_request(
            "truncation is auto; input is never shortened here: send disabled, or leave it out",
            param="truncation",
            code="unsupported_field",
        )


def _sampling_params(asked: ResponsesRequest, service: Service) -> SamplingParams:
    if asked.top_logprobs is not None and not 0 <= asked.top_logprobs <= 20:
        raise bad_request(f"top_logprobs is {asked.top_logprobs}; it must be between 0 and 20", param="top_logprobs")
    if asked.max_output_tokens is not None and asked.max_output_tokens < 1:
        raise bad_request(
            f"max_output_tokens is {asked.max_output_tokens}; it must be at least 1", param="max_output_tokens"
        )
    if asked.max_tool_calls is not None and asked.max_tool_calls < 1:
        raise bad_request(f"max_tool_calls is {asked.max_tool_calls}; it must be at least 1", param="max_tool_calls")
    has_logprobs = bool(asked.top_logprobs) or _LOGPROBS in (asked.include or ())
    return sampling_params(
        asked,
        max_tokens=asked.max_output_tokens,
        logprobs=(asked.top_logprobs or 0) if has_logprobs else None,
        limits=service.config.limits,
        vocab_size=service.engine.tokenizer.vocab_size,
    )


def _requested_constraint(asked: ResponsesRequest, *, max_schema_bytes: int) -> RequestedConstraint:
    match asked.text.format if asked.text is not None else None:
        case AnyObject():
            text, options, param, has_report = ANY_OBJECT, None, "text.format", False
        case SchemaText(schema=schema, options=given, report=report):
            text, param = bytes(schema).decode(), "text.format.schema"
            options, has_report = given or None, bool(report)
        case _:
            return RequestedConstraint()
    constraint = json_schema(
        text, options, param=param, options_param="text.format.options", max_schema_bytes=max_schema_bytes
    )
    return RequestedConstraint(constraint=constraint, param=param, has_report=has_report)


def _tool(tool: FunctionTool) -> Tool:
    definition = FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict)
    return Tool(definition, tool.options or None, tool.report or None)


def _tool_choice(choice: FunctionChoice | None) -> ToolChoice | None:
    match choice:
        case ForcedFunction(name):
            return NamedTool(FunctionName(name))
        case AllowedFunctions(mode, allowed):
            return AllowedToolChoice(AllowedTools(mode, [NamedTool(FunctionName(one.name)) for one in allowed]))
        case _:
            return choice
