"""The log: one line per record, as text or as JSON, with the id of the request that it is about."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TypeAlias

LogFormat: TypeAlias = Literal["text", "json"]

FIELDS = "specdec_fields"
"""The attribute of a record that holds what it says beside its message: `extra={FIELDS: {...}}`."""
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that this task works for."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class TextFormatter(logging.Formatter):
    """For people. What clients chose cannot begin a line of its own: line ends are escaped, tracebacks indented."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname, f"{record.name}:", _escaped(record.getMessage())]
        parts += [f"{name}={_text(value)}" for name, value in _fields(record).items() if value is not None]
        lines = [" ".join(parts)]
        lines += ["    " + _escaped(line) for line in _traceback(self, record).splitlines()]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """For programs: `time` (RFC 3339, UTC), `level`, `logger`, `message`, `request_id` and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if traceback := _traceback(self, record):
            line["exception"] = traceback
        # ASCII alone: no client's text can end a line, whatever its reader takes for the end of one.
        return json.dumps(line, ensure_ascii=True, default=str)


def configure_logging(level: int, log_format: LogFormat) -> None:
    """Log to standard error: specdec's records from `level` on, those of libraries from warnings on.

    Changes nothing where the process already logs somewhere.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler])
    logging.getLogger("specdec").setLevel(level)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    given: Mapping[str, object] = getattr(record, FIELDS, {})
    request_id = REQUEST_ID.get()
    return {**({} if request_id is None else {"request_id": request_id}), **given}


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _text(value: object) -> str:
    if isinstance(value, str) and value.isprintable() and value and not set(value) & set(' "='):
        return value
    if isinstance(value, float):
        return f"{value:.1f}"
    return json.dumps(value, ensure_ascii=True, default=str)


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], text)
