"""CallFamily: how a model writes calls, by what its chat template spells; and how it is told of tools without one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import msgspec

from specdec import HERMES, LLAMA_JSON, MISTRAL, MISTRAL_ARGS, QWEN_XML, ChatTemplate, ToolCallFormat


class CallFamily(msgspec.Struct, frozen=True, kw_only=True):
    """What the models of a family have in common."""

    name: str
    format: ToolCallFormat
    is_parallel: bool = True
    """Whether their templates know more than one call in an answer."""
    id_length: int | None = None
    """Of the ids of calls, where the template insists on one."""


_HERMES = CallFamily(name="hermes", format=HERMES)
_BY_SPELLING = (
    ("[ARGS]", CallFamily(name="mistral_args", format=MISTRAL_ARGS, id_length=9)),
    ("[TOOL_CALLS]", CallFamily(name="mistral", format=MISTRAL, id_length=9)),
    ("<parameter=", CallFamily(name="qwen3_xml", format=QWEN_XML)),
    ("<tool_call>", _HERMES),
    ('"parameters": ', CallFamily(name="llama3_json", format=LLAMA_JSON, is_parallel=False)),
)
"""What the templates of a family spell, the most telling first."""


def call_family(template: ChatTemplate | None) -> CallFamily:
    """The family of a template; Hermes for one that says nothing of tools, which is then told how calls are written."""
    if template is None or not template.takes_tools:
        return _HERMES
    return next((family for spelling, family in _BY_SPELLING if spelling in template.source), _HERMES)


def with_tools_as_text(
    messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] | None
) -> list[dict[str, object]]:
    """A conversation with its tools, calls and results, in texts alone: for a template that knows none of them."""
    spelt: list[dict[str, object]] = []
    for message in messages:
        if message["role"] == "tool":
            response = f"<tool_response>\n{message['content']}\n</tool_response>"
            if spelt and spelt[-1].get("is_response"):
                spelt[-1]["content"] = f"{spelt[-1]['content']}\n{response}"
            else:
                spelt.append({"role": "user", "content": response, "is_response": True})
            continue
        calls = message.get("tool_calls")
        texts = [str(message["content"])] if message["content"] else []
        texts += [_call_text(call) for call in calls] if isinstance(calls, list) else []
        spelt.append({**_without_calls(message), "content": "\n".join(texts)})
    for message in spelt:
        message.pop("is_response", None)
    if not tools:
        return spelt
    told = _tools_text(tools)
    if spelt and spelt[0]["role"] == "system":
        return [{**spelt[0], "content": f"{spelt[0]['content']}\n\n{told}"}, *spelt[1:]]
    return [{"role": "system", "content": told}, *spelt]


def _without_calls(message: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in message.items() if name != "tool_calls"}


def _call_text(call: Mapping[str, Mapping[str, object]]) -> str:
    form, function = HERMES, call["function"]
    body = {form.name_key: function["name"], form.arguments_key: function["arguments"]}
    return form.begin + json.dumps(body, ensure_ascii=False) + form.end


def _tools_text(tools: Sequence[Mapping[str, object]]) -> str:
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{listed}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call>"
    )
