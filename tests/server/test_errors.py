"""Every failure is OpenAI's error object, with the right status, the field at fault and a code."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest
from live_server import LiveServer, chat_body

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def assert_error(response: httpx.Response, status: int, param: str | None, code: str | None) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert error["message"]
    assert (error["param"], error["code"]) == (param, code), error
    return error


def user(content: object, **fields: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content, **fields}]


SPECULATION_FAULTS = [
    ({"speculative": True}, "speculative", "invalid_value"),
    ({"speculative": {"enabled": 1}}, "speculative.enabled", "invalid_value"),
    ({"speculative": {"method": 3}}, "speculative.method", "invalid_value"),
    ({"speculative": {"method": "eagle"}}, "speculative.method", "invalid_value"),
    ({"speculative": {"method": ""}}, "speculative.method", "invalid_value"),
    ({"speculative": {"method": "ngram+"}}, "speculative.method", "invalid_value"),
    ({"speculative": {"method": "draft_model"}}, "speculative.method", "invalid_value"),
    ({"speculative": {"method": "grammar+draft_model"}}, "speculative.method", "invalid_value"),
    ({"speculative": {"method": "synthetic"}}, "speculative.method", "invalid_value"),
    ({"speculative": {"num_speculative_tokens": -1}}, "speculative.num_speculative_tokens", "invalid_value"),
    ({"speculative": {"num_speculative_tokens": 65}}, "speculative.num_speculative_tokens", "invalid_value"),
    ({"speculative": {"num_speculative_tokens": 1.5}}, "speculative.num_speculative_tokens", "invalid_value"),
    ({"speculative": {"verification": "hope"}}, "speculative.verification", "invalid_value"),
    ({"speculative": {"model": "m"}}, "speculative.model", "invalid_value"),
    ({"prediction": "x"}, "prediction", "invalid_value"),
    ({"prediction": {}}, "prediction.type", "invalid_value"),
    ({"prediction": {"content": "x"}}, "prediction.type", "invalid_value"),
    ({"prediction": {"type": "content"}}, "prediction.content", "invalid_value"),
    ({"prediction": {"type": "image", "content": "x"}}, "prediction.type", "invalid_value"),
    ({"prediction": {"type": "content", "content": None}}, "prediction.content", "invalid_value"),
    ({"prediction": {"type": "content", "content": [{"type": "text"}]}}, "prediction.content[0].text", "invalid_value"),
    ({"prediction": {"type": "content", "content": [{"type": "refusal", "refusal": "x"}]}},
     "prediction.content[0].type", "invalid_value"),
    ({"prediction": {"type": "content", "content": "x" * 300_000}}, "prediction", "context_length_exceeded"),
    ({"specdec_trace": "yes"}, "specdec_trace", "invalid_value"),
]  # fmt: skip


CHAT_FAULTS = [
    *SPECULATION_FAULTS,
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.5}, "top_p", "invalid_value"),
    ({"min_p": 2}, "min_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 17}, "n", "limit_exceeded"),
    ({"n": 1.5}, "n", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -5}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ({"max_tokens": 10**9}, "max_tokens", "context_length_exceeded"),
    ({"max_completion_tokens": 10**9}, "max_completion_tokens", "context_length_exceeded"),
    ({"messages": user("word " * 5000)}, "messages", "context_length_exceeded"),
    ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
    ({"presence_penalty": -3}, "presence_penalty", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": "7"}, "seed", "invalid_value"),
    ({"stop": ["x"] * 17}, "stop", "limit_exceeded"),
    ({"stop": "x" * 257}, "stop", "limit_exceeded"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": [1]}, "stop[0]", "invalid_value"),
    ({"stop_token_ids": [10**6]}, "stop_token_ids", "invalid_value"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": "a"}}, "logit_bias[...]", "invalid_value"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "limit_exceeded"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "invalid_value"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logprobs": 3}, "logprobs", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hello"}, "messages", "invalid_value"),
    ({"messages": None}, "messages", "invalid_value"),
    ({"messages": user("x") * 2049}, "messages", "limit_exceeded"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
    ({"messages": user(3)}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "assistant", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}]}]}, "messages",
     "invalid_value"),
    ({"messages": user(None)}, "messages[0].content", "invalid_value"),
    ({"messages": user([{"type": "image_url", "image_url": {"url": "http://x"}}])}, "messages[0].content[0].type",
     "invalid_value"),
    ({"messages": user([{"type": "text", "text": "a"}, {"type": "input_audio"}])}, "messages[0].content[1].type",
     "invalid_value"),
    ({"messages": user([{"text": "a"}])}, "messages[0].content[0].type", "invalid_value"),
    ({"messages": user([{"type": "text"}])}, "messages[0].content[0].text", "invalid_value"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": "c"}]}]},
     "messages[0].tool_calls[0].function", "invalid_value"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_field"),
    ({"allowed_token_ids": [1]}, "allowed_token_ids", "unsupported_field"),
    ({"return_token_ids": 1}, "return_token_ids", "invalid_value"),
    ({"metadata": {"a": 1}}, "metadata[...]", "invalid_value"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "limit_exceeded"),
    ({"metadata": {"k" * 65: "x"}}, "metadata", "limit_exceeded"),
    ({"metadata": {"k": "x" * 513}}, "metadata", "limit_exceeded"),
    ({"messages": user([{"type": "refusal", "refusal": "no"}])}, "messages[0].content[0].type", "invalid_value"),
    ({"guided_json": {"type": "object"}}, "guided_json", "unsupported_field"),
    ({"guided_whatever": 1}, "guided_whatever", "unsupported_field"),
    ({"grammar": "root ::= x"}, "grammar", "unsupported_field"),
    ({"json_schema": {}}, "json_schema", "unsupported_field"),
    ({"format": "json"}, "format", "unsupported_field"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_field"),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_field"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_field"),
    ({"chat_template": "{{ messages }}"}, "chat_template", "unsupported_field"),
    ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs[...]", "invalid_value"),
    ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs.messages", "unsupported_field"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking", "unsupported_field"),
    ({"reasoning_effort": "a b"}, "reasoning_effort", "invalid_value"),
    ({"response_format": "json"}, "response_format", "invalid_value"),
    ({"response_format": {}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_value"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema",
     "invalid_value"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": None}}},
     "response_format.json_schema.schema", "invalid_json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "x" * 300_000}}}},
     "response_format.json_schema.schema", "schema_too_large"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}, "shema": 1}},
     "response_format.shema", "invalid_value"),
    ({"response_format": {"type": "json_object"}, "stop": "x"}, "stop", "conflicting_fields"),
    ({"response_format": {"type": "json_object"}, "stop_token_ids": [3]}, "stop_token_ids", "conflicting_fields"),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "conflicting_fields"),
    ({"response_format": {"type": "json_object"}, "min_tokens": 1}, "min_tokens", "conflicting_fields"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code"), CHAT_FAULTS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("stream", [None, True])
def test_a_faulty_chat_request_is_a_400_that_names_the_field(
    client: httpx.Client, fields: dict, param: str, code: str | None, *, stream: bool | None
) -> None:
    if stream and "stream_options" in fields and "stream" not in fields:
        return
    body = chat_body(**{"max_tokens": 4, **({"stream": True} if stream else {}), **fields})
    if "max_completion_tokens" in fields:
        del body["max_tokens"]
    error = assert_error(client.post(CHAT, json=body), 400, param, code)
    assert error["type"] == "invalid_request_error"


COMPLETION_FAULTS = [
    ({}, "prompt", "invalid_value"),
    ({"prompt": None}, "prompt", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt", "invalid_value"),
    ({"prompt": ["a", 1]}, "prompt", "invalid_value"),
    ({"prompt": ["a", [1]]}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 65}, "prompt", "limit_exceeded"),
    ({"prompt": [10**7]}, "prompt", "invalid_value"),
    ({"prompt": [-1]}, "prompt", "invalid_value"),
    ({"prompt": "word " * 5000}, "prompt", "context_length_exceeded"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "unsupported_field"),
    ({"prompt": "a", "max_completion_tokens": 3}, "max_completion_tokens", "unsupported_field"),
    ({"prompt": "a", "top_logprobs": 3}, "top_logprobs", "unsupported_field"),
    ({"prompt": "a", "messages": []}, "messages", "unsupported_field"),
    ({"prompt": "a", "modalities": ["audio"]}, "modalities", "unsupported_field"),
    ({"prompt": "a", "web_search_options": {}}, "web_search_options", "unsupported_field"),
    ({"prompt": "a", "allowed_token_ids": [1]}, "allowed_token_ids", "unsupported_field"),
    ({"prompt": "a", "echo": True, "logprobs": 1}, "echo", "conflicting_fields"),
    ({"prompt": "a", "best_of": 4}, "best_of", "unsupported_field"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "invalid_value"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "invalid_value"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"prompt": "a", "stream_options": {}}, "stream_options", "invalid_value"),
    ({"prompt": "a", "guided_regex": "x"}, "guided_regex", "unsupported_field"),
    ({"prompt": ["a", [10**7]]}, "prompt", "invalid_value"),
    *(({"prompt": "a", **fields}, param, code) for fields, param, code in SPECULATION_FAULTS),
]


@pytest.mark.parametrize(("fields", "param", "code"), COMPLETION_FAULTS, ids=lambda value: str(value)[:60])
def test_a_faulty_completion_request_is_a_400_that_names_the_field(
    client: httpx.Client, fields: dict, param: str, code: str | None
) -> None:
    assert_error(client.post(COMPLETIONS, json={"model": "tiny", **fields}), 400, param, code)


BAD_BODIES = {
    "empty": b"",
    "blank": b"  \n",
    "cut": b'{"model": "tiny", "messages": [',
    "no json": b"model=tiny",
    "two values": b"{} {}",
    "an array": b"[]",
    "a string": b'"tiny"',
    "not utf-8": b'{"model": "\xff\xfe"}',
    "lone surrogate": b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "NaN": b'{"model": "tiny", "temperature": NaN}',
    "huge integer": b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}",
    "deep array": b'{"model": "tiny", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep schema": b'{"model": "tiny", "messages": [], "response_format": {"type": "json_schema", "json_schema": '
    b'{"schema": ' + b'{"not":' * 20_000 + b"{}" + b"}" * 20_000 + b"}}}",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_body_that_is_no_json_object_is_a_400(client: httpx.Client, body: bytes) -> None:
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert_error(response, 400, None, "invalid_json")


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b'{"model": "\xff\xfe"}', "not UTF-8 at byte 11"),
        ('{"model": "tiny"}'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}", "more than 4300 digits"),
        (b'{"model": "tiny", "temperature": NaN}', "NaN"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "lone surrogate"),
    ],
    ids=["bytes", "utf-16", "many digits", "NaN", "byte order mark", "surrogate"],
)
def test_what_is_wrong_with_the_characters_of_a_body_is_said(client: httpx.Client, body: bytes, what: str) -> None:
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert what in assert_error(response, 400, None, "invalid_json")["message"]


def test_a_compressed_body_is_a_415_that_says_so(client: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = client.post(CHAT, content=gzip.compress(json.dumps(chat_body()).encode()), headers=headers)
    assert "'gzip'" in assert_error(response, 415, None, "unsupported_media_type")["message"]
    assert response.headers["accept-encoding"] == "identity"
    headers["content-encoding"] = "identity"
    assert client.post(CHAT, content=json.dumps(chat_body(max_tokens=1)), headers=headers).status_code == 200


def test_messages_name_this_servers_limits_and_say_which_part_is_wrong(client: httpx.Client) -> None:
    assert "between 1 and 16" in client.post(CHAT, json=chat_body(n=0)).json()["error"]["message"]
    assert "of a key" in client.post(CHAT, json=chat_body(logit_bias={"x": 1})).json()["error"]["message"]


def test_a_number_out_of_range_is_a_400(client: httpx.Client) -> None:
    body = b'{"model": "tiny", "messages": [], "temperature": 1e999}'
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert_error(response, 400, "temperature", "invalid_value")


def test_a_repeated_key_among_very_many_is_found_in_time(client: httpx.Client) -> None:
    members = ",".join(f'"k{i}":0' for i in range(200_000))
    response = client.post(
        CHAT, content=f'{{{members},"k199999":1}}', headers={"content-type": "application/json"}, timeout=5
    )
    assert_error(response, 400, "k199999", "invalid_json")


def test_a_repeated_key_is_a_400_wherever_it_is(client: httpx.Client) -> None:
    for inner in ('"temperature": 0, "temperature": 1', '"x": {"y": [{"temperature": 0, "temperature": 0}]}'):
        response = client.post(
            CHAT, content=f'{{"model": "tiny", {inner}}}', headers={"content-type": "application/json"}
        )
        assert_error(response, 400, "temperature", "invalid_json")


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(client: httpx.Client, missing: str) -> None:
    body = {name: value for name, value in chat_body().items() if name != missing}
    assert_error(client.post(CHAT, json=body), 400, missing, "invalid_value")


def test_an_unknown_model_is_a_404_that_names_those_served(client: httpx.Client) -> None:
    for response in (
        client.post(CHAT, json=chat_body(model="gpt-99")),
        client.post(COMPLETIONS, json={"model": "gpt-99", "prompt": "x"}),
        client.get("/v1/models/gpt-99"),
        client.get("/v1/models/org/gpt-99"),
    ):
        assert "tiny" in assert_error(response, 404, "model", "model_not_found")["message"]


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/embeddings", "/v1/chat/completions/x", "/%00", "/v1/../etc"])
def test_an_unknown_path_is_a_404(client: httpx.Client, path: str) -> None:
    assert assert_error(client.get(path), 404, None, "not_found")["type"] == "not_found_error"


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/specdec/info", "/metrics"])
def test_head_is_answered_as_get_without_the_body(client: httpx.Client, path: str) -> None:
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == client.get(path).headers["content-type"]


def test_head_of_what_cannot_be_got_is_refused_as_get_is(client: httpx.Client) -> None:
    assert client.head(CHAT).status_code == 405
    assert client.head("/nowhere").status_code == 404
    assert "HEAD" in client.post("/health").headers["allow"]
    assert "HEAD" not in client.get(CHAT).headers["allow"]


def test_a_long_value_is_not_repeated_in_full(client: httpx.Client) -> None:
    fields = chat_body(speculative={"method": "x" * 100_000})
    error = assert_error(client.post(CHAT, json=fields), 400, "speculative.method", "invalid_value")
    assert len(error["message"]) < 3000


def test_messages_have_the_name_that_the_request_gave_a_field(client: httpx.Client) -> None:
    response = client.post(CHAT, json=chat_body(max_completion_tokens=10**9))
    assert "max_completion_tokens is 1000000000" in response.json()["error"]["message"]
    response = client.post("/v1/responses", json={"model": "tiny", "input": "Hello", "max_output_tokens": 10**9})
    assert "max_output_tokens is 1000000000" in response.json()["error"]["message"]


def test_an_empty_content_encoding_is_none(client: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": ""}
    assert client.post(CHAT, content=json.dumps(chat_body(max_tokens=1)), headers=headers).status_code == 200


def test_the_info_says_what_serves_and_no_paths(live: LiveServer, client: httpx.Client) -> None:
    info = client.get("/v1/specdec/info").json()
    assert (info["models"], info["max_model_len"]) == (["tiny"], live.async_engine.max_model_len)
    assert info["limits"]["max_choices"] == 16
    assert "/" not in json.dumps(info)


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_who_asks_for_another_protocol_is_answered_in_this_one(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    assert client.get("/version", headers={"connection": "upgrade", "upgrade": protocol}).status_code == 200
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_wrong_method_is_a_405_that_names_the_right_one(client: httpx.Client) -> None:
    for response in (
        client.get(CHAT),
        client.put(COMPLETIONS, json={}),
        client.post("/health"),
        client.delete("/metrics"),
    ):
        assert_error(response, 405, None, "method_not_allowed")
        assert response.headers["allow"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_another_content_type_is_a_415(client: httpx.Client, content_type: str) -> None:
    response = client.post(CHAT, content=json.dumps(chat_body()), headers={"content-type": content_type})
    assert_error(response, 415, None, "unsupported_media_type")


def test_a_charset_does_not_make_json_something_else(client: httpx.Client) -> None:
    headers = {"content-type": "application/JSON; charset=utf-8"}
    assert client.post(CHAT, content=json.dumps(chat_body(max_tokens=1)), headers=headers).status_code == 200


def test_a_body_above_the_limit_is_a_413_whether_announced_or_not(live: LiveServer) -> None:
    body = json.dumps(chat_body(filler="x" * 5 * 2**20)).encode()
    headers = {"content-type": "application/json"}

    def pieces() -> object:
        for start in range(0, len(body), 2**16):
            yield body[start : start + 2**16]

    for content in (body, pieces()):
        try:
            response = httpx.post(live.url + CHAT, content=content, headers=headers, timeout=30)
        except httpx.WriteError:  # the server answered and hung up before all was sent
            continue
        assert_error(response, 413, None, "request_too_large")
    assert httpx.get(live.url + "/health").status_code == 200


def test_a_schema_at_fault_is_named_with_keyword_and_pointer(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a/b": {"type": "nonsense"}}}
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = client.post(CHAT, json=chat_body(response_format=response_format))
    error = assert_error(response, 400, "response_format.json_schema.schema", "invalid_json_schema")
    assert error["pointer"].startswith("/properties/a~1b")
    assert error["keyword"] == "type"
