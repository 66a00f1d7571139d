"""What a client can say about speculation, and what it is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from live_server import LiveServer, chat_body, serving

from specdec import Engine, SpeculativeConfig
from specdec.server import ServerConfig

CHAT = "/v1/chat/completions"
REPEATED = [{"role": "user", "content": "one two three one two three one two three one two"}]


@pytest.fixture(scope="module")
def live(make_engine: Callable[..., Engine]) -> Iterator[LiveServer]:
    config = ServerConfig(served_model_names=("tiny",), per_request_spec_decode_metrics="summary")
    with serving(make_engine(speculative=SpeculativeConfig(num_speculative_tokens=5), exact=True), config) as server:
        yield server


def ask(live: LiveServer, path: str = CHAT, **fields: object) -> dict[str, Any]:
    body = chat_body(**({"messages": REPEATED, "temperature": 0, "max_tokens": 40, "ignore_eos": True} | fields))
    response = httpx.post(live.url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert isinstance(answer, dict)
    return answer


def counts(answer: dict[str, Any]) -> dict[str, Any]:
    found = answer["metrics"]["speculative_decoding"]
    return {} if found is None else found


def test_a_request_turns_speculation_off_and_gets_the_same_answer(live: LiveServer) -> None:
    drafted = ask(live)
    assert counts(drafted)["num_draft_tokens"] > 0
    for off in ({"enabled": False}, {"num_speculative_tokens": 0}, {"method": "none"}):
        plain = ask(live, speculative=off)
        assert counts(plain) == {}
        assert plain["choices"] == drafted["choices"]


def test_a_request_chooses_who_drafts_and_how_much(live: LiveServer) -> None:
    answer = ask(live, speculative={"method": "ngram", "num_speculative_tokens": 2})
    assert set(counts(answer)["by_proposer"]) == {"ngram"}
    assert counts(answer)["num_spec_tokens"] == 2
    assert len(counts(answer)["acceptance_histogram"]) == 3


def test_counts_by_proposer_add_up(live: LiveServer) -> None:
    found = counts(ask(live))
    for total, part in (
        ("num_draft_tokens", "num_draft_tokens"),
        ("num_accepted_draft_tokens", "num_accepted_tokens"),
    ):
        assert sum(own[part] for own in found["by_proposer"].values()) == found[total]


@pytest.mark.parametrize("parts", [False, True], ids=["text", "parts"])
def test_a_prediction_is_drafted_from_and_accounted_for(live: LiveServer, parts: bool) -> None:
    plain = ask(live, speculative={"enabled": False})
    text = plain["choices"][0]["message"]["content"]
    content = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}] if parts else text
    answer = ask(live, prediction={"type": "content", "content": content}, speculative={"method": "prediction"})
    assert answer["choices"] == plain["choices"]
    details = answer["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 0
    assert details["accepted_prediction_tokens"] == counts(answer)["by_proposer"]["prediction"]["num_accepted_tokens"]
    assert "completion_tokens_details" not in plain["usage"]


def test_a_wrong_prediction_changes_nothing_but_the_counts(live: LiveServer) -> None:
    plain = ask(live)
    answer = ask(live, prediction={"type": "content", "content": "zzz qqq " * 20})
    assert answer["choices"] == plain["choices"]
    assert answer["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] <= 3


def test_a_trace_says_what_every_pass_verified(live: LiveServer) -> None:
    answer = ask(live, specdec_trace=True, n=2)
    assert [choice["index"] for choice in answer["specdec"]["trace"]] == [0, 1]
    for choice in answer["specdec"]["trace"]:
        assert sum(draft["num_accepted"] + 1 for draft in choice["drafts"]) in {40, 41}
        for draft in choice["drafts"]:
            assert len(draft["token_ids"]) == len(draft["proposers"]) >= draft["num_accepted"]
    assert "trace" not in ask(live)["specdec"]


def test_a_stream_has_the_trace_in_its_last_chunk(live: LiveServer) -> None:
    body = chat_body(messages=REPEATED, max_tokens=10, stream=True, specdec_trace=True)
    with httpx.stream("POST", live.url + CHAT, json=body, timeout=60) as response:
        text = response.read().decode()
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    traced = [chunk for chunk in chunks if chunk.get("specdec", {}).get("trace")]
    assert len(traced) == 1
    assert traced[0]["choices"][0]["finish_reason"] is not None


def test_text_completions_take_the_same_fields(live: LiveServer) -> None:
    body = {"model": "tiny", "prompt": "one two three one two three one", "max_tokens": 20, "temperature": 0}
    plain = httpx.post(live.url + "/v1/completions", json=body | {"speculative": {"enabled": False}}).json()
    body |= {"prediction": {"type": "content", "content": plain["choices"][0]["text"]}, "specdec_trace": True}
    answer = httpx.post(live.url + "/v1/completions", json=body).json()
    assert answer["choices"] == plain["choices"]
    assert answer["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] > 0
    assert answer["specdec"]["trace"]


def test_every_verification_answers(live: LiveServer) -> None:
    for verification in ("coupled", "rejection", "block"):
        answer = ask(live, temperature=1.0, seed=3, speculative={"verification": verification})
        assert answer["usage"]["completion_tokens"] == 40
