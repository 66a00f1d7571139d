"""The access log: one line for every request, which says what it cost and nothing of what it said."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from specdec import Request, Tokenizer
from specdec.logs import FIELDS
from specdec.server.exchange import Exchange

logger = logging.getLogger("specdec.access")
requests_logger = logging.getLogger("specdec.requests")

PROBED_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Asked for every few seconds by machines: logged from level debug on, unless the answer is an error."""
MAX_PATH_CHARS = 200
_NUM_CALLER_DIGITS = 12
_UNAUTHORIZED = 401


def log_access(method: str, path: str, exchange: Exchange) -> None:
    """The line of a request that is over, whose path is without its query."""
    is_probe = path in PROBED_PATHS and exchange.status < 400
    level = logging.DEBUG if is_probe else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "request_id": exchange.request_id,
        "method": method,
        "path": path[:MAX_PATH_CHARS],
        "status": exchange.status,
        "duration_ms": round(1e3 * exchange.seconds, 1),
    }
    # A key that opens nothing may be a slip of one that does.
    if exchange.caller and exchange.status != _UNAUTHORIZED:
        fields["caller"] = exchange.caller[:_NUM_CALLER_DIGITS]
    if exchange.account is not None:
        fields |= exchange.account()
    logger.log(level, "request", extra={FIELDS: fields})


def log_prompts(requests: Sequence[Request], tokenizer: Tokenizer) -> None:
    """What is to be answered, as text with its special tokens, one line for each prompt."""
    for request in requests:
        known = [token_id for token_id in request.prompt_token_ids if 0 <= token_id < tokenizer.vocab_size]
        prompt = tokenizer.decode(known, skip_special_tokens=False)
        requests_logger.info(
            "prompt",
            extra={
                FIELDS: {
                    "answer_id": request.request_id,
                    "prompt": prompt,
                    "max_tokens": request.sampling_params.max_tokens,
                }
            },
        )
