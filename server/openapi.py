"""The OpenAPI 3.1 document of the server, out of the types that its handlers decode and encode."""

from __future__ import annotations

import functools
from typing import Any, Final, Literal

import msgspec
from litestar import Response, get

from specdec import __version__
from specdec.server.auth import PUBLIC_PATHS
from specdec.server.chat_wire import ChatChunk, ChatCompletion, ChatRequest
from specdec.server.completion_wire import Completion, CompletionRequest
from specdec.server.errors import ErrorBody
from specdec.server.responses_events import (
    ArgumentsDelta,
    ArgumentsDone,
    ItemEvent,
    PartEvent,
    ReasoningDelta,
    ReasoningDone,
    StateEvent,
    TextDelta,
    TextDone,
)
from specdec.server.responses_wire import ResponseObject, ResponsesRequest
from specdec.server.status import Capabilities, Model, ModelList, Status, Version
from specdec.server.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

# A document is any JSON object.
Json = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_MESSAGES: Final = [{"role": "user", "content": "What is the capital of France?"}]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A route as its users see it."""

    method: Literal["get", "post"]
    path: str
    name: str
    tag: str
    summary: str
    description: str = ""
    request: type[msgspec.Struct] | None = None
    response: type[msgspec.Struct] | None = None
    events: tuple[type[msgspec.Struct], ...] = ()
    """What the events of a stream hold, where the request may ask for one."""
    media_type: str = "application/json"
    errors: tuple[int, ...] = ()
    parameters: dict[str, str] = {}
    """Parts of the path, and what they are."""
    example: Json | None = None
    """A request's body."""


_BODY_ERRORS: Final = (400, 404, 408, 413, 415, 429, 500)
_GENERATION_ERRORS: Final = (*_BODY_ERRORS, 503, 504)
_ABOUT_STREAMS: Final = (
    "With `stream` the answer is a stream of server-sent events that ends with `data: [DONE]`; a failure after its "
    "beginning is an event with an `error`. Fields that had no effect are named in the header `x-specdec-ignored`."
)

OPERATIONS: Final = (
    Operation(
        method="post",
        path="/v1/chat/completions",
        name="createChatCompletion",
        tag="Generation",
        summary="Answer a conversation",
        description=_ABOUT_STREAMS,
        request=ChatRequest,
        response=ChatCompletion,
        events=(ChatChunk,),
        errors=_GENERATION_ERRORS,
        example={"model": "MODEL", "messages": _MESSAGES, "max_completion_tokens": 100},
    ),
    Operation(
        method="post",
        path="/v1/completions",
        name="createCompletion",
        tag="Generation",
        summary="Continue one or several prompts",
        description=_ABOUT_STREAMS,
        request=CompletionRequest,
        response=Completion,
        events=(Completion,),
        errors=_GENERATION_ERRORS,
        example={"model": "MODEL", "prompt": "The capital of France is", "max_tokens": 16},
    ),
    Operation(
        method="post",
        path="/v1/responses",
        name="createResponse",
        tag="Generation",
        summary="Answer a conversation, as items of output",
        description="Nothing is stored: a conversation is sent whole. With `stream` the answer is a stream of typed, "
        "numbered events that ends with response.completed, .incomplete or .failed.",
        request=ResponsesRequest,
        response=ResponseObject,
        events=(
            StateEvent,
            ItemEvent,
            PartEvent,
            TextDelta,
            TextDone,
            ReasoningDelta,
            ReasoningDone,
            ArgumentsDelta,
            ArgumentsDone,
        ),
        errors=_GENERATION_ERRORS,
        example={"model": "MODEL", "input": "What is the capital of France?", "max_output_tokens": 100},
    ),
    Operation(
        method="post",
        path="/tokenize",
        name="tokenize",
        tag="Tokens",
        summary="A prompt or a conversation in tokens",
        request=TokenizeRequest,
        response=Tokenized,
        errors=_BODY_ERRORS,
        example={"prompt": "The capital of France is"},
    ),
    Operation(
        method="post",
        path="/detokenize",
        name="detokenize",
        tag="Tokens",
        summary="The text of tokens",
        request=DetokenizeRequest,
        response=Detokenized,
        errors=_BODY_ERRORS,
        example={"tokens": [5, 6, 7]},
    ),
    Operation(
        method="get",
        path="/v1/models",
        name="listModels",
        tag="Models",
        summary="The names that `model` may have",
        response=ModelList,
    ),
    Operation(
        method="get",
        path="/v1/models/{name}",
        name="retrieveModel",
        tag="Models",
        summary="One of them",
        response=Model,
        errors=(404,),
        parameters={"name": "The model's name, which may hold slashes."},
    ),
    Operation(
        method="get",
        path="/v1/specdec/info",
        name="getInfo",
        tag="Models",
        summary="The engine that answers, and the limits of a request",
        response=Capabilities,
    ),
    Operation(
        method="get",
        path="/health",
        name="getHealth",
        tag="Status",
        summary="Liveness: 503 once the engine has died or is stuck",
        response=Status,
        errors=(503,),
    ),
    Operation(
        method="get",
        path="/ready",
        name="getReadiness",
        tag="Status",
        summary="Readiness: 503 where no request is accepted",
        response=Status,
        errors=(503,),
    ),
    Operation(
        method="get",
        path="/version",
        name="getVersion",
        tag="Status",
        summary="What is running",
        response=Version,
    ),
    Operation(
        method="get",
        path="/metrics",
        name="getMetrics",
        tag="Status",
        summary="Counts, gauges and histograms, as Prometheus reads them",
        media_type="text/plain",
    ),
    Operation(
        method="get",
        path="/openapi.json",
        name="getDocument",
        tag="Reference",
        summary="This document",
    ),
    Operation(
        method="get",
        path="/docs",
        name="getReference",
        tag="Reference",
        summary="This document as a page to read",
        media_type="text/html",
    ),
)

_REASONS: Final = {
    400: "The request cannot be served as asked; `param` names the field.",
    401: "No valid API key was presented.",
    404: "There is no such model.",
    408: "The request did not come within its time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "The key has sent more requests than its rate allows; `retry-after` says when to come again.",
    500: "The server failed.",
    503: "The server is full, not ready, or shutting down; `retry-after` says when to come again.",
    504: "The request took longer than this server allows.",
}


@get("/openapi.json", status_code=200)
async def openapi_json() -> Response[bytes]:
    """The document."""
    return Response(msgspec.json.encode(openapi_document()), media_type="application/json")


@functools.cache
def openapi_document() -> Json:
    """The document; the same for every server of this version."""
    kinds = {
        kind: None
        for operation in OPERATIONS
        for kind in (operation.request, operation.response, *operation.events)
        if kind is not None
    }
    _, components = msgspec.json.schema_components([*kinds, ErrorBody], ref_template=_REF)
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "specdec",
            "version": __version__,
            "summary": "OpenAI's API, with speculative and structured decoding as one engine.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        # The last: a server without keys asks for none.
        "security": [{"bearer": []}, {"header": []}, {}],
    }


def _operation(operation: Operation) -> Json:
    is_public = operation.path in PUBLIC_PATHS
    responses: Json = {"200": {"description": "The answer.", "content": _answer(operation)}}
    for status in sorted({*operation.errors, *(() if is_public else (401,))}):
        responses[str(status)] = {"description": _REASONS[status], "content": _content(ErrorBody)}
    document: Json = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": responses,
    }
    if operation.description:
        document["description"] = operation.description
    if operation.parameters:
        document["parameters"] = [
            {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
            for name, text in operation.parameters.items()
        ]
    if operation.request is not None:
        content = _content(operation.request)
        if operation.example is not None:
            content["application/json"]["example"] = operation.example
        document["requestBody"] = {"required": True, "content": content}
    if is_public:
        document["security"] = [{}]
    return document


def _answer(operation: Operation) -> Json:
    content: Json = (
        {operation.media_type: {"schema": {"type": "object" if "json" in operation.media_type else "string"}}}
        if operation.response is None
        else _content(operation.response)
    )
    if operation.events:
        # OpenAPI 3.1 has no word for the events of a stream; 3.2 calls it itemSchema.
        events = [_reference(kind) for kind in operation.events]
        schema = events[0] if len(events) == 1 else {"anyOf": events}
        content["text/event-stream"] = {"schema": {"type": "string", "x-event-schema": schema}}
    return content


def _content(kind: type[msgspec.Struct]) -> Json:
    return {"application/json": {"schema": _reference(kind)}}


def _reference(kind: type[msgspec.Struct]) -> Json:
    return {"$ref": _REF.format(name=kind.__name__)}
