"""Request bodies: read within the limit, decoded strictly, every problem a 4xx that names the field."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import msgspec
from litestar import Request as HttpRequest
from litestar import Response

from specdec.server.errors import ApiError, ErrorObject, bad_request

OFF_LOOP_BYTES = 64 * 2**10
"""Longer bodies are parsed on a thread, so that no other stream waits for them."""
MAX_IGNORED_CHARS = 1024
IGNORED_HEADER = "x-specdec-ignored"

CONSTRAINT_FIELDS = frozenset({"grammar", "json_schema", "regex", "ebnf", "structural_tag", "format"})
"""Names under which other servers take a constraint; to ignore one would answer without it."""

_PATH = re.compile(r" - at `(?P<path>[^`]*)`(?: in `(?P<parent>[^`]*)`)?$")
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>[^`]*)`$")
_UNSAFE_IN_HEADER = re.compile(r"[^A-Za-z0-9_.\[\]-]")

BodyT = TypeVar("BodyT", bound=msgspec.Struct)
AnswerT = TypeVar("AnswerT")


class Refused(msgspec.Struct, frozen=True):
    """A field that is not supported: the values of it that ask for nothing, and what to do instead."""

    harmless: tuple[object, ...]
    advice: str


async def read_body(
    http_request: HttpRequest[Any, Any, Any],
    kind: type[BodyT],
    *,
    refused: Mapping[str, Refused],
    without_effect: Collection[str],
) -> tuple[BodyT, list[str]]:
    """The body as `kind`, and the paths of the fields that had no effect, list indices left out.

    `refused` are fields that must not be set to anything meaningful, `without_effect` those that clients set
    and that change no answer. Raises ApiError, Litestar's own exception for a body above the limit.
    """
    content_type = http_request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(
            415,
            ErrorObject(
                message=f"the content type is {content_type!r}; send a JSON body as application/json",
                type="invalid_request_error",
                code="unsupported_media_type",
            ),
        )
    encoding = http_request.headers.get("content-encoding", "").strip().lower()
    if encoding not in {"", "identity"}:
        raise ApiError(
            415,
            ErrorObject(
                message=f"the content encoding is {encoding[:100]!r}; send the body as it is",
                type="invalid_request_error",
                code="unsupported_media_type",
            ),
            {"accept-encoding": "identity"},
        )
    body = await http_request.body()
    if len(body) > OFF_LOOP_BYTES:
        return await asyncio.to_thread(decode_body, body, kind, refused, without_effect)
    return decode_body(body, kind, refused, without_effect)


def decode_body(
    body: bytes,
    kind: type[BodyT],
    refused: Mapping[str, Refused],
    without_effect: Collection[str],
) -> tuple[BodyT, list[str]]:
    """What `read_body` does with the bytes."""
    if body.startswith(codecs.BOM_UTF8):
        raise bad_request(
            "the request body begins with a byte order mark (BOM); send UTF-8 without one", code="invalid_json"
        )
    if not body.strip():
        raise bad_request("the request body is empty; a JSON object is required", code="invalid_json")
    try:
        # Twice: once for what a typed decoder passes over (repeated and unknown fields), then typed, with
        # schemas kept as they were written.
        content = json.loads(body.decode(), object_pairs_hook=_object_without_repeats, parse_constant=_refuse_constant)
        if not isinstance(content, dict):
            raise bad_request("the request body is not a JSON object", code="invalid_json")
        _refuse_fields(content, refused)
        ignored = _ignored_fields(content, kind, refused, without_effect)
        value = msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise bad_request("the request body is nested too deeply", code="invalid_json") from None
    except msgspec.ValidationError as error:
        raise of_validation(str(error)) from None
    except msgspec.DecodeError:
        raise bad_request(
            "the request body holds text that is not valid Unicode, such as a lone surrogate", code="invalid_json"
        ) from None
    except UnicodeDecodeError as error:
        raise bad_request(f"the request body is not UTF-8 at byte {error.start}", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise bad_request(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    except ValueError:
        # Python's own guard against numbers that take long to read.
        raise bad_request(
            f"the request body has a whole number of more than {sys.get_int_max_str_digits()} digits",
            code="invalid_json",
        ) from None
    ignored += [path for path in _ignored_inside(content, value) if path not in ignored]
    return value, ignored


def answered(content: AnswerT, ignored: Collection[str]) -> Response[AnswerT]:
    """A whole answer, with the fields that had no effect in a header."""
    headers = {IGNORED_HEADER: header_of(ignored)} if ignored else {}
    return Response(content, status_code=200, media_type="application/json", headers=headers)


def header_of(paths: Iterable[str]) -> str:
    """Paths of fields as the value of a header, each once, as far as there is room."""
    return ",".join(_UNSAFE_IN_HEADER.sub("?", path) or "?" for path in dict.fromkeys(paths))[:MAX_IGNORED_CHARS]


def _object_without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise bad_request(
            f"the request body has the key {repeated[:100]!r} twice in one object",
            param=repeated[:100],
            code="invalid_json",
        )
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise bad_request(f"the request body is not valid JSON: {name} is no number of it", code="invalid_json")


def _refuse_fields(content: Mapping[str, object], refused: Mapping[str, Refused]) -> None:
    for name, value in content.items():
        if name in refused and value is not None and value not in refused[name].harmless:
            raise bad_request(f"{name} is not supported: {refused[name].advice}", param=name, code="unsupported_field")
        if value is not None and (name.startswith("guided_") or name in CONSTRAINT_FIELDS):
            raise bad_request(
                f"{name} is not a field of this API; give a constraint as response_format, with type "
                "json_schema, or as structured_outputs, with json, regex or choice",
                param=name,
                code="unsupported_field",
            )


def _ignored_fields(
    content: Mapping[str, object],
    kind: type[msgspec.Struct],
    refused: Mapping[str, Refused],
    without_effect: Collection[str],
) -> list[str]:
    known = {*kind.__struct_encode_fields__, *refused, *without_effect}
    return [name for name in content if name not in known]


def _ignored_inside(content: Mapping[str, object], value: msgspec.Struct) -> list[str]:
    """Unknown fields of nested objects, by path, list indices left out."""
    return ignored_below(
        (encoded, content.get(encoded), getattr(value, name))
        for name, encoded in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
    )


def ignored_below(places: Iterable[tuple[str, object, object]]) -> list[str]:
    """Unknown fields in and below these places: (path, what came, what was made of it)."""
    found: dict[str, None] = {}
    pending = list(places)
    while pending:
        path, raw, typed = pending.pop()
        if isinstance(typed, list) and isinstance(raw, list):
            pending += [(f"{path}[]", *pair) for pair in zip(raw, typed, strict=True)]
        elif isinstance(typed, msgspec.Struct) and isinstance(raw, dict):
            names = dict(zip(typed.__struct_encode_fields__, typed.__struct_fields__, strict=True))
            for key, member in raw.items():
                if key in names:
                    pending.append((f"{path}.{key}", member, getattr(typed, names[key])))
                elif key != typed.__struct_config__.tag_field:
                    found[f"{path}.{key}"] = None
    return sorted(found)


def of_validation(text: str, inside: str = "") -> ApiError:
    """msgspec's message, its path turned into `param`: `$.messages[0].role` is `messages[0].role`.

    `inside` is where in the body the value stands that was decoded.
    """
    located = _PATH.search(text)
    path = inside
    if located is not None:
        text = text[: located.start()]
        if located["path"] == "key":
            text = f"of a key: {text}"
        path = (inside + (located["parent"] or located["path"]).removeprefix("$")).removeprefix(".")
    named = _MISSING.match(text) or _UNKNOWN.match(text)
    if named is not None:
        path = f"{path}.{named['field']}" if path else named["field"]
        text = "this field is required" if text.startswith("Object missing") else "there is no such field here"
    if (".content[" in path or ".output[" in path) and path.endswith(".type"):
        text += "; only text parts are supported"
    return bad_request(f"{path}: {text}" if path else text, param=path or None)
