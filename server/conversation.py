"""Messages: a conversation as clients send it, and as chat templates take it."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

import msgspec

from specdec import Tokenizer
from specdec.server.call_families import with_tools_as_text
from specdec.server.content import RefusalPart, TextPart
from specdec.server.errors import bad_request, fields_named
from specdec.server.template_options import TemplateOptions


class CalledFunction(msgspec.Struct, frozen=True):
    """A function that was called, with its arguments as JSON text."""

    name: str
    arguments: str


class MessageCall(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A call of an earlier turn."""

    function: CalledFunction
    id: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[MessageCall] | None = None
    tool_call_id: str | None = None


def template_messages(messages: list[Message], *, max_messages: int) -> list[dict[str, object]]:
    """The conversation as templates that know tools take it. Raises ApiError that names the message at fault."""
    if not messages:
        raise bad_request("messages is empty; it needs at least one", param="messages")
    if len(messages) > max_messages:
        raise bad_request(
            f"messages has {len(messages)} entries; at most {max_messages} are accepted",
            param="messages",
            code="limit_exceeded",
        )
    called: dict[str, str] = {}
    return [_template_message(f"messages[{index}]", message, called) for index, message in enumerate(messages)]


class Prompt(NamedTuple):
    """What a template makes of a conversation."""

    text: str
    token_ids: list[int]


def encode_conversation(
    messages: list[dict[str, object]],
    tools: list[dict[str, object]] | None,
    tokenizer: Tokenizer,
    options: TemplateOptions,
    *,
    add_generation_prompt: bool = True,
    field: str = "messages",
) -> Prompt:
    """The prompt. A template that knows no tools is told of them in the messages.

    Raises RequestError, which names the `field` that the conversation came in, where the template refuses it.
    """
    template = tokenizer.chat_template(has_tools=bool(tools))
    if template is not None and not template.takes_tools:
        messages, tools = with_tools_as_text(messages, tools), None
    with fields_named({"messages": field, "prompt": field}):
        text = tokenizer.render_chat(messages, tools=tools, add_generation_prompt=add_generation_prompt, **options)
        return Prompt(text, tokenizer.encode(text))


def _template_message(where: str, message: Message, called: dict[str, str]) -> dict[str, object]:
    """`called` are the functions of the calls so far, by the ids of the calls."""
    if message.role == "function":
        raise bad_request(
            f"{where}.role is function, which tools have replaced; send a message with the role tool",
            param=f"{where}.role",
            code="unsupported_field",
        )
    if message.tool_calls and message.role != "assistant":
        raise bad_request(
            f"{where}.tool_calls stands in a message of the role {message.role}; only the assistant calls tools",
            param=f"{where}.tool_calls",
        )
    role = "system" if message.role == "developer" else message.role
    spelt: dict[str, object] = {"role": role, "content": _content(where, message)}
    name = message.name
    if message.role == "tool" and message.tool_call_id is not None:
        spelt["tool_call_id"] = message.tool_call_id
        name = name or called.get(message.tool_call_id)
    if name is not None:
        spelt["name"] = name
    reasoning = message.reasoning_content or message.reasoning
    if message.role == "assistant" and reasoning:
        spelt["reasoning_content"] = reasoning
    if message.tool_calls:
        spelt["tool_calls"] = [
            template_call(f"{where}.tool_calls[{index}].function.arguments", call)
            for index, call in enumerate(message.tool_calls)
        ]
        called.update({call.id: call.function.name for call in message.tool_calls if call.id is not None})
    return spelt


def _content(where: str, message: Message) -> str:
    content = message.content
    if content is None and message.role == "assistant":
        content = message.refusal if message.refusal is not None or not message.tool_calls else ""
    if content is None:
        raise bad_request(f"{where}.content is missing; it must be text, or parts of text", param=f"{where}.content")
    if isinstance(content, str):
        return content
    if message.role != "assistant":
        for index, part in enumerate(content):
            if isinstance(part, RefusalPart):
                param = f"{where}.content[{index}].type"
                raise bad_request(f"{param} is refusal, which only the assistant says; send text parts", param=param)
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)


def template_call(param: str, call: MessageCall) -> dict[str, object]:
    """With its arguments, which came as `param`, as an object: templates write them as JSON themselves."""
    text = call.function.arguments
    try:
        # Any: arguments are whatever JSON holds.
        arguments: Any = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise bad_request(f"{param} is not the JSON text of an object", param=param)
    spelt: dict[str, object] = {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
    return spelt if call.id is None else {"id": call.id, **spelt}
