"""Requests with tools, through the openai client in strict mode, and what is true of every answer to them."""

from __future__ import annotations

import json

import openai
from jsonschema import Draft202012Validator
from live_server import LiveServer

MESSAGES = [{"role": "user", "content": "What is the weather in Oslo?"}]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome", 'a"b{}']},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "units": {"type": "array", "items": {"enum": ["c", "f"]}, "maxItems": 2},
    },
    "required": ["city"],
}
NODE = {
    "type": "object",
    "properties": {"value": {"type": "boolean"}, "next": {"$ref": "#/$defs/node"}},
    "required": ["value"],
    "$defs": {"node": {"type": "object", "properties": {"value": {"const": 1}}, "required": ["value"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "set_node", "parameters": NODE, "strict": False}},
    {"type": "function", "function": {"name": "now", "strict": True}},
]
NO_END = {"2": -100}
"""A bias against the token that ends an answer."""
SCHEMAS = {"get_weather": WEATHER, "set_node": NODE, "now": {"maxProperties": 0}}


def named(name: str) -> dict:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def strict_client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=server.url + "/v1", api_key="none", _strict_response_validation=True, max_retries=0, timeout=60
    )


def check_calls(message: object) -> list[str]:
    """The names of the calls, whose arguments satisfy their schemas."""
    names = []
    for call in message.tool_calls or []:
        assert call.type == "function"
        assert call.id
        Draft202012Validator(SCHEMAS[call.function.name]).validate(json.loads(call.function.arguments))
        names.append(call.function.name)
    return names


def written(message: object) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def ask(client: openai.OpenAI, **fields: object) -> object:
    fields = {"max_tokens": 200, "tools": TOOLS, **fields}
    return client.chat.completions.create(model="tiny", messages=MESSAGES, **fields).choices[0]


def ask_in_a_stream(client: openai.OpenAI, **fields: object) -> tuple[object, list]:
    fields = {"max_tokens": 200, "tools": TOOLS, **fields}
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, **fields) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        return stream.get_final_completion().choices[0], chunks
