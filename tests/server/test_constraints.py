"""Constraints over HTTP: both fields, every kind, their options, and the report of what was enforced."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from live_server import LiveServer, chat_body, read_events, serving, wait_until

from specdec import Engine, JsonSchema

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
PLACE = {"https://example.com/place": {"enum": ["Rome", "Oslo"]}}
REFERENCE = {"$ref": "https://example.com/place"}
pytestmark = pytest.mark.filterwarnings("error")


def answer(client: httpx.Client, path: str = CHAT, **fields: object) -> dict:
    body = chat_body() if path == CHAT else {"model": "tiny", "prompt": "a"}
    response = client.post(path, json={**body, "max_tokens": 60, **fields})
    assert response.status_code == 200, response.text
    assert "x-specdec-ignored" not in response.headers
    return response.json()


def content(client: httpx.Client, **fields: object) -> str:
    choice = answer(client, **fields)["choices"][0]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


def refusal(client: httpx.Client, **fields: object) -> dict:
    responses = [
        client.post(CHAT, json=chat_body(**fields)),
        client.post(CHAT, json=chat_body(stream=True, **fields)),
        client.post(COMPLETIONS, json={"model": "tiny", "prompt": "a", **fields}),
    ]
    errors = [response.json()["error"] for response in responses]
    assert [response.status_code for response in responses] == [400] * 3
    assert errors[0] == errors[1] == errors[2]
    assert errors[0]["type"] == "invalid_request_error"
    return errors[0]


@pytest.mark.parametrize("as_text", [False, True])
def test_a_schema_in_structured_outputs_is_enforced(client: httpx.Client, *, as_text: bool) -> None:
    schema = {"enum": ["yes", {"no": 1}]}
    outputs = {"json": json.dumps(schema) if as_text else schema}
    assert json.loads(content(client, structured_outputs=outputs)) in schema["enum"]


def test_json_object_is_any_object(client: httpx.Client) -> None:
    for seed in range(12):
        choice = answer(client, structured_outputs={"json_object": True}, max_tokens=300, seed=seed)["choices"][0]
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
            return
    pytest.fail("no answer ended within its tokens")


def test_completions_take_the_same_field(client: httpx.Client) -> None:
    choice = answer(client, COMPLETIONS, structured_outputs={"json": {"const": 1}})["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("1", "stop")


def test_the_openai_client_passes_it_as_extra_body(live: LiveServer) -> None:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        completion = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "?"}],
            max_tokens=60,
            extra_body={"structured_outputs": {"json": {"const": "a"}, "report": True}},
        )
    assert completion.choices[0].message.content == '"a"'
    assert completion.model_extra["specdec"]["enforcement"]["enforced"] == ["const"]


FIELDS = {
    "structured_outputs": lambda schema, **others: {"structured_outputs": {"json": schema, **others}},
    "response_format": lambda schema, **others: {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}, **others}
    },
    "llama.cpp": lambda schema, **others: {
        "response_format": {"type": "json_object", "schema": schema, **others}
    },
}  # fmt: skip


@pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS.keys())
def test_options_say_how_the_schema_is_read(client: httpx.Client, make: Callable[..., dict]) -> None:
    assert json.loads(content(client, **make(REFERENCE, options={"documents": PLACE}))) in {"Rome", "Oslo"}
    unknown = {"format": "nonsense", "enum": ["a"]}
    assert content(client, **make(unknown, options={"unknown_format": "annotation", "documents": None})) == '"a"'
    assert refusal(client, **make(unknown))["keyword"] == "format"
    uuid = {"format": "uuid", "const": "a"}
    assert content(client, **make(uuid, options={"format": "annotation"})) == '"a"'
    assert refusal(client, **make(uuid))["code"] == "invalid_json_schema"


def test_documents_keep_numbers_that_no_double_holds(client: httpx.Client) -> None:
    options = {"documents": {"urn:n": {"const": 10**30 + 1}}}
    assert content(client, structured_outputs={"json": {"$ref": "urn:n"}, "options": options}) == str(10**30 + 1)


@pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS.keys())
def test_the_report_comes_where_it_is_asked_for(client: httpx.Client, make: Callable[..., dict]) -> None:
    schema = {"title": "x", "enum": ["a", "b"]}
    enforcement = answer(client, **make(schema, report=True))["specdec"]["enforcement"]
    assert enforcement["enforced"] == ["enum"]
    assert enforcement["annotations"] == ["title"]
    assert all(restriction.keys() == {"reason", "pointer"} for restriction in enforcement["restrictions"])
    assert any("whitespace" in restriction["reason"] for restriction in enforcement["restrictions"])
    for silent in (make(schema), make(schema, report=False), make(schema, report=None), {}):
        assert answer(client, **silent)["specdec"].keys() == {"seed"}


def test_a_stream_carries_the_report_in_the_last_chunk_of_a_choice(client: httpx.Client) -> None:
    fields = FIELDS["structured_outputs"]({"enum": ["a", "b"]}, report=True)
    with client.stream("POST", CHAT, json=chat_body(stream=True, n=2, max_tokens=60, **fields)) as response:
        chunks = list(read_events(response))
    with_extension = [chunk for chunk in chunks if "specdec" in chunk]
    assert [chunk["choices"][0]["finish_reason"] for chunk in with_extension] == ["stop", "stop"]
    assert all(chunk["specdec"]["enforcement"]["enforced"] == ["enum"] for chunk in with_extension)
    body = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 60, **fields}
    whole = client.post(COMPLETIONS, json=body).json()
    assert len(whole["specdec"]["seeds"]) == 2
    assert whole["specdec"]["enforcement"]["enforced"] == ["enum"]


JSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
FAULTS = [
    ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
    ({"structured_outputs": {"json": None, "json_object": False}}, "structured_outputs", "invalid_value"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "conflicting_fields"),
    ({"structured_outputs": {"json_object": True, "choice": ["a"]}}, "structured_outputs", "conflicting_fields"),
    ({"structured_outputs": {"json": {}}, "response_format": JSON_FORMAT}, "structured_outputs", "conflicting_fields"),
    ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs",
     "conflicting_fields"),
    ({"structured_outputs": "json"}, "structured_outputs", "invalid_value"),
    ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar", "invalid_value"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "invalid_value"),
    ({"structured_outputs": {"json": {}, "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern",
     "invalid_value"),
    ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex", "invalid_value"),
    ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice", "invalid_value"),
    ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]", "invalid_value"),
    ({"structured_outputs": {"json": {"type": "nonsense"}}}, "structured_outputs.json", "invalid_json_schema"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "invalid_json_schema"),
    ({"structured_outputs": {"json": "null"}}, "structured_outputs.json", "invalid_json_schema"),
    ({"structured_outputs": {"json": 3}}, "structured_outputs.json", "invalid_json_schema"),
    ({"structured_outputs": {"json": False}}, "structured_outputs.json", "invalid_json_schema"),
    ({"structured_outputs": {"json": {"$ref": "urn:a"}}}, "structured_outputs.json", "unsupported_schema_feature"),
    ({"structured_outputs": {"json": {"title": "x" * 300_000}}}, "structured_outputs.json", "schema_too_large"),
    ({"structured_outputs": {"regex": "x" * 300_000}}, "structured_outputs.regex", "schema_too_large"),
    ({"structured_outputs": {"choice": ["x" * 300_000]}}, "structured_outputs.choice", "schema_too_large"),
    ({"structured_outputs": {"json": {}, "report": "yes"}}, "structured_outputs.report", "invalid_value"),
    ({"structured_outputs": {"json": {}, "options": {"formats": "assert"}}}, "structured_outputs.options.formats",
     "invalid_value"),
    ({"structured_outputs": {"json": {}, "options": {"format": "refuse"}}}, "structured_outputs.options.format",
     "invalid_value"),
    ({"structured_outputs": {"json": {}, "options": {"max_whitespace": 0}}},
     "structured_outputs.options.max_whitespace", "invalid_value"),
    ({"structured_outputs": {"json": {}, "options": {"documents": []}}}, "structured_outputs.options.documents",
     "invalid_value"),
    ({"structured_outputs": {"json": {}, "options": {"documents": {"urn:a": {"title": "x" * 300_000}}}}},
     "structured_outputs.options.documents", "schema_too_large"),
    ({"structured_outputs": {"json": {"title": "x" * 200_000}, "options": {"documents": {"urn:a": "x" * 100_000}}}},
     "structured_outputs.options.documents", "schema_too_large"),
    ({"structured_outputs": {"regex": "a", "options": {}}}, "structured_outputs.options", "conflicting_fields"),
    ({"structured_outputs": {"choice": ["a"], "options": {"format": "assert"}}}, "structured_outputs.options",
     "conflicting_fields"),
    ({"response_format": {**JSON_FORMAT, "options": {"whitespace": "none"}}}, "response_format.options.whitespace",
     "invalid_value"),
    ({"response_format": {**JSON_FORMAT, "options": {"strict": True}}}, "response_format.options.strict",
     "invalid_value"),
    ({"response_format": {"type": "json_object", "option": {}}}, "response_format.option", "invalid_value"),
    ({"response_format": {"type": "text", "report": True}}, "response_format.report", "invalid_value"),
    *(
        ({"structured_outputs": outputs, **conflict}, next(iter(conflict)), "conflicting_fields")
        for outputs in ({"json": {}}, {"json_object": True}, {"regex": "a"}, {"choice": ["a"]})
        for conflict in ({"stop": "x"}, {"stop_token_ids": [3]}, {"ignore_eos": True}, {"min_tokens": 1})
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code"), FAULTS, ids=lambda value: str(value)[:70])
def test_a_faulty_constraint_is_a_400_that_names_the_field(
    client: httpx.Client, fields: dict, param: str, code: str
) -> None:
    error = refusal(client, **fields)
    assert (error["param"], error["code"]) == (param, code)


def test_a_null_constraint_and_the_text_format_constrain_nothing(client: httpx.Client) -> None:
    for fields in (
        {"structured_outputs": None, "response_format": None},
        {"structured_outputs": None, "response_format": {"type": "text"}},
    ):
        assert "specdec" in answer(client, stop="zzz", **fields)
    assert content(client, structured_outputs={"json": {"const": 1}}, response_format={"type": "text"}) == "1"


@pytest.fixture
def miscompiled(make_engine: Callable[..., Engine]) -> Iterator[LiveServer]:
    """A server whose compiler takes one schema for another."""
    engine = make_engine()
    compile_rightly = engine._compiler.compile
    wrong, right = JsonSchema(schema='{"const":"yes"}'), JsonSchema(schema='{"const":"no"}')
    engine._compiler.compile = lambda constraint, interest: compile_rightly(
        right if constraint == wrong else constraint, interest
    )
    with serving(engine) as server:
        yield server


def test_a_wrong_answer_is_an_error_of_its_request_alone_and_counted(
    miscompiled: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"max_tokens": 60, "response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "yes"}}}}
    with httpx.Client(base_url=miscompiled.url, timeout=30.0) as client, caplog.at_level(logging.ERROR, "specdec"):
        whole = client.post(CHAT, json=chat_body(**fields))
        assert whole.status_code == 500
        assert whole.headers["x-should-retry"] == "false"
        error = whole.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "generation_failed")
        assert "does not satisfy its constraint" in error["message"]
        with client.stream("POST", CHAT, json=chat_body(stream=True, **fields)) as response:
            assert response.status_code == 200
            *chunks, last = read_events(response)
        assert last["error"] == error
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
        assert content(client, structured_outputs={"json": {"const": "no"}}) == '"no"'
        wait_until(lambda: miscompiled.async_engine.num_in_flight == 0, "the failed requests to be forgotten")
        wait_until(lambda: miscompiled.async_engine.stats().num_outputs_checked == 3, "the counts to be published")
        assert miscompiled.num_blocks_in_use() == 0
        exposition = client.get("/metrics").text
    assert 'specdec:output_check_failures_total{model_name="tiny"} 2.0' in exposition
    assert 'specdec:outputs_checked_total{model_name="tiny"} 3.0' in exposition
    assert 'specdec:outputs_not_checked_total{model_name="tiny"} 0.0' in exposition
    assert sum("const" in record.getMessage() for record in caplog.records) == 2
