"""regex and choice over HTTP: texts outside JSON."""

from __future__ import annotations

import re

import httpx
import pytest
from live_server import chat_body

CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.filterwarnings("error")


def content(client: httpx.Client, **fields: object) -> str:
    response = client.post(CHAT, json=chat_body(max_tokens=60, **fields))
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


def test_a_regex_is_matched_as_a_whole(client: httpx.Client) -> None:
    for seed in range(5):
        text = content(client, structured_outputs={"regex": "[ab]{1,4}|c"}, seed=seed)
        assert re.fullmatch("[ab]{1,4}|c", text)


@pytest.mark.parametrize("choices", [["no\n"], ["é"], [""], ["yes", "no\n", "é"]])
def test_a_choice_is_one_of_the_texts(client: httpx.Client, choices: list[str]) -> None:
    for seed in range(3):
        assert content(client, structured_outputs={"choice": choices}, seed=seed) in choices


KIND_FAULTS = [
    ({"regex": "("}, "structured_outputs.regex", "invalid_regex", ""),
    ({"regex": "(a)\\1"}, "structured_outputs.regex", "unsupported_regex_feature", ""),
    ({"regex": "a\\bb"}, "structured_outputs.regex", "invalid_regex", ""),
    ({"choice": []}, "structured_outputs.choice", "invalid_choice", ""),
]


@pytest.mark.parametrize(("outputs", "param", "code", "pointer"), KIND_FAULTS)
def test_a_regex_or_choice_that_nothing_satisfies_is_a_400(
    client: httpx.Client, outputs: dict, param: str, code: str, pointer: str
) -> None:
    response = client.post(CHAT, json=chat_body(structured_outputs=outputs))
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"], error["pointer"]) == (param, code, pointer)
