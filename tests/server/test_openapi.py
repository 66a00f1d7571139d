"""The OpenAPI document and the reference page: complete, true of real answers, and readable without a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import httpx
import jsonschema
import msgspec
import pytest
from live_server import LiveServer, chat_body, read_events
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from specdec.server.chat_wire import ChatRequest
from specdec.server.completion_wire import CompletionRequest
from specdec.server.openapi import OPERATIONS, openapi_document
from specdec.server.reference import reference_page

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}, "report": True}


@pytest.fixture(scope="module")
def document() -> dict:
    """As it is sent."""
    return msgspec.json.decode(msgspec.json.encode(openapi_document()))


def validator_of(document: dict, name: str) -> jsonschema.Draft202012Validator:
    registry = Registry().with_resource("urn:document", Resource(document, DRAFT202012))
    return jsonschema.Draft202012Validator({"$ref": f"urn:document#/components/schemas/{name}"}, registry=registry)


def structs_in(kind: object) -> set[type]:
    """All structs that a type leads to."""
    found: set[type] = set()
    pending = [msgspec.inspect.type_info(kind)]
    while pending:
        info = pending.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in found:
                continue
            found.add(info.cls)
            pending += [field.type for field in info.fields]
        elif isinstance(info, msgspec.inspect.UnionType):
            pending += info.types
        elif isinstance(info, msgspec.inspect.DictType):
            pending.append(info.value_type)
        elif isinstance(info, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
            pending.append(info.item_type)
    return found


def test_every_route_is_in_the_document_and_nothing_else(live: LiveServer, document: dict) -> None:
    app = live._server.config.app
    routes = {
        (method.lower(), re.sub(r"\{(\w+):path\}", r"{\1}", route.path))
        for route in app.routes
        for method in route.methods
        if method != "OPTIONS"
    }
    described = {(method, path) for path, item in document["paths"].items() for method in item}
    assert {(method, path.replace("//", "/")) for method, path in routes} == described


@pytest.mark.parametrize(
    "kind",
    sorted(
        {kind for each in OPERATIONS for kind in (each.request, each.response, *each.events) if kind is not None},
        key=lambda kind: kind.__name__,
    ),
)
def test_every_field_of_every_struct_is_in_the_document(document: dict, kind: type) -> None:
    found = structs_in(kind)
    assert kind in found
    for struct in found:
        schema = document["components"]["schemas"][struct.__name__]
        tag = {struct.__struct_config__.tag_field} - {None}
        assert set(schema["properties"]) == {*struct.__struct_encode_fields__, *tag}, struct
        optional = {field.encode_name for field in msgspec.structs.fields(struct) if not field.required}
        assert set(schema["required"]) == set(schema["properties"]) - optional
    assert len(found) > 8 or kind not in {ChatRequest, CompletionRequest}


def test_the_document_stands_by_itself(document: dict) -> None:
    text = msgspec.json.encode(document).decode()
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert names <= document["components"]["schemas"].keys()
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    identifiers = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(identifiers)) == len(identifiers)
    for path, item in document["paths"].items():
        for operation in item.values():
            given = {parameter["name"] for parameter in operation.get("parameters", [])}
            assert given == set(re.findall(r"\{(\w+)\}", path))
            assert operation["responses"]["200"]["content"]


def test_examples_are_requests_that_are_answered(client: httpx.Client, document: dict) -> None:
    examples = {each.path: each for each in OPERATIONS if each.example is not None}
    assert len(examples) >= 2
    for path, operation in examples.items():
        body = {**operation.example, "model": "tiny"}
        assert operation.request is not None
        validator_of(document, operation.request.__name__).validate(body)
        assert client.post(path, json=body).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "logprobs": True, "top_logprobs": 2},
        {"response_format": RESPONSE_FORMAT, "max_tokens": 40},
        {"prediction": {"type": "content", "content": "Hello"}, "specdec_trace": True},
    ],
    ids=["plain", "logprobs", "schema", "prediction"],
)
def test_real_requests_and_answers_are_as_the_document_says(client: httpx.Client, document: dict, fields: dict) -> None:
    body = chat_body(**{"max_tokens": 5, **fields})
    validator_of(document, "ChatRequest").validate(body)
    validator_of(document, "ChatCompletion").validate(client.post("/v1/chat/completions", json=body).json())
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", "/v1/chat/completions", json=streamed) as response:
        events = list(read_events(response))
    assert len(events) > 2
    for event in events:
        validator_of(document, "ChatChunk").validate(event)
    completion = {"model": "tiny", "prompt": "Once", "max_tokens": 5, "logprobs": 2}
    validator_of(document, "CompletionRequest").validate(completion)
    validator_of(document, "Completion").validate(client.post("/v1/completions", json=completion).json())


def test_other_answers_are_as_the_document_says(client: httpx.Client, document: dict) -> None:
    validator_of(document, "ErrorBody").validate(client.post("/v1/chat/completions", json={}).json())
    validator_of(document, "ModelList").validate(client.get("/v1/models").json())
    validator_of(document, "Model").validate(client.get("/v1/models/tiny").json())
    for path, name in (("/health", "Status"), ("/ready", "Status"), ("/version", "Version")):
        validator_of(document, name).validate(client.get(path).json())


def test_the_document_and_the_page_are_served(client: httpx.Client, document: dict) -> None:
    assert client.get("/openapi.json").json() == document
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert page.text == reference_page(document)


class _Page(HTMLParser):
    """Open tags, ids, links and what would be fetched."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "a":
            self.links.append(str(found["href"]))
        self.fetched += [str(found[name]) for name in ("src", "srcset", "data") if name in found]
        self.fetched += [tag] if tag in {"script", "link", "iframe"} else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(document: dict) -> None:
    text = reference_page(document)
    page = _Page(text)
    assert page.open == []
    assert page.fetched == []
    assert "@import" not in text
    assert "url(" not in text
    assert len(set(page.ids)) == len(page.ids)
    assert {link for link in page.links if link != "openapi.json"} <= {f"#{name}" for name in page.ids}
    assert set(document["components"]["schemas"]) <= set(page.ids)
    for path in document["paths"]:
        assert f"<code>{path}</code>" in text


def test_the_page_shows_markup_in_a_document_as_text(document: dict) -> None:
    hostile = "<script>alert(1)</script>"
    schema = {"description": hostile, "type": "object", "properties": {hostile: {"enum": [hostile]}}}
    changed = {**document, "components": {"schemas": {"Odd": schema}}}
    assert hostile not in reference_page(changed)
    assert "&lt;script&gt;" in reference_page(changed)
