"""What an answer cost: token usage, and on request what speculation and timing were like."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import msgspec

from specdec import DraftTrace, EnforcementReport, SpeculationStats


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Prompt tokens whose KV came from the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a prediction's tokens; those rejected are in no other count."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    reasoning_tokens: int = 0
    audio_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """OpenAI's usage object; tokens drafted and rejected are not in its counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | msgspec.UnsetType = msgspec.UNSET
    """Of a request with a prediction."""


class ProposerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one proposer's tokens."""

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_rejected_tokens: int
    num_discarded_tokens: int


class SpeculativeDecoding(msgspec.Struct, frozen=True, kw_only=True):
    """One answer's speculation, in vLLM's shape."""

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]
    """Entry i: target passes that accepted exactly i draft tokens."""
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int
    """The longest draft that was allowed."""
    by_proposer: dict[str, ProposerCounts]
    """An extension; the counts of tokens add up to those above."""


class RequestMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's per-request metrics; what the engine does not time is null."""

    time_to_first_token_ms: float | None
    generation_time_ms: float | None
    queue_time_ms: float | None
    mean_itl_ms: float | None
    tokens_per_second: float | None
    speculative_decoding: SpeculativeDecoding | None


class TracedChoice(msgspec.Struct, frozen=True):
    """What was drafted for one choice, a draft a target pass."""

    index: int
    drafts: list[DraftTrace]


class Extension(msgspec.Struct, frozen=True, omit_defaults=True):
    """specdec's own part of an answer: the seed that reproduces it (of several prompts, one each), and its report."""

    seed: int | None = None
    seeds: list[int] | None = None
    enforcement: EnforcementReport | None = None
    """What was enforced of the constraint; on request."""
    trace: list[TracedChoice] | None = None
    """What every target pass verified, by choice; on request, and in a stream with the last chunk."""


def usage(
    num_prompt_tokens: int,
    num_completion_tokens: int,
    num_cached_tokens: int,
    predicted: CompletionTokensDetails | None = None,
) -> Usage:
    """The usage object of these counts."""
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_completion_tokens,
        total_tokens=num_prompt_tokens + num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached_tokens),
        completion_tokens_details=msgspec.UNSET if predicted is None else predicted,
    )


def prediction_details(stats: Iterable[SpeculationStats]) -> CompletionTokensDetails:
    """What became of the tokens that were drafted from a prediction; drafted twice, a token counts twice."""
    accepted = rejected = 0
    for each in stats:
        own = each.by_proposer.get("prediction")
        if own is not None:
            accepted += own.num_accepted_tokens
            rejected += own.num_rejected_tokens + own.num_discarded_tokens
    return CompletionTokensDetails(accepted_prediction_tokens=accepted, rejected_prediction_tokens=rejected)


def speculative_decoding(stats: SpeculationStats, num_speculative_tokens: int) -> SpeculativeDecoding:
    """The engine's counts in vLLM's shape. A draft token is accepted only if all before it in its draft were."""
    accepted = [0] * max(num_speculative_tokens, len(stats.num_accepted_per_position))
    accepted[: len(stats.num_accepted_per_position)] = stats.num_accepted_per_position
    at_least = [stats.num_drafts, *accepted, 0]
    compared = stats.num_accepted_tokens + stats.num_rejected_tokens
    return SpeculativeDecoding(
        mean_acceptance_length=1 + stats.num_accepted_tokens / stats.num_drafts if stats.num_drafts else 1.0,
        draft_acceptance_rate=stats.num_accepted_tokens / compared if compared else 0.0,
        acceptance_histogram=[more - less for more, less in itertools.pairwise(at_least)],
        num_spec_steps=stats.num_drafts,
        num_accepted_draft_tokens=stats.num_accepted_tokens,
        num_draft_tokens=stats.num_draft_tokens,
        num_spec_tokens=num_speculative_tokens,
        by_proposer={
            name: ProposerCounts(
                num_drafts=own.num_drafts,
                num_draft_tokens=own.num_draft_tokens,
                num_accepted_tokens=own.num_accepted_tokens,
                num_rejected_tokens=own.num_rejected_tokens,
                num_discarded_tokens=own.num_discarded_tokens,
            )
            for name, own in stats.by_proposer.items()
        },
    )
