"""Text completions over HTTP."""

from __future__ import annotations

import httpx
import pytest
from live_server import LiveServer, read_events

PATH = "/v1/completions"


def whole(client: httpx.Client, **fields: object) -> dict:
    response = client.post(PATH, json={"model": "tiny", **fields})
    assert response.status_code == 200, response.text
    return response.json()


def streamed(client: httpx.Client, **fields: object) -> list[dict]:
    with client.stream("POST", PATH, json={"model": "tiny", "stream": True, **fields}) as response:
        assert response.status_code == 200
        return list(read_events(response))


def test_an_answer_has_every_field_that_openai_names(client: httpx.Client) -> None:
    answer = whole(client, prompt="Once", ignore_eos=True)
    assert answer["object"] == "text_completion"
    assert answer["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}
    assert answer["usage"]["completion_tokens"] == 16, "OpenAI's default for this endpoint"


def test_the_four_forms_of_a_prompt_say_the_same(live: LiveServer, client: httpx.Client) -> None:
    token_ids = live.engine.tokenizer.encode("Once upon", add_special_tokens=True)
    answers = [
        whole(client, prompt=prompt, temperature=0)["choices"]
        for prompt in ("Once upon", ["Once upon"], token_ids, [token_ids])
    ]
    assert all(choices == answers[0] for choices in answers)


def test_choices_of_several_prompts_are_numbered_through(client: httpx.Client) -> None:
    answer = whole(client, prompt=["Once", "upon", "a time"], n=2, max_tokens=5, seed=3, ignore_eos=True)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert answer["usage"]["completion_tokens"] == 30
    assert answer["specdec"] == {"seeds": [3, 3, 3]}
    for index, prompt in enumerate(["Once", "upon", "a time"]):
        alone = whole(client, prompt=prompt, n=2, max_tokens=5, seed=3, ignore_eos=True)
        assert [choice["text"] for choice in alone["choices"]] == [
            choice["text"] for choice in answer["choices"][2 * index : 2 * index + 2]
        ]


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_says_what_the_whole_answer_says(client: httpx.Client, *, echo: bool) -> None:
    fields = {"prompt": ["Once", "upon"], "n": 2, "max_tokens": 30, "seed": 9, "echo": echo, "temperature": 1.5}
    answer = whole(client, **fields)
    chunks = streamed(client, **fields, stream_options={"include_usage": True})
    for choice in answer["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]


def test_echo_puts_the_prompt_first(client: httpx.Client) -> None:
    plain, echoed = (whole(client, prompt="Once upon", temperature=0, echo=echo) for echo in (False, True))
    assert echoed["choices"][0]["text"] == "Once upon" + plain["choices"][0]["text"]


def test_logprobs_are_parallel_lists_with_rising_offsets(client: httpx.Client) -> None:
    fields = {"prompt": "Once", "max_tokens": 12, "logprobs": 3, "temperature": 0, "ignore_eos": True}
    logprobs = whole(client, **fields)["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"]) == 12
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    for likely, logprob in zip(logprobs["top_logprobs"], logprobs["token_logprobs"], strict=True):
        assert max(likely.values()) == logprob
    parts = [chunk["choices"][0]["logprobs"] for chunk in streamed(client, **fields)]
    for name in ("tokens", "text_offset"):
        assert [entry for part in parts if part for entry in part[name]] == logprobs[name]


@pytest.mark.parametrize("echo", [False, True])
def test_token_ids_are_returned_when_asked_for(client: httpx.Client, *, echo: bool) -> None:
    prompts = [[5, 6, 7], [8]]
    fields = {"prompt": prompts, "n": 2, "max_tokens": 9, "seed": 9, "echo": echo, "return_token_ids": True}
    answer = whole(client, **fields)
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [prompts[0]] * 2 + [prompts[1]] * 2
    token_ids = [choice["token_ids"] for choice in answer["choices"]]
    assert sum(map(len, token_ids)) == answer["usage"]["completion_tokens"]
    chunks = streamed(client, **fields)
    for choice in answer["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert [part.get("prompt_token_ids") for part in parts] == [choice["prompt_token_ids"]] + [None] * (
            len(parts) - 1
        )
        assert [token_id for part in parts for token_id in part.get("token_ids", ())] == choice["token_ids"]
