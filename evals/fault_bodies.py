"""Bodies that clients send to a server that is to be broken: short answers, long ones, and a schema that takes long."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from specdec.evals.fault_clients import Body

LONG_TOKENS = 4000
SHORT_TOKENS = 24
_TOKENS_PER_NUMBER = 5
"""At most: three digits and a comma, with some room."""
_NUM_DEFINITIONS = 20_000

_SHORT_SCHEMA: Body = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "is_adult": {"type": "boolean"}},
    "required": ["age", "is_adult"],
    "additionalProperties": False,
}


def bodies(model: str, *, long_every: int, max_model_len: int) -> Iterator[tuple[str, Body]]:
    """Without end, in turns: streamed and whole, free and under a schema, every so many long (0 is never)."""
    max_tokens = min(LONG_TOKENS, max_model_len // 2)
    numbers = {"type": "integer", "minimum": 100, "maximum": 999}
    long_schema = {"type": "array", "items": numbers, "minItems": max_tokens // _TOKENS_PER_NUMBER}
    for index in itertools.count():
        is_long = bool(long_every) and index // 4 % long_every == 0
        body = _asking(model, "Count as far as you can.", seed=index)
        if index % 2 == 0:
            body["stream"] = True
        if index // 2 % 2:
            body["response_format"] = _format(long_schema if is_long else _SHORT_SCHEMA)
        else:
            body["ignore_eos"] = True
        if is_long:
            body["max_tokens"] = max_tokens
        elif "response_format" not in body:
            body["max_tokens"] = SHORT_TOKENS
        yield "long" if is_long else "short", body


def slow_to_compile(model: str) -> Body:
    """Seconds of work for a compiler."""
    definitions = {f"d{i}": {"type": "array", "items": {"const": i}, "minItems": i} for i in range(_NUM_DEFINITIONS)}
    schema = {"properties": {name: {"$ref": f"#/$defs/{name}"} for name in definitions}, "$defs": definitions}
    return {**_asking(model, "Hello", seed=0), "response_format": _format(schema)}


def quick_to_compile(model: str, name: str) -> Body:
    """A schema with a key that no other has."""
    schema = {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]}
    return {**_asking(model, "Hello", seed=0), "response_format": _format(schema)}


COMPILE_FLAGS = tuple(
    argument
    for limit in (
        *(f"{name}={10**7}" for name in ("max_schema_bytes", "max_properties", "max_refs", "max_nodes", "max_goals")),
        "max_compile_seconds=100",
    )
    for argument in ("--grammar-limit", limit)
)
"""Of the server, so that it takes what is slow to compile."""


def _asking(model: str, prompt: str, *, seed: int) -> Body:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "seed": seed}


def _format(schema: Body) -> Body:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
