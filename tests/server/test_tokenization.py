"""/tokenize and /detokenize: the tokens that a request of the same text would have."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest
from live_server import LiveServer, chat_body

TEXT = "Hé 😀 {x}<|im_end|>"


def test_a_prompt_goes_to_tokens_and_back(client: httpx.Client, live: LiveServer) -> None:
    answer = client.post("/tokenize", json={"model": "tiny", "prompt": TEXT}).json()
    assert answer["tokens"] == live.engine.tokenizer.encode(TEXT, add_special_tokens=True)
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), live.engine.max_model_len)
    assert answer["token_strs"] is None
    assert client.post("/detokenize", json={"model": "tiny", "tokens": answer["tokens"]}).json() == {"prompt": TEXT}


def test_token_strs_are_the_tokens_as_text(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"prompt": "the fox<|im_end|>", "return_token_strs": True}).json()
    assert "".join(answer["token_strs"]) == "the fox<|im_end|>"
    assert len(answer["token_strs"]) == answer["count"]


def test_no_stream_waits_for_the_tokens_of_a_long_text(
    client: httpx.Client, live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_loop = []

    def noting(work: object) -> object:
        def noted(*arguments: object, **named: object) -> object:
            with contextlib.suppress(RuntimeError):
                has_loop.append(asyncio.get_running_loop())
            return work(*arguments, **named)

        return noted

    tokenizer = live.engine.tokenizer
    for name in ("encode", "token_text", "decode"):
        monkeypatch.setattr(tokenizer, name, noting(getattr(tokenizer, name)))
    tokens = client.post("/tokenize", json={"prompt": "the fox", "return_token_strs": True}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).status_code == 200
    assert not has_loop


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f"}}]])
def test_a_conversation_has_as_many_tokens_as_the_prompt_of_a_request(client: httpx.Client, tools: object) -> None:
    body = chat_body(tools=tools)
    usage = client.post("/v1/chat/completions", json={**body, "max_tokens": 1}).json()["usage"]
    assert client.post("/tokenize", json=body).json()["count"] == usage["prompt_tokens"]
    bare = client.post("/tokenize", json={**body, "add_generation_prompt": False}).json()["count"]
    assert bare < usage["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, 400, "prompt"),
        ("/tokenize", {"prompt": 3}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", chat_body(add_special_tokens=True), 400, "add_special_tokens"),
        ("/tokenize", chat_body(chat_template="x"), 400, "chat_template"),
        ("/tokenize", chat_body(reasoning_effort="a b"), 400, "reasoning_effort"),
        ("/tokenize", {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, 400, "add_generation_prompt"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, 99999]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens[0]"),
    ],
)
def test_what_is_wrong_is_named(client: httpx.Client, path: str, body: dict, status: int, param: str) -> None:
    response = client.post(path, json=body)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})])
def test_unknown_fields_are_named_in_a_header(client: httpx.Client, path: str, body: dict) -> None:
    assert client.post(path, json={**body, "frobnicate": 1}).headers["x-specdec-ignored"] == "frobnicate"
    assert client.post(path, json={**body, "": 1}).headers["x-specdec-ignored"] == "?"
    assert "x-specdec-ignored" not in client.post(path, json=body).headers
