"""Requests that say how they are speculated on, and what their answers say of it."""

from __future__ import annotations

import httpx
from live_server import chat_body, read_events

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "one two three one two three one two"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["north-north-east", "south"]}, "is_far": {"type": "boolean"}},
    "required": ["name", "is_far"],
    "additionalProperties": False,
}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def whole(client: httpx.Client, path: str = CHAT, **fields: object) -> dict:
    response = client.post(path, json=body(path, **fields))
    assert response.status_code == 200, response.text
    assert "x-specdec-ignored" not in response.headers
    return response.json()


def streamed(client: httpx.Client, path: str = CHAT, **fields: object) -> list[dict]:
    with client.stream("POST", path, json=body(path, stream=True, **fields)) as response:
        assert response.status_code == 200
        return list(read_events(response))


def body(path: str, **fields: object) -> dict[str, object]:
    fields = {"max_tokens": 40, "seed": 3, **fields}
    return chat_body(**{"messages": MESSAGES, **fields}) if path == CHAT else {"model": "tiny", **fields}


def predicted(content: object) -> dict[str, object]:
    return {"type": "content", "content": content}


def texts(answer: dict) -> list[str]:
    return [choice.get("text", choice.get("message", {}).get("content")) for choice in answer["choices"]]


def drafting(answer: dict) -> dict | None:
    return answer["metrics"]["speculative_decoding"]


def num_traced(answer: dict, proposer: str) -> tuple[int, int]:
    """Accepted and all tokens of a proposer, counted in the trace."""
    drafts = [draft for choice in answer["specdec"]["trace"] for draft in choice["drafts"]]
    accepted = sum(draft["proposers"][: draft["num_accepted"]].count(proposer) for draft in drafts)
    return accepted, sum(draft["proposers"].count(proposer) for draft in drafts)
