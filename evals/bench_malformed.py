"""Malformed requests: what broken and hostile clients send, each with the status that it has to be answered with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

# A body is any JSON object.
Body = Mapping[str, Any]

_NESTING: Final = 20_000
_FILLER_BYTES: Final = 8 * 2**20


class Malformed(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault."""

    name: str
    statuses: tuple[int, ...]
    """specdec's own first; the others are what servers are known to say instead, and are not wrong of those."""
    content: Callable[[Body], bytes]
    """The bytes to send, out of a body that would do."""
    content_type: str = "application/json"
    method: str = "POST"
    path: str | None = None
    """None is that of the endpoint."""

    def expected(self, *, is_specdec: bool) -> tuple[int, ...]:
        return self.statuses[:1] if is_specdec else self.statuses


def _with(**fields: object) -> Callable[[Body], bytes]:
    return lambda body: _encode({**body, **fields})


def _encode(body: Body) -> bytes:
    return msgspec.json.encode(body)


def _without_prompt(body: Body) -> bytes:
    return _encode({name: value for name, value in body.items() if name not in {"messages", "prompt"}})


def _cut(body: Body) -> bytes:
    whole = _encode(body)
    return whole[: len(whole) // 2]


def _lone_surrogate(body: Body) -> bytes:
    # msgspec writes no half of a pair; json escapes it.
    return json.dumps({**body, "user": "\ud800"}).encode()


def _nested(body: Body) -> bytes:
    return _encode(body)[:-1] + b',"metadata":' + b"[" * _NESTING + b"]" * _NESTING + b"}"


def _schema(schema: object) -> Callable[[Body], bytes]:
    return _with(response_format={"type": "json_schema", "json_schema": {"name": "faulty", "schema": schema}})


_REFUSED: Final = (400, 422)

MALFORMED: Final = (
    Malformed(name="cut JSON", statuses=_REFUSED, content=_cut),
    Malformed(name="empty body", statuses=_REFUSED, content=lambda _: b""),
    Malformed(name="array for a body", statuses=_REFUSED, content=lambda body: b"[" + _encode(body) + b"]"),
    Malformed(name="not UTF-8", statuses=_REFUSED, content=lambda body: _encode(body)[:-1] + b',"user":"\xff"}'),
    Malformed(name="lone surrogate", statuses=(400, 422, 200), content=_lone_surrogate),
    Malformed(name="deep nesting", statuses=(400, 422, 413), content=_nested),
    Malformed(name="content type of a form", statuses=(415, 400, 422), content=_encode, content_type="text/plain"),
    Malformed(name="no prompt", statuses=_REFUSED, content=_without_prompt),
    Malformed(name="text for a number", statuses=_REFUSED, content=_with(temperature="hot")),
    Malformed(name="temperature below zero", statuses=_REFUSED, content=_with(temperature=-1)),
    Malformed(name="no tokens", statuses=_REFUSED, content=_with(max_tokens=0)),
    Malformed(name="more tokens than any context", statuses=_REFUSED, content=_with(max_tokens=10**9)),
    Malformed(name="no choices", statuses=_REFUSED, content=_with(n=0)),
    Malformed(name="unknown model", statuses=(404, 400), content=_with(model="no-such-model")),
    Malformed(name="schema of an unknown type", statuses=_REFUSED, content=_schema({"type": "nonsense"})),
    Malformed(
        name="schema without instances",
        statuses=_REFUSED,
        content=_schema({"type": "object", "properties": {"a": False}, "required": ["a"]}),
    ),
    Malformed(name="schema that is text", statuses=_REFUSED, content=_schema("nonsense")),
    Malformed(name="large body", statuses=(413, 400, 200), content=_with(user="x" * _FILLER_BYTES)),
    Malformed(name="unknown route", statuses=(404,), content=_encode, path="/v1/no-such-route"),
    Malformed(name="wrong method", statuses=(405,), content=lambda _: b"", method="DELETE"),
)
