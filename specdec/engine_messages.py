"""What the serving process and the engine's process say to each other: tagged msgspec Structs, never pickle.

Requests and failures travel as JSON inside: they repeat what clients wrote, whose integers may exceed the 64 bits of
msgpack, and are refused by name on the other side. Everything counted per token is msgpack.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec

from specdec.config import EngineConfig
from specdec.description import EngineDescription
from specdec.errors import (
    BudgetTooSmallError,
    CheckpointError,
    ConfigError,
    ContextLengthError,
    EngineBusyError,
    EngineClosedError,
    EngineDeadError,
    EngineError,
    GenerationError,
    ModelError,
    ModelNotFoundError,
    PullError,
    RequestError,
    RequestFaultError,
    SchemaError,
    SpecdecError,
)
from specdec.grammars.limits import Limits
from specdec.logs import LogFormat
from specdec.models.progress import ModelProgress
from specdec.request import Request, RequestOutput, TokenDelta
from specdec.speculative import SpeculativeConfig
from specdec.stats import EngineStats


class EngineFaultError(Exception):
    """The engine's process failed on a request in a way that nobody meant; its log says why."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """The first message: what to build."""

    fields: dict[str, Any]
    """Of EngineConfig, but for the two below."""
    speculative: SpeculativeConfig | None
    grammar_limits: Limits | None
    log_level: int
    log_format: LogFormat

    @classmethod
    def of(cls, config: EngineConfig, log_format: LogFormat = "text") -> Load:
        """Of this process's log level. Raises ConfigError for an integer beyond 64 bits."""
        fields = {name: getattr(config, name) for name in EngineConfig.__struct_fields__}
        speculative, grammar_limits = fields.pop("speculative"), fields.pop("grammar_limits")
        for name, value in fields.items():
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ConfigError(f"{name} is {value}; it must fit 64 bits", flag="--" + name.replace("_", "-"))
        return cls(fields, speculative, grammar_limits, logging.getLogger("specdec").getEffectiveLevel(), log_format)

    def config(self) -> EngineConfig:
        """What it was made of."""
        return EngineConfig(speculative=self.speculative, grammar_limits=self.grammar_limits, **self.fields)


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Start these requests, all or none; `submission` is a number that is never used again."""

    submission: int
    requests: bytes
    """JSON of a list of Request."""

    @classmethod
    def of(cls, submission: int, requests: Iterable[Request]) -> Submit:
        """Raises RequestError for text that has no UTF-8 form, and for documents nested too deeply."""
        try:
            return cls(submission, msgspec.json.encode(list(requests)))
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the request holds a lone surrogate, at character {error.start} of a text; it must be valid Unicode",
                param="prompt",
            ) from error
        except RecursionError as error:
            raise _too_deep() from error

    def decoded(self) -> list[Request]:
        """The requests. Raises RequestError for values of other types than the fields', and too deep documents."""
        try:
            return _decode_requests(self.requests)
        except msgspec.ValidationError as error:
            raise RequestError(f"the request is not what it should be: {error}") from error
        except RecursionError as error:
            raise _too_deep() from error


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Nobody reads that submission any more; it may have ended already."""

    submission: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the process, and what runs in it."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """While the models are pulled and loaded."""

    progress: ModelProgress


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Loaded; submissions are taken."""

    description: EngineDescription
    model_folder: str
    stats: EngineStats


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """There will be no engine."""

    failure: bytes


class Dispatch(msgspec.Struct, frozen=True, tag=True):
    """All that is new: one a step, one where only a snapshot is new, one now and then as a sign of life.

    It is read from top to bottom.
    """

    accepted: tuple[int, ...] = ()
    """Submissions that have begun."""
    deltas: tuple[tuple[int, TokenDelta], ...] = ()
    failures: tuple[tuple[int, bytes], ...] = ()
    """Submissions that ended, each with its Failure."""
    stats: EngineStats | None = None
    busy_seconds: float = 0.0
    """How long the engine has been at its present step."""
    is_dead: bool = False
    """The engine has died, and its process ends."""


ToEngine: TypeAlias = Load | Submit | Abort | Stop
FromEngine: TypeAlias = Progress | Ready | LoadFailed | Dispatch

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
_decode_requests = msgspec.json.Decoder(list[Request]).decode


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An exception with everything that it says."""

    kind: str
    """The name of a class of specdec.errors, or FAULT."""
    message: str
    param: str | None = None
    code: str | None = None
    flag: str | None = None
    minimum_tokens: int | None = None
    keyword: str | None = None
    pointer: str = ""
    outputs: bytes = b""
    """In msgpack, which has infinite numbers."""


FAULT = "EngineFaultError"
_PLAIN = {
    kind.__name__: kind
    for kind in (
        SpecdecError, ModelError, ModelNotFoundError, PullError, CheckpointError,
        EngineError, EngineBusyError, RequestFaultError, EngineDeadError, EngineClosedError,
    )
}  # fmt: skip
_decode_failure = msgspec.json.Decoder(Failure).decode
_decode_outputs = msgspec.msgpack.Decoder(tuple[RequestOutput, ...]).decode


def pack_failure(error: BaseException) -> bytes:
    """An error for the other side; of one that nobody meant it says nothing, since clients may be shown it."""
    if not isinstance(error, SpecdecError):
        return msgspec.json.encode(
            Failure(kind=FAULT, message="the engine failed on this request; the engine's log says why")
        )
    failure = Failure(
        kind=type(error).__name__,
        message=_encodable(str(error)),
        param=_encodable(getattr(error, "param", None)),
        code=getattr(error, "code", None),
        flag=getattr(error, "flag", None),
        minimum_tokens=getattr(error, "minimum_tokens", None),
        keyword=_encodable(getattr(error, "keyword", None)),
        pointer=_encodable(getattr(error, "pointer", "")),
        outputs=msgspec.msgpack.encode(error.outputs) if isinstance(error, GenerationError) else b"",
    )
    return msgspec.json.encode(failure)


def unpack_failure(packed: bytes) -> Exception:
    """The error that was packed, equal in class, message and attributes."""
    failure = _decode_failure(packed)
    message, param, code = failure.message, failure.param, failure.code
    match failure.kind:
        case "ConfigError":
            return ConfigError(message, flag=failure.flag)
        case "RequestError":
            return RequestError(message, param=param, code=code)
        case "ContextLengthError":
            return ContextLengthError(message, param=param)
        case "BudgetTooSmallError":
            return BudgetTooSmallError(message, minimum_tokens=failure.minimum_tokens, param=param)
        case "SchemaError":
            assert code is not None, "a SchemaError has a code"
            return SchemaError(message, keyword=failure.keyword, pointer=failure.pointer, param=param, code=code)
        case "GenerationError":
            return GenerationError(message, _decode_outputs(failure.outputs))
        case kind if kind in _PLAIN:
            return _PLAIN[kind](message)
        case _:
            return EngineFaultError(message)


def _encodable(text: Any) -> Any:
    """The text with lone surrogates, which a schema may hold and no JSON can carry, shown as their escapes."""
    return text.encode(errors="backslashreplace").decode() if isinstance(text, str) else text


def _too_deep() -> RequestError:
    return RequestError("the documents of the options are nested too deeply", param="documents")
