"""Tools over HTTP: who may be called, how, and what of it a stream says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import msgspec
import openai
import pytest
from jsonschema import Draft202012Validator
from live_server import LiveServer, chat_body
from tool_requests import (
    MESSAGES,
    NO_END,
    TOOLS,
    WEATHER,
    allowed,
    ask,
    ask_in_a_stream,
    check_calls,
    named,
    strict_client,
    written,
)

from specdec.server import RequestLimits
from specdec.server.call_families import call_family
from specdec.server.errors import ApiError
from specdec.server.tool_wire import FunctionDefinition, Tool
from specdec.server.tools import requested_tools

CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def strict(live: LiveServer) -> Iterator[openai.OpenAI]:
    with strict_client(live) as client:
        yield client


@pytest.mark.parametrize(
    ("choice", "possible"),
    [
        ("required", {"get_weather", "set_node", "now"}),
        (named("get_weather"), {"get_weather"}),
        (named("now"), {"now"}),
        (allowed("required", "set_node", "now"), {"set_node", "now"}),
    ],
    ids=["required", "named", "named without parameters", "allowed"],
)
def test_a_call_that_has_to_come_comes(strict: openai.OpenAI, choice: object, possible: set[str]) -> None:
    seen = set()
    for seed in range(8):
        answer = ask(strict, tool_choice=choice, seed=seed, temperature=1.3)
        names = check_calls(answer.message)
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None
        assert names
        assert len(names) == 1 or isinstance(choice, str) or choice["type"] == "allowed_tools"
        seen |= set(names)
    assert seen <= possible
    assert len(seen) > 1 or choice != "required"


@pytest.mark.parametrize("choice", ["required", named("get_weather"), allowed("required", "get_weather", "now")])
def test_a_stream_says_what_the_whole_answer_says(strict: openai.OpenAI, choice: object) -> None:
    for seed in range(2):
        whole = ask(strict, tool_choice=choice, seed=seed)
        streamed, chunks = ask_in_a_stream(strict, tool_choice=choice, seed=seed)
        assert streamed.finish_reason == whole.finish_reason == "tool_calls"
        assert streamed.message.content is None
        said = written(whole.message)
        assert written(streamed.message) == said
        deltas = [delta for chunk in chunks for choice_ in chunk.choices for delta in choice_.delta.tool_calls or []]
        begun = set()
        for delta in deltas:
            if delta.index not in begun:
                assert (delta.type, delta.function.arguments) == ("function", "")
                assert delta.id
                assert delta.function.name
                begun.add(delta.index)
            else:
                assert (delta.id, delta.type, delta.function.name) == (None, None, None)
                assert delta.function.arguments
        assert begun == set(range(len(said)))


def test_one_call_alone_comes_without_parallel_calls(strict: openai.OpenAI) -> None:
    numbers = {
        is_parallel: {
            len(check_calls(ask(strict, tool_choice="required", seed=seed, parallel_tool_calls=is_parallel).message))
            for seed in range(12)
        }
        for is_parallel in (True, False)
    }
    assert numbers[False] == {1}
    assert max(numbers[True]) > 1


@pytest.mark.parametrize("fields", [{"tool_choice": "auto"}, {}, {"tool_choice": allowed("auto", "now")}])
def test_plain_answers_stay_plain_where_a_call_is_free_to_come(strict: openai.OpenAI, fields: dict) -> None:
    contents = []
    fields = {**fields, "logit_bias": NO_END}
    for seed in range(6):
        answer = ask(strict, seed=seed, max_tokens=30, **fields)
        assert answer.finish_reason == "length"
        assert answer.message.tool_calls is None
        contents.append(answer.message.content)
        chunks = strict.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=TOOLS, max_tokens=30, seed=seed, stream=True, **fields
        )
        streamed = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert streamed == answer.message.content
    assert any(contents)


def test_tools_are_not_told_where_none_may_be_called(client: httpx.Client) -> None:
    def num_prompt_tokens(**fields: object) -> int:
        return client.post(CHAT, json=chat_body(max_tokens=1, **fields)).json()["usage"]["prompt_tokens"]

    plain = num_prompt_tokens()
    assert num_prompt_tokens(tools=TOOLS, tool_choice="none") == plain
    assert num_prompt_tokens(tools=TOOLS) > plain + 50
    assert num_prompt_tokens(tools=TOOLS, tool_choice=allowed("auto", "now")) == num_prompt_tokens(tools=TOOLS)


def test_usage_logprobs_choices_seeds_and_predictions_go_on_working(strict: openai.OpenAI) -> None:
    def create(**fields: object) -> object:
        return strict.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="required", max_tokens=150, n=2, seed=5, **fields
        )

    completion = create(logprobs=True, top_logprobs=2, prediction={"type": "content", "content": '{"city":"Oslo"}'})
    assert completion.usage.completion_tokens_details.accepted_prediction_tokens is not None
    assert completion.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in completion.choices)
    for choice in completion.choices:
        assert check_calls(choice.message)
        text = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content).decode()
        assert text.startswith("<tool_call>\n")
        assert all(call.function.arguments in text for call in choice.message.tool_calls)
    again = create()
    assert [[call.function.arguments for call in choice.message.tool_calls] for choice in again.choices] == [
        [call.function.arguments for call in choice.message.tool_calls] for choice in completion.choices
    ]
    chunks = list(create(stream=True, logprobs=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.completion_tokens == completion.usage.completion_tokens
    streamed = [choice for chunk in chunks for choice in chunk.choices]
    assert sum(len(choice.logprobs.content) for choice in streamed if choice.logprobs) == (
        completion.usage.completion_tokens
    )


def test_a_stop_string_ends_free_text_only(client: httpx.Client) -> None:
    body = chat_body(tools=TOOLS, seed=1, max_tokens=30, logit_bias=NO_END)
    text = client.post(CHAT, json=body).json()["choices"][0]["message"]
    stop = text["content"][3:6]
    choice = client.post(CHAT, json={**body, "stop": stop}).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == text["content"].partition(stop)[0]
    refused = client.post(CHAT, json=chat_body(tools=TOOLS, tool_choice="required", stop="x"))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "stop"


def test_a_history_of_calls_and_results_is_taken(client: httpx.Client, live: LiveServer) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "\\u00e9"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "c2"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "13:00"}]},
    ]
    body = chat_body(max_tokens=1, tools=TOOLS) | {"messages": messages}
    response = client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    assert "x-specdec-ignored" not in response.headers
    tools = [
        {"type": "function", "function": {
            key: value for key, value in tool["function"].items() if key != "strict"
        }} for tool in TOOLS
    ]  # fmt: skip
    tools[2]["function"]["parameters"] = {"type": "object", "properties": {}, "additionalProperties": False}
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    written = '<tool_call>\n{"name": "now", "arguments": {"zone": "é"}}\n</tool_call>'
    expected = live.engine.tokenizer.encode_chat(
        [
            {"role": "system", "content": "Be brief.\n\n# Tools\n\nYou may call one or more functions to assist with "
             "the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
             f"{listed}\n</tools>\n\nFor each function call, return a json object with function name and arguments "
             'within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
             "<args-json-object>}\n</tool_call>"},
            *MESSAGES,
            {"role": "assistant", "content": f"{written}\n{written}"},
            {"role": "user", "content": "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n13:00\n"
             "</tool_response>"},
        ]
    )  # fmt: skip
    assert response.json()["usage"]["prompt_tokens"] == len(expected)


def function(name: object, parameters: object = None) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {"type": "object"}}}


REFUSED = [
    ({"tools": TOOLS, "tool_choice": named("other")}, "tool_choice.function.name", "invalid_value"),
    ({"tools": TOOLS, "tool_choice": allowed("auto", "now", "other")},
     "tool_choice.allowed_tools.tools[1].function.name", "invalid_value"),
    ({"tools": TOOLS, "tool_choice": allowed("required")}, "tool_choice.allowed_tools.tools", "invalid_value"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "invalid_value"),
    ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type", "invalid_value"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tool_choice": named("now"), "tools": []}, "tool_choice", "invalid_value"),
    ({"tools": [*TOOLS, function("now")]}, "tools[3].function.name", "invalid_value"),
    ({"tools": [function("get weather")]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [function("é")]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [function("")]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [function("n" * 65)]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [function(3)]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "invalid_value"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "invalid_value"),
    ({"tools": [function(f"f{number}") for number in range(129)]}, "tools", "limit_exceeded"),
    ({"tools": [function("f", {"title": "x" * 300_000})]}, "tools[0].function.parameters", "schema_too_large"),
    ({"tools": TOOLS, "stop": "a", "response_format": {"type": "json_object"}}, "stop", "conflicting_fields"),
    ({"tools": TOOLS, "structured_outputs": {"json": {"enum": [1, 2]}}}, "structured_outputs.json",
     "unsupported_schema_feature"),
    ({"tools": TOOLS, "response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"type": "object", "properties": {"a": {"type": "text"}}}}}},
     "response_format.json_schema.schema", "invalid_json_schema"),
    ({"tools": TOOLS, "structured_outputs": {"regex": "a"}}, "structured_outputs", "conflicting_fields"),
    ({"tools": TOOLS, "min_tokens": 3}, "min_tokens", "conflicting_fields"),
    ({"tools": TOOLS, "ignore_eos": True}, "ignore_eos", "conflicting_fields"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [
        {"type": "function", "id": "c", "function": {"name": "f", "arguments": "{}"}}]}]},
     "messages[0].tool_calls", "invalid_value"),
    ({"messages": [{"role": "assistant", "tool_calls": [
        {"type": "function", "id": "c", "function": {"name": "f", "arguments": "[1]"}}]}]},
     "messages[0].tool_calls[0].function.arguments", "invalid_value"),
    ({"messages": [{"role": "tool", "tool_call_id": "c"}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "function", "content": "c"}]}, "messages[0].role", "unsupported_field"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_asked_for_is_a_400_that_names_it(
    client: httpx.Client, fields: dict, param: str, code: str, *, stream: bool
) -> None:
    response = client.post(CHAT, json=chat_body(stream=stream) | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


SCHEMA_FAULTS = [
    ({"properties": {"a/b": {"type": "text"}}}, "invalid_json_schema", "type", "/properties/a~1b/type"),
    ({"properties": {"a": {"pattern": "(a)\\1"}}}, "unsupported_schema_feature", "pattern", "/properties/a/pattern"),
    ({"type": "string"}, "invalid_json_schema", None, ""),
    ({"$ref": "#/nowhere"}, "invalid_json_schema", "$ref", "/$ref"),
]


@pytest.mark.parametrize(("parameters", "code", "keyword", "pointer"), SCHEMA_FAULTS)
@pytest.mark.parametrize("choice", ["auto", "required", named("bad")], ids=["auto", "required", "named"])
def test_a_schema_at_fault_is_named_with_its_tool_keyword_and_place(
    client: httpx.Client, parameters: dict, code: str, keyword: str | None, pointer: str, choice: object
) -> None:
    tools = [*TOOLS, function("bad", parameters)]
    response = client.post(CHAT, json=chat_body(tools=tools, tool_choice=choice))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("tools[3].function.parameters", code)
    assert (error.get("keyword"), error["pointer"]) == (keyword, pointer)


def test_parameters_nested_too_deeply_are_refused_by_name() -> None:
    parameters = msgspec.Raw(b'{"a":' * 5000 + b"1" + b"}" * 5000)
    tools = [Tool(FunctionDefinition("now")), Tool(FunctionDefinition("f", parameters=parameters))]
    with pytest.raises(ApiError) as refused:
        requested_tools(tools, None, None, family=call_family(None), limits=RequestLimits())
    assert (refused.value.status, refused.value.error.param) == (400, "tools[1].function.parameters")


def test_a_budget_that_no_call_is_guaranteed_to_fit_is_refused_with_one_that_is(client: httpx.Client) -> None:
    body = chat_body(tools=TOOLS, tool_choice=named("get_weather"))
    error = client.post(CHAT, json={**body, "max_tokens": 5}).json()["error"]
    assert (error["param"], error["code"]) == ("max_tokens", "max_tokens_too_small")
    choice = client.post(CHAT, json={**body, "max_tokens": error["minimum_tokens"]}).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    Draft202012Validator(WEATHER).validate(json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]))


def test_an_answer_format_does_not_apply_to_a_call_that_has_to_come(client: httpx.Client) -> None:
    body = chat_body(tools=TOOLS, tool_choice="required", response_format={"type": "json_object"}, max_tokens=200)
    assert client.post(CHAT, json=body).json()["choices"][0]["finish_reason"] == "tool_calls"
