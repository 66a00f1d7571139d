"""Schema files as the command line names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specdec.errors import ConfigError


def read_schema_file(file: str, *, flag: str) -> str:
    """The JSON text in a file. Raises ConfigError for what cannot be read or is no JSON."""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{file} cannot be read: {reason}", flag=flag) from error
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} holds no JSON: {error}", flag=flag) from error
    return text


# Any: a document is whatever JSON holds.
def read_documents(named: list[str]) -> dict[str, Any]:
    """Documents given as URI=FILE. Raises ConfigError."""
    documents: dict[str, Any] = {}
    for each in named:
        # A URI may hold an equals sign in its query, a file's name seldom does.
        uri, equals, file = each.rpartition("=")
        if not equals or not uri or not file:
            raise ConfigError(f"{each!r} is no document; write URI=FILE", flag="--document")
        documents[uri] = json.loads(read_schema_file(file, flag="--document"))
    return documents
