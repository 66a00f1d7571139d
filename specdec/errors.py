"""Every error the engine raises on purpose, as one tree.

    SpecdecError
    ├── ConfigError                   a flag or field of EngineConfig that cannot work
    ├── ModelError                    a model that cannot be had or read
    │   ├── ModelNotFoundError        no catalog entry, folder or hub repository of that name
    │   ├── PullError                 the download failed, or what came is not what was pinned
    │   └── CheckpointError           files that do not fit the architecture: missing, unused or misshapen keys
    ├── RequestError                  one request is at fault; `param` names its field, `code` is machine-readable
    │   ├── BudgetTooSmallError       max_tokens is less than a constrained answer may need
    │   ├── ContextLengthError        the prompt and what it asks for do not fit the context or the pool
    │   └── SchemaError               a schema that is malformed, unsatisfiable or not enforceable
    └── EngineError                   the engine, not the request, failed
        ├── EngineBusyError           there is no room for the request now
        ├── RequestFaultError         a fault of the engine's own ended one request; the engine goes on
        ├── GenerationError           one request failed while it was answered; the engine goes on
        ├── EngineDeadError           the engine thread has died; every request in flight gets this
        └── EngineClosedError         the engine was shut down

Each message gives the value, the limit and the way out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdec.request import RequestOutput


class SpecdecError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(SpecdecError):
    """A configuration value that cannot work; `flag` is its command line spelling, where it has one."""

    def __init__(self, message: str, *, flag: str | None = None) -> None:
        super().__init__(message)
        self.flag = flag


class ModelError(SpecdecError):
    """A model that cannot be had or read."""


class ModelNotFoundError(ModelError):
    """The name is no catalog entry, no local folder and no hub repository."""


class PullError(ModelError):
    """A download failed, was cut, or did not match its pinned digest."""


class CheckpointError(ModelError):
    """The files of a model do not fit its architecture."""


class RequestError(SpecdecError):
    """One request cannot be served as asked; nothing else is affected.

    `param` is the field at fault in the caller's own spelling, `code` a stable machine-readable reason.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(RequestError):
    """The prompt plus the tokens asked for exceed the context or what the KV pool can ever hold."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class BudgetTooSmallError(RequestError):
    """The tokens allowed are fewer than a constrained answer may need; `minimum_tokens` would do, if it is known."""

    def __init__(self, message: str, *, minimum_tokens: int | None, param: str | None = None) -> None:
        super().__init__(message, param=param, code="max_tokens_too_small")
        self.minimum_tokens = minimum_tokens


class SchemaError(RequestError):
    """A schema refused before generation; `keyword` and `pointer` (RFC 6901) say where."""

    def __init__(
        self,
        message: str,
        *,
        keyword: str | None = None,
        pointer: str = "",
        param: str | None = None,
        code: str = "invalid_json_schema",
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.keyword = keyword
        self.pointer = pointer


class EngineError(SpecdecError):
    """The engine failed; the request was not at fault."""


class EngineBusyError(EngineError):
    """There is no room for the request now; later there may be."""


class RequestFaultError(EngineError):
    """A fault of the engine's own ended one request; the engine's log says which, and the engine goes on."""


class GenerationError(EngineError):
    """Answers that the engine gave up, of one request or of several; `outputs` are those of all requests.

    A choice that was given up has the finish reason error, and says why in `error`.
    """

    def __init__(self, message: str, outputs: tuple[RequestOutput, ...] = ()) -> None:
        super().__init__(message)
        self.outputs = outputs


class EngineDeadError(EngineError):
    """The engine thread has died and serves nothing any more."""


class EngineClosedError(EngineError):
    """The engine was closed while, or before, the request ran."""
