"""RequestedSpeculation: how one request is speculated on, as its three fields say."""

from __future__ import annotations

from typing import Literal

import msgspec

from specdec import SpeculativeConfig, SpeculativeParams
from specdec.server.content import TextPart
from specdec.speculative import resolve_plan


class Prediction(msgspec.Struct, frozen=True):
    """OpenAI's Predicted Outputs: a text that the answer is expected to resemble."""

    type: Literal["content"]
    content: str | list[TextPart]


class RequestedSpeculation(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's form, and what only the wire knows of it."""

    params: SpeculativeParams | None
    prediction: str
    trace: bool
    has_prediction: bool
    """Whether one was sent, be it empty: its usage is reported."""
    max_draft_tokens: int
    """The longest draft; 0 is plain decoding."""


def requested_speculation(
    prediction: Prediction | None,
    params: SpeculativeParams | None,
    trace: bool | None,
    *,
    config: SpeculativeConfig | None,
) -> RequestedSpeculation:
    """What the fields ask of an engine of this configuration. Raises RequestError for what it cannot do."""
    text = "" if prediction is None else _text(prediction)
    plan = resolve_plan(config, params, has_prediction=bool(text))
    return RequestedSpeculation(
        params=params,
        prediction=text,
        trace=bool(trace),
        has_prediction=prediction is not None,
        max_draft_tokens=plan.max_tokens,
    )


def _text(prediction: Prediction) -> str:
    content = prediction.content
    return content if isinstance(content, str) else "".join(part.text for part in content)
