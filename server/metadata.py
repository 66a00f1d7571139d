"""metadata: labels of a request that its answer brings back, within OpenAI's limits."""

from __future__ import annotations

from specdec.server.errors import ApiError, bad_request

MAX_ENTRIES = 16
MAX_KEY_CHARS = 64
MAX_VALUE_CHARS = 512


def check_metadata(metadata: dict[str, str] | None) -> None:
    """Raise ApiError for more, or longer, labels than are accepted."""
    if metadata is None:
        return
    if len(metadata) > MAX_ENTRIES:
        raise _excess(f"metadata has {len(metadata)} entries; at most {MAX_ENTRIES} are accepted")
    for key, value in metadata.items():
        if len(key) > MAX_KEY_CHARS:
            raise _excess(
                f"metadata has a key of {len(key)} characters, {key[:20]!r}...; at most {MAX_KEY_CHARS} are accepted"
            )
        if len(value) > MAX_VALUE_CHARS:
            raise _excess(f"metadata has {len(value)} characters under {key!r}; at most {MAX_VALUE_CHARS} are accepted")


def _excess(message: str) -> ApiError:
    return bad_request(message, param="metadata", code="limit_exceeded")
