"""/v1/responses, with the openai client in strict mode: whole, in typed events, with schemas and with tools."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pydantic
import pytest
from jsonschema import Draft202012Validator
from live_server import LiveServer, dying, serving, slowed

PATH = "/v1/responses"
REQUIRED = {
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id",
    "instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p",
    "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage", "max_output_tokens",
    "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier", "prompt_cache_key",
}  # fmt: skip
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "name": "get_weather", "description": "w", "parameters": WEATHER, "strict": True},
    {"type": "function", "name": "now", "parameters": None, "strict": None},
]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "tags": {"type": "array", "items": {"type": "boolean"}}},
    "required": ["city", "tags"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}
pytestmark = pytest.mark.filterwarnings("error")


class Place(pydantic.BaseModel):
    city: str
    is_big: bool


@pytest.fixture
def strict(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=live.url + "/v1", api_key="none", _strict_response_validation=True, max_retries=0, timeout=60
    ) as client:
        yield client


def body(**fields: object) -> dict:
    return {"model": "tiny", "input": "Hello", "max_output_tokens": 20, **fields}


def events(client: httpx.Client, **fields: object) -> list[dict]:
    response = client.post(PATH, json=body(stream=True, **fields))
    assert response.status_code == 200, response.text
    frames = response.text.removesuffix("\n\n").split("\n\n")
    assert frames.pop() == "data: [DONE]"
    found = []
    for frame in frames:
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def test_a_response_has_every_required_key(client: httpx.Client) -> None:
    response = client.post(PATH, json=body(metadata={"a": "b"}, safety_identifier="s", store=True)).json()
    assert response.keys() >= REQUIRED
    assert (response["object"], response["store"], response["metadata"]) == ("response", False, {"a": "b"})
    assert response["id"].startswith("resp")
    assert response["usage"]["total_tokens"] == response["usage"]["input_tokens"] + response["usage"]["output_tokens"]


def test_create(strict: openai.OpenAI) -> None:
    response = strict.responses.create(
        model="tiny", input="Hello", instructions="Be brief.", max_output_tokens=10,
        # The end is never drawn.
        extra_body={"logit_bias": {"2": -100}},
    )  # fmt: skip
    assert response.output_text
    assert response.instructions == "Be brief."
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"
    assert response.usage.output_tokens == 10


def test_an_answer_that_ends_by_itself_is_completed(strict: openai.OpenAI) -> None:
    response = strict.responses.create(model="tiny", input="Hello", extra_body={"logit_bias": {"2": 100}})
    assert (response.status, response.incomplete_details, response.output_text) == ("completed", None, "")
    assert response.completed_at >= response.created_at


def test_events_come_in_order_and_add_up(client: httpx.Client) -> None:
    found = events(client, seed=1)
    names = [event["type"] for event in found]
    assert names[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert names[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert set(names[4:-4]) == {"response.output_text.delta"}
    text = "".join(event["delta"] for event in found[4:-4])
    assert text == found[-4]["text"] == found[-3]["part"]["text"] == found[-2]["item"]["content"][0]["text"]
    last = found[-1]["response"]
    whole = client.post(PATH, json=body(seed=1)).json()
    assert last["output"][0]["content"] == whole["output"][0]["content"]
    assert last["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert found[0]["response"].keys() >= REQUIRED
    assert found[0]["response"]["id"] == last["id"]


@pytest.mark.parametrize(
    "text_format", [FORMAT, {**FORMAT, "strict": False}, {"type": "json_schema", "name": "x", "schema": SCHEMA}]
)
def test_a_schema_is_enforced_whatever_strict_says(strict: openai.OpenAI, text_format: dict) -> None:
    for seed in range(4):
        response = strict.responses.create(
            model="tiny", input="Hello", text={"format": text_format}, max_output_tokens=60, extra_body={"seed": seed}
        )
        assert response.status == "completed"
        Draft202012Validator(SCHEMA).validate(json.loads(response.output_text))


def test_json_object_is_an_object_and_text_is_text(strict: openai.OpenAI) -> None:
    response = strict.responses.create(
        model="tiny", input="Hello", text={"format": {"type": "json_object"}}, max_output_tokens=60
    )
    assert isinstance(json.loads(response.output_text), dict)
    plain = strict.responses.create(model="tiny", input="Hello", text={"format": {"type": "text"}}, max_output_tokens=5)
    assert plain.text.format.type == "text"


def test_parse_and_the_stream_helper_give_an_instance(strict: openai.OpenAI) -> None:
    parsed = strict.responses.parse(model="tiny", input="Hello", text_format=Place, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Place)
    with strict.responses.stream(model="tiny", input="Hello", text_format=Place, max_output_tokens=200) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Place)
    assert text == final.output_text


@pytest.mark.parametrize(
    ("choice", "possible"),
    [
        ("required", {"get_weather", "now"}),
        ({"type": "function", "name": "get_weather"}, {"get_weather"}),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}, {"now"}),
    ],
    ids=["required", "named", "allowed"],
)
def test_a_call_that_has_to_come_is_an_item(strict: openai.OpenAI, choice: object, possible: set[str]) -> None:
    for seed in range(4):
        fields = {"tools": TOOLS, "tool_choice": choice, "max_output_tokens": 150, "extra_body": {"seed": seed}}
        response = strict.responses.create(model="tiny", input="Hello", **fields)
        assert response.status == "completed"
        calls = [(item.name, item.arguments) for item in response.output if item.type == "function_call"]
        assert len(calls) == len(response.output) > 0
        assert len({item.call_id for item in response.output}) == len(calls)
        for name, arguments in calls:
            assert name in possible
            Draft202012Validator(WEATHER if name == "get_weather" else {"maxProperties": 0}).validate(
                json.loads(arguments)
            )
        found = list(strict.responses.create(model="tiny", input="Hello", stream=True, **fields))
        assert [(item.name, item.arguments) for item in found[-1].response.output] == calls
        for index, (_, arguments) in enumerate(calls):
            deltas = [event.delta for event in found if event.type == "response.function_call_arguments.delta"
                      and event.output_index == index]  # fmt: skip
            assert "".join(deltas) == arguments
        assert [event.type for event in found[2:3]] == ["response.output_item.added"]
        assert [event.type for event in found[-3:]] == [
            "response.function_call_arguments.done", "response.output_item.done", "response.completed",
        ]  # fmt: skip


def test_text_and_calls_are_free_to_come(strict: openai.OpenAI) -> None:
    response = strict.responses.create(
        model="tiny", input="Hello", tools=TOOLS, max_output_tokens=20, extra_body={"logit_bias": {"2": -100}}
    )
    assert [item.type for item in response.output] == ["message"]
    held = strict.responses.create(
        model="tiny", input="Hello", tools=TOOLS, text={"format": FORMAT}, max_output_tokens=150
    )
    if held.output[0].type == "message":
        Draft202012Validator(SCHEMA).validate(json.loads(held.output_text))


def test_log_probabilities_are_those_of_the_text(strict: openai.OpenAI, client: httpx.Client) -> None:
    response = strict.responses.create(
        model="tiny", input="Hello", max_output_tokens=8, top_logprobs=2, include=["message.output_text.logprobs"],
        extra_body={"logit_bias": {"2": -100}},
    )  # fmt: skip
    entries = response.output[0].content[0].logprobs
    assert len(entries) == 8
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    found = events(client, top_logprobs=1, seed=3, max_output_tokens=8, logit_bias={"2": -100})
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert sum(len(event["logprobs"]) for event in deltas) == 8


def test_a_history_of_items_is_a_conversation(client: httpx.Client, live: LiveServer) -> None:
    items = [
        {"role": "developer", "content": "Be exact."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What "}, {
            "type": "input_text", "text": "time?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "Let me see.", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "now", "arguments": "{}"},
        {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "now", "arguments": '{"a":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "12:00"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "13:00"}]},
    ]  # fmt: skip
    response = client.post(PATH, json=body(input=items, instructions="Be brief.", max_output_tokens=1))
    assert response.status_code == 200, response.text
    calls = [
        f'<tool_call>\n{{"name": "now", "arguments": {arguments}}}\n</tool_call>' for arguments in ("{}", '{"a": 1}')
    ]
    expected = live.engine.tokenizer.encode_chat(
        [
            {"role": "system", "content": "Be brief.\n\nBe exact."},
            {"role": "user", "content": "What time?"},
            {"role": "assistant", "content": "\n".join(["Let me see.", *calls])},
            {"role": "user", "content": "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n13:00\n"
             "</tool_response>"},
        ]
    )  # fmt: skip
    assert response.json()["usage"]["input_tokens"] == len(expected)


def test_the_items_of_a_response_go_back_in(strict: openai.OpenAI) -> None:
    first = strict.responses.create(
        model="tiny", input="Hello", tools=TOOLS, tool_choice="required", parallel_tool_calls=False,
        max_output_tokens=100,
    )  # fmt: skip
    [call] = first.output
    items = [
        {"role": "user", "content": "Hello"},
        *(item.model_dump(exclude_none=True) for item in first.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "ok"},
    ]
    second = strict.responses.create(model="tiny", input=items, tools=TOOLS, max_output_tokens=5)
    assert second.output


REFUSED = [
    ({"previous_response_id": "resp_1"}, "previous_response_id", "previous_response_not_found"),
    ({"background": True}, "background", "unsupported_field"),
    ({"conversation": "c"}, "conversation", "unsupported_field"),
    ({"truncation": "auto"}, "truncation", "unsupported_field"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_field"),
    ({"guided_json": {}}, "guided_json", "unsupported_field"),
    ({"input": []}, "input", "invalid_value"),
    ({"input": 3}, "input", "invalid_value"),
    ({"input": [{"type": "reasoning"}]}, "input", "invalid_value"),
    ({"input": [{"role": "user", "content": "a"}, {"type": "web_search_call"}]}, "input[1].type", "unsupported_field"),
    ({"input": [{"role": "wizard", "content": "a"}]}, "input[0].role", "invalid_value"),
    ({"input": [{"role": "user"}]}, "input[0].content", "invalid_value"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type",
     "invalid_value"),
    ({"input": [{"role": "user", "content": [
        {"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "b"}]}]}, "input[0].content[1].type",
     "invalid_value"),
    ({"input": [{"role": "user", "content": "a"}, {"role": "user", "content": [
        {"type": "output_text", "text": "a"}]}]}, "input[1].content[0].type", "invalid_value"),
    ({"input": [{"role": "developer", "content": [{"type": "output_text", "text": "a"}]}]}, "input[0].content[0].type",
     "invalid_value"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]}, "input[0].arguments",
     "invalid_value"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", "invalid_value"),
    ({"input": [3]}, "input[0]", "invalid_value"),
    ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
    ({"max_output_tokens": 10**9}, "max_output_tokens", "context_length_exceeded"),
    ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "invalid_value"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "text"}}}}, "text.format.schema",
     "invalid_json_schema"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "invalid_value"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name", "invalid_value"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [
        {"type": "function", "name": "x"}]}}, "tool_choice.tools[0].name", "invalid_value"),
    ({"tools": [*TOOLS, {"type": "function", "name": "x", "parameters": {"properties": {"a": {"type": "text"}}}}]},
     "tools[2].parameters", "invalid_json_schema"),
    ({"tools": TOOLS, "tool_choice": "required", "max_output_tokens": 3}, "max_output_tokens", "max_tokens_too_small"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": "\\ud800"}'}]}, "input",
     "invalid_value"),
    ({"metadata": {str(number): "x" for number in range(17)}}, "metadata", "limit_exceeded"),
    ({"metadata": {"k": "x" * 513}}, "metadata", "limit_exceeded"),
    ({"max_tool_calls": 0}, "max_tool_calls", "invalid_value"),
    ({"max_completion_tokens": 3}, "max_completion_tokens", "unsupported_field"),
    ({"logprobs": True}, "logprobs", "unsupported_field"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_field"),
    ({"audio": {}}, "audio", "unsupported_field"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_asked_for_is_a_400_that_names_it(
    client: httpx.Client, fields: dict, param: str, code: str, *, stream: bool
) -> None:
    response = client.post(PATH, json=body(stream=stream, **fields) if stream else body(**fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_unknown_fields_are_named_in_a_header(client: httpx.Client) -> None:
    response = client.post(PATH, json=body(frobnicate=1, reasoning={"effort": "low"}, user="u", store=False))
    assert response.status_code == 200
    assert response.headers["x-specdec-ignored"] == "frobnicate"


def test_what_cannot_be_included_is_named_in_a_header(client: httpx.Client) -> None:
    response = client.post(PATH, json=body(include=["message.output_text.logprobs", "reasoning.encrypted_content"]))
    assert response.status_code == 200
    assert response.headers["x-specdec-ignored"] == "include.reasoning.encrypted_content"


def test_unknown_fields_of_items_are_named_in_a_header_and_those_of_earlier_answers_are_not(
    client: httpx.Client,
) -> None:
    earlier = client.post(PATH, json=body()).json()["output"]
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi", "mood": "glad"}], "weight": 2},
        *earlier,
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "function_call", "id": "x", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": "4", "namespace": "n", "weight": 1},
    ]
    response = client.post(PATH, json=body(input=items, frobnicate=1))
    assert response.status_code == 200, response.text
    named = response.headers["x-specdec-ignored"].split(",")
    assert named == ["frobnicate", "input[].content[].mood", "input[].weight", "input[].namespace"]


@pytest.mark.parametrize("at_step", [0, 5])
def test_a_stream_that_cannot_go_on_ends_in_a_failed_response(at_step: int, make_engine: object) -> None:
    with (
        serving(dying(slowed(make_engine(), 0.01), lambda engine: engine.stats().num_steps >= at_step)) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        found = events(client, max_output_tokens=200, logit_bias={"2": -100})
    assert found[0]["type"] == "response.created"
    assert found[-1]["type"] == "response.failed"
    failed = found[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "server_error"
    assert "0xdeadbeef" not in json.dumps(failed)
