"""Input items of /v1/responses, as chat templates take a conversation."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple, TypeVar

import msgspec

from specdec.server.body import ignored_below, of_validation
from specdec.server.conversation import CalledFunction, MessageCall, template_call
from specdec.server.errors import bad_request

ItemT = TypeVar("ItemT", bound=msgspec.Struct)


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    """A piece of what a user or the system says."""

    text: str


# object: what came with an earlier answer, and is sent back with it to no effect.
class EarlierText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """A piece of an earlier answer."""

    text: str
    annotations: object = None
    logprobs: object = None


class EarlierRefusal(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """What an assistant said instead of an answer."""

    refusal: str


class _Item(msgspec.Struct, frozen=True, kw_only=True):
    type: object = None
    id: object = None
    status: object = None


class InputMessage(_Item, frozen=True, kw_only=True):
    """One turn, from a user or of an earlier answer."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText | EarlierText | EarlierRefusal]


class EarlierCall(_Item, frozen=True, kw_only=True):
    """A call of an earlier answer."""

    call_id: str
    name: str
    arguments: str


class CallOutput(_Item, frozen=True, kw_only=True):
    """What a call gave."""

    call_id: str
    output: str | list[InputText]


class _Kind(msgspec.Struct, frozen=True):
    type: str = "message"


class InputConversation(NamedTuple):
    """As chat templates take it."""

    messages: list[dict[str, object]]
    ignored: list[str]
    """Paths of fields that had no effect, list indices left out."""


def input_conversation(
    given: str | list[msgspec.Raw], instructions: str | None, *, max_items: int
) -> InputConversation:
    """The conversation. Instructions come first, in one text with a system message that begins the input.

    Raises ApiError that names the item at fault.
    """
    messages: list[dict[str, object]] = []
    ignored: list[str] = []
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        if not given:
            raise bad_request("input is empty; it needs at least one item", param="input")
        if len(given) > max_items:
            raise bad_request(
                f"input has {len(given)} items; at most {max_items} are accepted", param="input", code="limit_exceeded"
            )
        for index, item in enumerate(given):
            ignored += _add_item(messages, f"input[{index}]", item)
        if not messages:
            raise bad_request("input has nothing but reasoning; it needs a message", param="input")
    if instructions is not None:
        if messages[0]["role"] == "system":
            messages[0]["content"] = f"{instructions}\n\n{messages[0]['content']}"
        else:
            messages.insert(0, {"role": "system", "content": instructions})
    return InputConversation(messages, ignored)


def _add_item(messages: list[dict[str, object]], where: str, item: msgspec.Raw) -> list[str]:
    """Returns the paths of fields without effect."""
    read: _Item
    match _decoded(item, _Kind, where).type:
        case "message":
            read = message = _decoded(item, InputMessage, where)
            _check_parts(where, message)
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "content": _text(message.content)})
        case "function_call":
            read = call = _decoded(item, EarlierCall, where)
            _add_call(messages, where, call)
        case "function_call_output":
            read = output = _decoded(item, CallOutput, where)
            name = next((name for call_id, name in _calls(messages) if call_id == output.call_id), None)
            messages.append(
                {"role": "tool", "tool_call_id": output.call_id, "content": _text(output.output)}
                | ({} if name is None else {"name": name})
            )
        case "reasoning":
            return []
        case other:
            raise bad_request(
                f"{where}.type is {other[:100]!r}; accepted are message, function_call, function_call_output and "
                "reasoning, which is passed over",
                param=f"{where}.type",
                code="unsupported_field",
            )
    return ignored_below([("input[]", json.loads(bytes(item)), read)])


def _check_parts(where: str, message: InputMessage) -> None:
    """Raises ApiError for what only an earlier answer can hold."""
    if message.role == "assistant" or isinstance(message.content, str):
        return
    for index, part in enumerate(message.content):
        if not isinstance(part, InputText):
            param = f"{where}.content[{index}].type"
            kind = part.__struct_config__.tag
            raise bad_request(f"{param} is {kind}, which only the assistant says; send input_text parts", param=param)


def _add_call(messages: list[dict[str, object]], where: str, call: EarlierCall) -> None:
    """To the assistant's turn, which may have begun with text or other calls."""
    spelt = template_call(f"{where}.arguments", MessageCall(CalledFunction(call.name, call.arguments), call.call_id))
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    calls = messages[-1].setdefault("tool_calls", [])
    assert isinstance(calls, list)
    calls.append(spelt)


def _calls(messages: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [
        (call["id"], call["function"]["name"])
        for message in messages
        if isinstance(calls := message.get("tool_calls"), list)
        for call in calls
    ]


def _text(content: str | list[InputText] | list[InputText | EarlierText | EarlierRefusal]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.refusal if isinstance(part, EarlierRefusal) else part.text for part in content)


def _decoded(item: msgspec.Raw, kind: type[ItemT], where: str) -> ItemT:
    try:
        return msgspec.json.decode(item, type=kind)
    except msgspec.ValidationError as error:
        raise of_validation(str(error), where) from None
