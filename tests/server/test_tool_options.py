"""`options` and `report` beside a tool: how its schema is read, and what was enforced of it."""

from __future__ import annotations

import json

import httpx
import pytest
from live_server import LiveServer
from tool_requests import MESSAGES, NO_END, allowed

pytestmark = pytest.mark.filterwarnings("error")

REPORTED = {"type": "object", "properties": {"day": {"type": "string", "format": "date"}, "n": {"type": "number"}},
            "required": ["day"], "title": "x"}  # fmt: skip


def tool(name: str, parameters: object = REPORTED, **beside: object) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": parameters}, **beside}


def post(live: LiveServer, path: str = "/v1/chat/completions", **fields: object) -> httpx.Response:
    return httpx.post(live.url + path, json={"model": "tiny", "seed": 1, **fields}, timeout=60)


def called(live: LiveServer, **fields: object) -> tuple[str, dict]:
    response = post(live, messages=MESSAGES, max_tokens=200, **{"tool_choice": "required", **fields})
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], answer["specdec"]


def test_the_report_on_tools_points_into_the_request(live: LiveServer) -> None:
    tools = [tool("idle", {}), tool("plan", report=True), tool("other", report=None)]
    _, extension = called(live, tools=tools, tool_choice=allowed("required", "plan"))
    report = extension["enforcement"]
    assert {"functions", "properties", "format", "required"} <= set(report["enforced"])
    assert report["annotations"] == ["title"]
    pointers = {restriction["pointer"] for restriction in report["restrictions"]}
    below = [pointer for pointer in pointers if pointer.startswith("/tools")]
    assert below
    assert all(pointer.startswith("/tools/1/function/parameters") for pointer in below)
    assert "enforcement" not in called(live, tools=tools, tool_choice=allowed("required", "other"))[1]
    assert "enforcement" not in called(live, tools=[tool("plan")])[1]


def test_the_report_of_an_answer_that_is_free_to_call_covers_its_text(live: LiveServer) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": REPORTED}}
    body = {"messages": MESSAGES, "tools": [tool("plan", report=True)], "response_format": shape, "max_tokens": 200}
    report = post(live, **body).json()["specdec"]["enforcement"]
    places = {restriction["pointer"].rpartition("/properties")[0] for restriction in report["restrictions"]}
    assert {"/tools/0/function/parameters", "/response_format/json_schema/schema"} <= places


def test_responses_have_the_report_and_the_options_of_tools(live: LiveServer) -> None:
    plan = {"type": "function", "name": "plan", "parameters": REPORTED, "report": True,
            "options": {"format": "annotation"}}  # fmt: skip
    body = {"input": "Plan", "tools": [plan], "tool_choice": "required", "max_output_tokens": 200}
    answer = post(live, "/v1/responses", **body).json()
    assert "format" not in answer["specdec"]["enforcement"]["enforced"]
    assert answer["tools"][0]["options"] == {**answer["tools"][0]["options"], "format": "annotation"}
    places = {one["pointer"][:19] for one in answer["specdec"]["enforcement"]["restrictions"]}
    assert places <= {"", "/tools/0/parameters"}


def test_each_tool_has_its_own_options(live: LiveServer) -> None:
    impossible = {"type": "object", "properties": {"a": {"const": "x", "format": "uuid"}}, "required": ["a"]}
    assert post(live, messages=MESSAGES, tools=[tool("f", impossible)]).json()["error"]["param"] == (
        "tools[0].function.parameters"
    )
    lax = tool("f", impossible, options={"format": "annotation"})
    assert called(live, tools=[lax])[0] == '{"a":"x"}'
    refused = post(live, messages=MESSAGES, tools=[lax, tool("g", impossible)]).json()["error"]
    assert refused["param"] == "tools[1].function.parameters"
    place = {"https://example.com/place": {"enum": ["Rome", "Oslo"]}}
    elsewhere = {"type": "object", "properties": {"a": {"$ref": "https://example.com/place"}}, "required": ["a"]}
    known = tool("f", elsewhere, options={"documents": place})
    assert json.loads(called(live, tools=[known])[0])["a"] in {"Rome", "Oslo"}


def test_tools_take_no_undeclared_parameters_unless_their_options_say_so(live: LiveServer) -> None:
    declared = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    for options in (None, {}, {"whitespace": "compact"}, {"additional_properties": "closed"}):
        for seed in range(3):
            assert called(live, seed=seed, tools=[tool("f", declared, options=options)])[0] == '{"a":1}'
    lax = [tool("f", declared, options={"additional_properties": "schema"})]
    assert any(len(json.loads(called(live, seed=seed, tools=lax, logit_bias=NO_END)[0])) > 1 for seed in range(20))


def test_the_calls_of_an_answer_have_one_whitespace(live: LiveServer) -> None:
    pretty = tool("f", {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
                  options={"whitespace": "pretty"})  # fmt: skip
    plain = tool("g", {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})
    for tools in ([pretty, plain], [plain, pretty]):
        assert "\n" in called(live, tools=tools)[0]
    flexible = tool("h", options={"whitespace": "flexible"})
    refused = post(live, messages=MESSAGES, tools=[pretty, flexible]).json()["error"]
    assert (refused["param"], refused["code"]) == ("tools[1].options", "conflicting_fields")
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": REPORTED}}
    refused = post(live, messages=MESSAGES, tools=[pretty], response_format=shape).json()["error"]
    assert (refused["param"], refused["code"]) == ("tools[0].options", "conflicting_fields")
    agreed = {**shape, "options": {"whitespace": "pretty"}}
    response = post(live, messages=MESSAGES, tools=[pretty], response_format=agreed, max_tokens=300)
    assert response.status_code == 200, response.text
