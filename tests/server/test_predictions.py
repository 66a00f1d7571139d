"""A request says what it predicts; its answer is the same, and its usage says what became of the prediction."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import LiveServer
from prediction_scan import num_predicted_by_scan
from speculation_requests import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    RESPONSE_FORMAT,
    num_traced,
    predicted,
    streamed,
    texts,
    whole,
)

from specdec.request import DraftTrace
from specdec.sequence import SpeculationCounts
from specdec.server.body import decode_body
from specdec.server.chat_wire import ChatRequest
from specdec.server.completion_wire import CompletionRequest
from specdec.server.speculation import requested_speculation
from specdec.server.unsupported import CHAT_REFUSED, COMPLETION_REFUSED, WITHOUT_EFFECT
from specdec.server.usage import PredictionTokens


@pytest.fixture
def client(exact: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=exact.url, timeout=60.0) as client:
        yield client


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_answer_that_was_predicted_is_the_same_and_its_usage_says_what_was_accepted(
    client: httpx.Client, path: str, temperature: float
) -> None:
    fields = {
        "temperature": temperature,
        "ignore_eos": True,
        "speculative": {"method": "none", "num_speculative_tokens": 6},
        "logprobs": path == CHAT,
    }
    fields |= {} if path == CHAT else {"prompt": "Once upon", "logprobs": 1}
    plain = whole(client, path, **fields)
    assert "completion_tokens_details" not in plain["usage"]
    (text,) = texts(plain)
    for content in (text, [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}], f"No. {text} No."):
        answer = whole(client, path, **fields, prediction=predicted(content), specdec_trace=True)
        assert texts(answer) == [text]
        details = answer["usage"].pop("completion_tokens_details")
        answer["usage"].pop("prompt_tokens_details")
        assert answer["usage"].items() <= plain["usage"].items(), "a draft is no completion"
        accepted, drafted = num_traced(answer, "prediction")
        assert details == {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
            "reasoning_tokens": 0,
            "audio_tokens": 0,
        }
        assert accepted > 0


def test_the_prediction_tokens_of_all_choices_are_added_up(client: httpx.Client) -> None:
    prediction = predicted("north one two three one two three one two three")
    fields = {"n": 3, "prediction": prediction, "specdec_trace": True, "temperature": 1.5, "ignore_eos": True}
    fields |= {"messages": [{"role": "user", "content": "abc" * 20}], "max_tokens": 150}
    only = {
        "method": "prediction",
        "num_speculative_tokens": 3,
    }  # what remembers answers drafts otherwise the next time
    answer = whole(client, **fields, speculative=only)
    accepted, drafted = num_traced(answer, "prediction")
    details = answer["usage"]["completion_tokens_details"]
    assert drafted > 0
    assert details["accepted_prediction_tokens"] == accepted
    assert details["rejected_prediction_tokens"] == drafted - accepted
    assert answer["metrics"] is None
    for options in ({"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}):
        chunks = streamed(client, **fields, speculative=only, stream_options=options)
        assert chunks[-1]["usage"]["completion_tokens_details"] == details
        running = [chunk["usage"]["completion_tokens_details"] for chunk in chunks if chunk["usage"]]
        assert [each["accepted_prediction_tokens"] for each in running] == sorted(
            each["accepted_prediction_tokens"] for each in running
        )


@pytest.mark.parametrize("method", ["chain", "suffix"])
def test_a_prediction_counts_where_the_answer_follows_it_whoever_drafts(
    exact: LiveServer, client: httpx.Client, method: str
) -> None:
    """The prompt says what is predicted, so that others draft it as well."""
    text = "north one two three one two three four "
    fields = {
        "messages": [{"role": "user", "content": text * 3}],
        "max_tokens": 70,
        "temperature": 1.2,
        "n": 2,
        "ignore_eos": True,
        "prediction": predicted(text * 2),
        # What remembers answers drafts otherwise the next time.
        "cache_salt": method,
        "speculative": {"method": method, "num_speculative_tokens": 4},
        "return_token_ids": True,
        "specdec_trace": True,
    }
    prediction = exact.engine.tokenizer.encode(text * 2, add_special_tokens=False)
    answer = whole(client, **fields)
    accepted = rejected = 0
    for choice, trace in zip(answer["choices"], answer["specdec"]["trace"], strict=True):
        drafts = msgspec.convert(trace["drafts"], list[DraftTrace])
        counts = num_predicted_by_scan(prediction, answer["prompt_token_ids"], choice["token_ids"], drafts)
        accepted, rejected = accepted + counts[0], rejected + counts[1]
    details = answer["usage"]["completion_tokens_details"]
    assert (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]) == (accepted, rejected)
    own_accepted, own_drafted = num_traced(answer, "prediction")
    assert accepted >= own_accepted
    assert accepted + rejected > own_drafted


def test_responses_count_a_prediction_as_chat_completions_do(client: httpx.Client) -> None:
    fields = {"temperature": 0, "speculative": {"method": "prediction", "num_speculative_tokens": 5}}
    fields |= {"seed": 3, "prediction": predicted("A: " + texts(whole(client, temperature=0))[0])}
    details = whole(client, **fields)["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 0
    request = {"model": "tiny", "input": MESSAGES[0]["content"], "max_output_tokens": 40, **fields}
    response = client.post("/v1/responses", json=request).json()
    with client.stream("POST", "/v1/responses", json={**request, "stream": True}) as stream:
        events = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: {")]
    for usage in (response["usage"], events[-1]["response"]["usage"]):
        counts = usage["output_tokens_details"]
        assert {name: counts[name] for name in details if name in counts} == {
            name: count for name, count in details.items() if name != "audio_tokens"
        }


@pytest.mark.parametrize(
    "fields",
    [
        {"prediction": predicted("")},
        {"prediction": predicted([])},
        {"prediction": predicted("something"), "speculative": {"enabled": False}},
    ],
)
def test_a_prediction_that_is_not_used_has_a_usage_of_nothing(client: httpx.Client, fields: dict) -> None:
    details = whole(client, **fields)["usage"]["completion_tokens_details"]
    assert set(details.values()) == {0}


def test_a_prediction_goes_with_a_schema_with_several_choices_and_with_logprobs(client: httpx.Client) -> None:
    answer = whole(
        client, response_format=RESPONSE_FORMAT, n=2, logprobs=True, top_logprobs=2, tools=[], presence_penalty=0.5,
        prediction=predicted('{"name":"north-north-east","is_far":true}'), specdec_trace=True,
        speculative={"num_speculative_tokens": 6},
    )  # fmt: skip
    assert all(json.loads(text).keys() == {"name", "is_far"} for text in texts(answer))
    assert num_traced(answer, "grammar") != (0, 0) or num_traced(answer, "prediction") != (0, 0)
    assert (
        sum(len(choice["logprobs"]["content"]) for choice in answer["choices"]) == answer["usage"]["completion_tokens"]
    )


def test_the_openai_client_sends_predictions_and_reads_their_usage(exact: LiveServer) -> None:
    with openai.OpenAI(
        base_url=exact.url + "/v1", api_key="none", _strict_response_validation=True, max_retries=0
    ) as client:
        completion = client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_completion_tokens=10,
            prediction={"type": "content", "content": [{"type": "text", "text": "one two three"}]},
            extra_body={"speculative": {"method": "prediction"}, "specdec_trace": True},
        )
    details = completion.usage.completion_tokens_details
    assert details.accepted_prediction_tokens + details.rejected_prediction_tokens >= 0
    assert completion.model_extra["specdec"]["trace"][0]["index"] == 0


# Fields and counts


@given(pieces=st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_the_parts_of_a_prediction_are_joined(pieces: list[str]) -> None:
    parts = [{"type": "text", "text": piece} for piece in pieces]
    for kind, refused, fields in (
        (ChatRequest, CHAT_REFUSED, {"messages": []}),
        (CompletionRequest, COMPLETION_REFUSED, {"prompt": "a"}),
    ):
        for content in (parts, "".join(pieces)):
            raw = json.dumps({"model": "m", **fields, "prediction": predicted(content)}).encode()
            request, ignored = decode_body(raw, kind, refused, WITHOUT_EFFECT)
            found = requested_speculation(request.prediction, request.speculative, request.specdec_trace, config=None)
            assert (found.prediction, found.has_prediction, ignored) == ("".join(pieces), True, [])
            assert found.max_draft_tokens == (32 if any(pieces) else 0)


@given(choices=st.lists(st.lists(st.tuples(st.lists(st.booleans(), max_size=6), st.integers(0, 6))), max_size=4))
def test_prediction_tokens_add_up_over_choices(choices: list[list[tuple[list[bool], int]]]) -> None:
    total = PredictionTokens()
    for passes in choices:
        counts = SpeculationCounts()
        for are_predicted, most in passes:
            num_accepted = min(most, len(are_predicted))
            proposers = ["suffix"] * len(are_predicted)
            counts.record(proposers, num_accepted=num_accepted, was_cut=False, are_predicted=are_predicted)
        total = total.plus(counts.freeze())
    passes = [each for choice in choices for each in choice]
    assert total.accepted_prediction_tokens == sum(sum(agree[:most]) for agree, most in passes)
    assert total.rejected_prediction_tokens == sum(sum(agree[most:]) for agree, most in passes)
