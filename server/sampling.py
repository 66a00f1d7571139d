"""The sampling fields that chat and text completions share, their limits, and the engine's form of them."""

from __future__ import annotations

import msgspec

from specdec import SamplingParams
from specdec.server.config import RequestLimits
from specdec.server.errors import bad_request

MAX_TEMPERATURE = 2.0


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """As OpenAI names them; the last six are extensions, with vLLM's names. null is the default."""

    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None


def sampling_params(
    fields: SamplingFields,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    limits: RequestLimits,
    vocab_size: int,
) -> SamplingParams:
    """The fields as SamplingParams. Raises ApiError or RequestError for a value out of range."""
    if fields.temperature is not None and not 0.0 <= fields.temperature <= MAX_TEMPERATURE:
        raise bad_request(
            f"temperature is {fields.temperature:g}; it must be between 0 and {MAX_TEMPERATURE:g}", param="temperature"
        )
    if fields.n is not None and fields.n < 1:
        raise bad_request(f"n is {fields.n}; it must be between 1 and {limits.max_choices}", param="n")
    _check_at_most("n", fields.n or 1, limits.max_choices)
    stop = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    _check_at_most("stop", len(stop), limits.max_stop_strings, "strings")
    for text in stop:
        _check_at_most("stop", len(text.encode()), limits.max_stop_bytes, "bytes in one string")
    stop_token_ids = tuple(fields.stop_token_ids or ())
    _check_at_most("stop_token_ids", len(stop_token_ids), limits.max_stop_token_ids, "ids")
    logit_bias = fields.logit_bias or {}
    _check_at_most("logit_bias", len(logit_bias), limits.max_logit_bias, "entries")
    _check_token_ids("logit_bias", logit_bias, vocab_size)
    _check_token_ids("stop_token_ids", stop_token_ids, vocab_size)
    given: dict[str, object] = {
        name: getattr(fields, name)
        for name in (
            "temperature", "top_p", "n", "frequency_penalty", "presence_penalty", "seed", "top_k", "min_p",
            "repetition_penalty", "min_tokens", "ignore_eos",
        )
        if getattr(fields, name) is not None
    }  # fmt: skip
    if fields.top_k == -1:  # vLLM's spelling of "all tokens"
        given["top_k"] = 0
    return SamplingParams(
        **given,  # type: ignore[arg-type]  # the names and types are those of SamplingFields
        stop=stop,
        stop_token_ids=stop_token_ids,
        logit_bias=logit_bias,
        max_tokens=max_tokens,
        logprobs=logprobs,
    )


def _check_at_most(name: str, value: int, limit: int, unit: str = "") -> None:
    if value > limit:
        quantity = f"{value} {unit}".strip()
        raise bad_request(f"{name} is {quantity}; at most {limit} are accepted", param=name, code="limit_exceeded")


def _check_token_ids(name: str, token_ids: dict[int, float] | tuple[int, ...], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise bad_request(
                f"{name} names token {token_id}; the vocabulary has ids 0 to {vocab_size - 1}", param=name
            )
