"""What an answer cost: token usage, and on request what speculation and timing were like."""

from __future__ import annotations

import itertools

import msgspec

from specdec import EnforcementReport, SpeculationStats


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Prompt tokens whose KV came from the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """OpenAI's usage object; tokens drafted and rejected are not in it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


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


class RequestMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's per-request metrics; what the engine does not time is null."""

    time_to_first_token_ms: float | None
    generation_time_ms: float | None
    queue_time_ms: float | None
    mean_itl_ms: float | None
    tokens_per_second: float | None
    speculative_decoding: SpeculativeDecoding | None


class Extension(msgspec.Struct, frozen=True, omit_defaults=True):
    """specdec's own part of an answer: the seed that reproduces it (of several prompts, one each), and its report."""

    seed: int | None = None
    seeds: list[int] | None = None
    enforcement: EnforcementReport | None = None
    """What was enforced of the constraint; on request."""


def usage(num_prompt_tokens: int, num_completion_tokens: int, num_cached_tokens: int) -> Usage:
    """The usage object of these counts."""
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_completion_tokens,
        total_tokens=num_prompt_tokens + num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached_tokens),
    )


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
    )
