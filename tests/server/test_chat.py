"""Chat completions over HTTP: shapes, streams, and that a stream says what the whole answer says."""

from __future__ import annotations

import json
import re

import httpx
import pytest
from live_server import LiveServer, chat_body, read_events, wait_until

PATH = "/v1/chat/completions"


def whole(client: httpx.Client, **fields: object) -> dict:
    response = client.post(PATH, json=chat_body(**fields))
    assert response.status_code == 200, response.text
    return response.json()


def streamed(client: httpx.Client, **fields: object) -> list[dict]:
    with client.stream("POST", PATH, json=chat_body(stream=True, **fields)) as response:
        assert response.status_code == 200
        return list(read_events(response))


def joined(chunks: list[dict]) -> dict[int, dict]:
    """Text, log-probabilities and finish reason of each choice of a stream."""
    choices: dict[int, dict] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], {"text": "", "logprobs": [], "finish_reason": None})
            assert choice["finish_reason"] is None, "a choice goes on after its finish_reason"
            choice["text"] += part["delta"].get("content", "")
            choice["logprobs"] += (part["logprobs"] or {"content": []})["content"]
            choice["finish_reason"] = part["finish_reason"]
    return choices


def test_an_answer_has_every_field_that_openai_names(client: httpx.Client) -> None:
    answer = whole(client, max_tokens=7, seed=11)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "tiny"
    assert isinstance(answer["created"], int)
    assert answer["system_fingerprint"].startswith("fp_")
    assert answer["specdec"] == {"seed": 11}
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["logprobs"] is None
    assert choice["finish_reason"] in {"length", "stop"}
    assert choice["message"].keys() == {"role", "content", "refusal"}
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens"] <= 7
    assert "cached_tokens" in usage["prompt_tokens_details"]


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_says_what_the_whole_answer_says(client: httpx.Client, temperature: float, n: int) -> None:
    fields = {"max_tokens": 40, "seed": 5, "temperature": temperature, "n": n, "logprobs": True, "top_logprobs": 2}
    answer = whole(client, **fields)
    chunks = streamed(client, **fields, stream_options={"include_usage": True})
    choices = joined(chunks)
    assert len(choices) == n
    for choice in answer["choices"]:
        part = choices[choice["index"]]
        assert part["text"] == choice["message"]["content"]
        assert part["finish_reason"] == choice["finish_reason"]
        assert [entry["token"] for entry in part["logprobs"]] == [
            entry["token"] for entry in choice["logprobs"]["content"]
        ]
    assert chunks[-1]["choices"] == []
    assert {k: v for k, v in chunks[-1]["usage"].items() if k.endswith("_tokens")} == {
        k: v for k, v in answer["usage"].items() if k.endswith("_tokens")
    }


def test_the_first_chunk_has_the_role_and_the_last_the_reason(client: httpx.Client) -> None:
    chunks = streamed(client, max_tokens=10)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] in {"length", "stop"}
    assert all("usage" not in chunk for chunk in chunks)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1


def test_usage_is_null_until_the_last_chunk(client: httpx.Client) -> None:
    chunks = streamed(client, max_tokens=10, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["usage"]["completion_tokens"] <= 10


def test_usage_counts_up_when_asked_for_on_every_chunk(client: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [chunk["usage"]["completion_tokens"] for chunk in streamed(client, max_tokens=10, stream_options=options)]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0] - 1


def test_a_stream_has_the_headers_that_proxies_heed(client: httpx.Client) -> None:
    with client.stream("POST", PATH, json=chat_body(stream=True, max_tokens=2)) as response:
        list(read_events(response))
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"


def test_the_first_token_arrives_before_the_last_is_made(live: LiveServer, client: httpx.Client) -> None:
    with client.stream("POST", PATH, json=chat_body(stream=True, max_tokens=1900, n=4, ignore_eos=True)) as response:
        events = read_events(response)
        for event in events:
            if event["choices"][0]["delta"].get("content"):
                break
        wait_until(lambda: live.async_engine.num_in_flight == 1, "requests of others to be forgotten")
        wait_until(lambda: live.num_blocks_in_use() > 0, "the request to hold blocks")
    wait_until(lambda: live.num_blocks_in_use() == 0, "the blocks to be freed")


def test_no_chunk_splits_a_code_point(live: LiveServer, client: httpx.Client) -> None:
    no_special_tokens = dict.fromkeys(live.engine.tokenizer.special_token_ids, -100)
    for seed in range(3):
        fields = {"max_tokens": 200, "temperature": 2, "seed": seed, "ignore_eos": True, "logprobs": True}
        fields["logit_bias"] = no_special_tokens
        chunks = streamed(client, **fields)
        text = joined(chunks)[0]["text"]
        whole_bytes = b"".join(bytes(entry["bytes"]) for entry in joined(chunks)[0]["logprobs"])
        assert text == whole_bytes.decode(errors="replace")
        assert len(whole_bytes) != len(text), "the test needs multi-byte text"


def test_logprobs_have_one_entry_a_token_and_the_likely_ones_in_order(client: httpx.Client) -> None:
    answer = whole(client, max_tokens=20, logprobs=True, top_logprobs=4, ignore_eos=True, temperature=0)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert len(entries) == answer["usage"]["completion_tokens"] == 20
    for entry in entries:
        likely = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(likely) == 4
        assert likely == sorted(likely, reverse=True)
        assert entry["logprob"] == likely[0], "greedy draws the most likely"


def test_a_seed_reproduces_the_answer_and_is_returned_when_none_was_given(client: httpx.Client) -> None:
    first = whole(client, max_tokens=30)
    again = whole(client, max_tokens=30, seed=first["specdec"]["seed"])
    assert again["choices"][0]["message"]["content"] == first["choices"][0]["message"]["content"]
    assert whole(client, max_tokens=30)["specdec"]["seed"] != first["specdec"]["seed"]


def test_a_stop_string_ends_the_answer_and_is_not_shown(client: httpx.Client) -> None:
    text = whole(client, max_tokens=60, temperature=0, ignore_eos=True)["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    fields = {"max_tokens": 60, "temperature": 0, "ignore_eos": True, "stop": [stop]}
    answer = whole(client, **fields)["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["message"]["content"] == text[: text.index(stop)]
    assert joined(streamed(client, **fields))[0]["text"] == answer["message"]["content"]


def test_a_stop_string_is_not_shown_where_the_answer_breaks_off_in_a_code_point(
    live: LiveServer, client: httpx.Client
) -> None:
    lead_byte = live.engine.tokenizer.token_bytes().index(b"\xc3")
    fields = {"max_tokens": 1, "temperature": 0, "logit_bias": {str(lead_byte): 100}}
    for stop, content, reason in ((None, "\ufffd", "length"), ("x\ufffd", "\ufffd", "length"), ("\ufffd", "", "stop")):
        [choice] = client.post(PATH, json=chat_body(stop=stop, **fields)).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (content, reason)
        [streamed_choice] = joined(streamed(client, stop=stop, **fields)).values()
        assert streamed_choice["text"] == content


def test_without_max_tokens_the_answer_may_fill_the_context(live: LiveServer, client: httpx.Client) -> None:
    answer = whole(client, ignore_eos=True, messages=[{"role": "user", "content": "0" * 1900}])
    assert 1900 < answer["usage"]["prompt_tokens"] < live.engine.max_model_len
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == live.engine.max_model_len


def test_text_parts_and_developer_say_the_same_as_text_and_system(client: httpx.Client) -> None:
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello you"}]
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you"}]},
    ]
    fields = {"max_tokens": 12, "temperature": 0}
    answers = [whole(client, **fields, messages=messages) for messages in (plain, parts)]
    assert answers[0]["choices"][0]["message"] == answers[1]["choices"][0]["message"]
    assert answers[0]["usage"]["prompt_tokens"] == answers[1]["usage"]["prompt_tokens"]


def test_a_repeated_prompt_is_reported_as_cached(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "once upon a time " * 20}]
    whole(client, max_tokens=2, messages=messages)
    details = whole(client, max_tokens=2, messages=messages)["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] > 0


def test_null_means_the_default_for_every_optional_field(client: httpx.Client) -> None:
    names = re.findall(
        r"\w+",
        """temperature top_p n stop frequency_penalty presence_penalty logit_bias seed top_k min_p repetition_penalty
        min_tokens ignore_eos stop_token_ids max_completion_tokens logprobs top_logprobs response_format stream
        stream_options tools tool_choice prediction user metadata structured_outputs guided_json speculative
        specdec_trace""",
    )
    assert whole(client, max_tokens=3, **dict.fromkeys(names))["usage"]["completion_tokens"] <= 3


def test_fields_that_ask_for_nothing_are_accepted(client: httpx.Client) -> None:
    response = client.post(
        PATH,
        json=chat_body(
            max_tokens=2, tools=[], tool_choice="none", user="u", metadata={"a": "b"}, store=False,
            reasoning_effort="low", response_format={"type": "text"}, modalities=["text"], top_k=-1,
        ),
    )  # fmt: skip
    assert response.status_code == 200, response.text
    assert "x-specdec-ignored" not in response.headers


@pytest.mark.parametrize("fields", [{}, {"stop": ["e"]}, {"logprobs": True}, {"n": 2}])
def test_token_ids_are_returned_when_asked_for(live: LiveServer, client: httpx.Client, fields: dict) -> None:
    fields = {"max_tokens": 20, "seed": 4, "temperature": 1.5, "return_token_ids": True, **fields}
    answer = client.post(PATH, json=chat_body(**fields)).json()
    prompt = client.post("/tokenize", json=chat_body()).json()["tokens"]
    assert answer["prompt_token_ids"] == prompt
    token_ids = [choice["token_ids"] for choice in answer["choices"]]
    assert sum(map(len, token_ids)) == answer["usage"]["completion_tokens"]
    for choice in answer["choices"]:
        assert live.engine.tokenizer.decode(choice["token_ids"]).startswith(choice["message"]["content"])
    with client.stream("POST", PATH, json=chat_body(stream=True, **fields)) as response:
        chunks = list(read_events(response))
    assert [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk] == [prompt]
    for index, whole in enumerate(token_ids):
        parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert [token_id for part in parts for token_id in part.get("token_ids", ())] == whole
    plain = client.post(PATH, json=chat_body(max_tokens=2)).json()
    assert not {"prompt_token_ids", "metadata"} & plain.keys()
    assert "token_ids" not in plain["choices"][0]


def test_metadata_comes_back(client: httpx.Client) -> None:
    answer = client.post(PATH, json=chat_body(max_tokens=1, metadata={"run": "7"}, service_tier="flex")).json()
    assert (answer["metadata"], answer["service_tier"]) == ({"run": "7"}, "default")


def test_fields_without_effect_are_named_in_a_header(client: httpx.Client) -> None:
    body = chat_body(max_tokens=2, frobnicate=1, **{"naïve\nheader": 2})
    body["messages"] = [{"role": "user", "content": "Hello", "mood": "bright"}]
    response = client.post(PATH, json=body)
    assert response.status_code == 200
    assert response.headers["x-specdec-ignored"] == "frobnicate,na?ve?header,messages[].mood"


def test_a_request_id_goes_in_and_out_unless_it_is_unfit_for_a_header(client: httpx.Client) -> None:
    sent = client.post(PATH, json=chat_body(max_tokens=1), headers={"x-request-id": "abc-123"})
    assert sent.headers["x-request-id"] == "abc-123"
    assert int(sent.headers["openai-processing-ms"]) >= 0
    odd = client.post(PATH, json=chat_body(max_tokens=1), headers={"x-request-id": "a b{}"})
    assert odd.headers["x-request-id"].startswith("req-")


def test_every_chunk_is_json_on_one_line_even_to_clients_that_split_at_unicode_line_breaks(
    live: LiveServer, client: httpx.Client
) -> None:
    prompt = live.engine.tokenizer.encode("\x85\u2028\u2029")
    response = client.post("/v1/completions", json={
        "model": "tiny", "prompt": prompt, "max_tokens": 1, "echo": True, "stream": True,
    })  # fmt: skip
    lines = [line for line in response.text.splitlines() if line]
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["text"] == "\x85\u2028\u2029"
    with client.stream("POST", PATH, json=chat_body(stream=True, max_tokens=100, temperature=2, seed=1)) as response:
        raw = b"".join(response.iter_raw())
    for frame in raw.decode().split("\n\n")[:-2]:
        assert frame.startswith("data: ")
        json.loads(frame[6:])
