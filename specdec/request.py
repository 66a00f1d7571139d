"""What crosses the engine's boundary: sampling parameters, requests, deltas and outputs."""

from __future__ import annotations

import enum
import math

import msgspec

from specdec.errors import RequestError
from specdec.grammars.constraints import Constraint
from specdec.grammars.report import EnforcementReport
from specdec.speculative import SpeculativeParams

MAX_SEED = 2**63 - 1


class FinishReason(enum.StrEnum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are drawn; the defaults are OpenAI's.

    Raises RequestError, with the field in `param`, for a value out of range.
    """

    temperature: float = 1.0
    """0 is greedy: the highest logit, ties to the lowest token id."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    """None draws one, which the output reports."""
    n: int = 1
    max_tokens: int | None = None
    """None allows what the context and the KV pool leave."""
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """None reports no log-probabilities; 0 those of the emitted tokens; k > 0 the k most likely as well."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("min_p", 0.0, 1.0),
            ("frequency_penalty", -2.0, 2.0),
            ("presence_penalty", -2.0, 2.0),
            # Logits divided by less could overflow, and what a mask forbids times next to nothing is no number.
            ("repetition_penalty", 0.01, 100.0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise RequestError(f"{name} is {value}; it must be between {low:g} and {high:g}", param=name)
        if not (math.isfinite(self.top_p) and 0.0 < self.top_p <= 1.0):
            raise RequestError(f"top_p is {self.top_p}; it must be above 0 and at most 1", param="top_p")
        for token_id, bias in self.logit_bias.items():
            if not (math.isfinite(bias) and -100.0 <= bias <= 100.0):
                raise RequestError(
                    f"logit_bias[{token_id}] is {bias}; it must be between -100 and 100", param="logit_bias"
                )
        for name, low_int, high_int in (
            ("top_k", 0, 2**31 - 1),
            ("n", 1, 128),
            ("min_tokens", 0, 2**31 - 1),
        ):
            value = getattr(self, name)
            if not low_int <= value <= high_int:
                raise RequestError(f"{name} is {value}; it must be between {low_int} and {high_int}", param=name)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}; it must be at least 1", param="max_tokens")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, above max_tokens, {self.max_tokens}", param="min_tokens"
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= 20:
            raise RequestError(f"logprobs is {self.logprobs}; it must be between 0 and 20", param="logprobs")
        if self.seed is not None and not -(2**63) <= self.seed <= MAX_SEED:
            raise RequestError(f"seed is {self.seed}; it must fit 64 bits", param="seed")
        if "" in self.stop:
            raise RequestError("stop holds an empty string, which would end every answer at once", param="stop")


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request: a prompt in tokens, and what to generate from it."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling_params: SamplingParams = SamplingParams()
    constraint: Constraint | None = None
    cache_salt: str = ""
    """Requests with different salts share no prefix-cache blocks."""
    caller: str = ""
    """Who asks: while requests wait, those of different callers take turns."""
    speculative: SpeculativeParams | None = None
    """How this request is speculated on; None is as the engine's configuration says."""
    prediction: str = ""
    """Text that the answer is expected to resemble, to draft from (OpenAI's Predicted Outputs)."""
    trace: bool = False
    """Whether its deltas say what was drafted, by whom."""


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One token with its log-probability: the log-softmax of the target's raw logits."""

    token_id: int
    token: str
    """Its own bytes as text, undecodable bytes shown as U+FFFD."""
    token_bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


class DraftTrace(msgspec.Struct, frozen=True, kw_only=True):
    """What one target pass verified."""

    token_ids: tuple[int, ...]
    """The draft."""
    proposers: tuple[str, ...]
    """Who drafted each of its tokens."""
    num_accepted: int
    """The first so many were emitted, before one that the target drew."""
    is_last_forbidden: bool = False
    """Whether the grammar forbids its last token (SpeculativeConfig.mask_drafts)."""


class ProposerStats(msgspec.Struct, frozen=True, kw_only=True):
    """What was drafted and what became of it (terms: docs/design/001)."""

    num_drafts: int = 0
    """Target passes that verified at least one such token."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_rejected_tokens: int = 0
    num_discarded_tokens: int = 0
    """Drafted after a rejection or after the end of the answer, so never compared."""
    num_drafted_per_position: tuple[int, ...] = ()
    """By the position in the whole draft, whoever drafted the tokens before."""
    num_accepted_per_position: tuple[int, ...] = ()


class SpeculationStats(ProposerStats, frozen=True, kw_only=True):
    """What was drafted for one choice, by all proposers together."""

    num_target_passes: int = 0
    """Target passes that emitted at least one token."""
    by_proposer: dict[str, ProposerStats] = {}
    """The same by who drafted; the counts of tokens add up to those above."""
    num_accepted_prediction_tokens: int = 0
    """Accepted tokens with which the request's prediction goes on from where the answer is in it, whoever drafted."""
    num_rejected_prediction_tokens: int = 0
    """Such tokens that were rejected or discarded."""


class TokenDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine step added to one choice; the last one of a choice has a finish_reason."""

    request_id: str
    choice_index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    """Never splits a code point, never shows a stop string; the texts of a choice join to its whole text."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One per token id, when asked for."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the choice, if one of the request's did."""
    error: str | None = None
    """Why, when finish_reason is error; None of a fault of the engine's own, which only its log tells more of."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens whose KV came from the prefix cache."""
    seed: int = 0
    queue_s: float | None = None
    """On the first delta of a choice: how long it waited for a place."""
    prefill_s: float | None = None
    """On the first delta of a choice: how long its first tokens took from then on."""
    speculation: SpeculationStats | None = None
    """On the last delta of a choice."""
    drafts: tuple[DraftTrace, ...] = ()
    """What the passes that gave these tokens verified; where the request is traced."""
    enforcement: EnforcementReport | None = None
    """On the last delta of a constrained choice."""

    @property
    def is_failure(self) -> bool:
        """Whether the engine gave the choice up."""
        return self.finish_reason in {FinishReason.ERROR, FinishReason.ABORT}


class CompletionOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One finished choice."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: tuple[TokenLogprob, ...] | None
    seed: int
    speculation: SpeculationStats
    drafts: tuple[DraftTrace, ...] = ()
    """One a target pass, where the request is traced."""
    error: str | None = None
    """Why, when finish_reason is error; None of a fault of the engine's own, which only its log tells more of."""


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request, its choices in order."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    num_cached_tokens: int
    choices: tuple[CompletionOutput, ...]
    enforcement: EnforcementReport | None = None
    """What was enforced of the constraint, and what narrows its answers; None without a constraint."""

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text
