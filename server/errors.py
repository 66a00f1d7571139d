"""Errors on the wire: every failure, ours or Litestar's, as OpenAI's error object."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request as HttpRequest
from litestar import Response
from litestar.exceptions import HTTPException

from specdec import (
    BudgetTooSmallError,
    EngineBusyError,
    EngineClosedError,
    EngineDeadError,
    EngineError,
    RequestError,
    RequestFaultError,
    SchemaError,
    SpecdecError,
)
from specdec.logs import FIELDS

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
MAX_MESSAGE_CHARS = 2000


class ErrorObject(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's error object; `keyword` and `pointer` say where a schema is at fault."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    keyword: str | msgspec.UnsetType = msgspec.UNSET
    pointer: str | msgspec.UnsetType = msgspec.UNSET
    minimum_tokens: int | msgspec.UnsetType = msgspec.UNSET
    """Of a max_tokens that is too small: what would do."""


class ErrorBody(msgspec.Struct, frozen=True):
    """What an error response holds, and an error frame of a stream."""

    error: ErrorObject


class ApiError(Exception):
    """A failure with its HTTP status; raised by handlers, and made of every other exception."""

    def __init__(self, status: int, error: ErrorObject, headers: dict[str, str] | None = None) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.headers = headers or {}

    def response(self) -> Response[ErrorBody]:
        """The whole response."""
        return Response(
            ErrorBody(self.error), status_code=self.status, media_type="application/json", headers=self.headers
        )


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request cannot be served as asked; `param` is the field at fault."""
    error = ErrorObject(message=_shown(message), type="invalid_request_error", param=param, code=code)
    return ApiError(400, error)


def _shown(message: str) -> str:
    """What a request said is repeated to it in part."""
    return message if len(message) <= MAX_MESSAGE_CHARS else f"{message[:MAX_MESSAGE_CHARS]}..."


@contextlib.contextmanager
def fields_named(params: Mapping[str, str]) -> Iterator[None]:
    """What is raised within names a field as the endpoint does, by the engine's name of it."""
    try:
        yield
    except RequestError as error:
        name = error.param
        if name is not None and name in params:
            error.param = params[name]
            error.args = (re.sub(rf"\b{re.escape(name)}\b(?= is -?\d)", params[name], str(error)),)
        raise


def of_exception(exception: BaseException) -> ApiError:
    """The failure that an exception is to a client. What is not meant for clients stays in the log."""
    match exception:
        case ApiError():
            return exception
        case SchemaError():
            return ApiError(
                400,
                ErrorObject(
                    message=_shown(str(exception)),
                    type="invalid_request_error",
                    param=exception.param or "response_format",
                    code=exception.code,
                    keyword=exception.keyword if exception.keyword is not None else msgspec.UNSET,
                    pointer=exception.pointer,
                ),
            )
        case BudgetTooSmallError():
            error = ErrorObject(
                message=str(exception),
                type="invalid_request_error",
                param=exception.param,
                code=exception.code,
                minimum_tokens=msgspec.UNSET if exception.minimum_tokens is None else exception.minimum_tokens,
            )
            return ApiError(400, error)
        case RequestError():
            return bad_request(str(exception), param=exception.param, code=exception.code or "invalid_value")
        case EngineBusyError():
            return ApiError(
                503,
                ErrorObject(message=str(exception), type="service_unavailable", code="engine_busy"),
                {"retry-after": str(RETRY_AFTER_S)},
            )
        case EngineClosedError():
            return ApiError(
                503,
                ErrorObject(message=str(exception), type="service_unavailable", code="shutting_down"),
                {"retry-after": str(RETRY_AFTER_S)},
            )
        case EngineDeadError():
            return ApiError(
                500,
                ErrorObject(message=str(exception), type="server_error", code="engine_dead"),
                {"x-should-retry": "false"},
            )
        case RequestFaultError():
            return _internal_error()
        case EngineError() | SpecdecError():
            return ApiError(
                500,
                ErrorObject(message=str(exception), type="server_error", code="engine_error"),
                {"x-should-retry": "false"},
            )
        case HTTPException():
            return _of_http_exception(exception)
        case _:
            return _internal_error()


def _internal_error() -> ApiError:
    return ApiError(
        500,
        ErrorObject(
            message="the server failed on this request; its log says why under this request id",
            type="server_error",
            code="internal_error",
        ),
        {"x-should-retry": "false"},
    )


def _of_http_exception(exception: HTTPException) -> ApiError:
    status = exception.status_code
    phrase = HTTPStatus(status).phrase
    match status:
        case 401:
            kind, code, message = "authentication_error", "invalid_api_key", "a valid API key is required"
        case 404:
            kind, code, message = "not_found_error", "not_found", "there is no such route"
        case 405:
            kind, code = "invalid_request_error", "method_not_allowed"
            message = "this route does not take this method; the Allow header names those it takes"
        case 413:
            kind, code, message = "invalid_request_error", "request_too_large", "the request body is too large"
        case _ if status < 500:
            kind, code, message = "invalid_request_error", phrase.lower().replace(" ", "_"), phrase
        case _:
            kind, code, message = "server_error", "internal_error", phrase
    headers = {name.lower(): value for name, value in (exception.headers or {}).items()}
    if "GET" in (allowed := headers.get("allow", "").split(", ")):
        headers["allow"] = ", ".join([*allowed, "HEAD"])
    return ApiError(status, ErrorObject(message=message, type=kind, code=code), headers)


def handle_exception(_: HttpRequest[Any, Any, Any], exception: Exception) -> Response[ErrorBody]:
    """Litestar's handler for everything that a route, or the routing, raises."""
    failure = of_exception(exception)
    if isinstance(exception, RequestFaultError):
        logger.error("a request failed in the engine, whose log says why")
    elif failure.status >= 500 and not isinstance(exception, (ApiError, EngineError, HTTPException)):
        logger.error("a request failed", exc_info=exception)
    return failure.response()


def of_delta_error(answer_id: str, message: str | None) -> ApiError:
    """One choice failed inside the engine: the request's error, not the engine's. Without a message it is logged."""
    if message is None:
        logger.error("a request failed in the engine, whose log says why", extra={FIELDS: {"answer_id": answer_id}})
        return _internal_error()
    return ApiError(
        500,
        ErrorObject(message=message, type="server_error", code="generation_failed"),
        {"x-should-retry": "false"},
    )
