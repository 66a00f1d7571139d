"""What an answer cost: token usage, and on request what speculation and timing were like."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from specdec import EnforcementReport, SpeculationStats
from specdec.request import DraftTrace


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Prompt tokens whose KV came from the prefix cache."""

    cached_tokens: int


class PredictionTokens(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's completion_tokens_details. Tokens not accepted are no completion tokens: drafts are free of charge.

    A drafted token is one of the prediction if the prediction goes on with it from where the answer is in it, be it
    that it was drafted from there, or by another proposer that had the same idea.
    """

    accepted_prediction_tokens: int = 0
    """Drafted tokens of the prediction that are in the answer: so many it did not have to wait for."""
    rejected_prediction_tokens: int = 0
    """Drafted tokens of the prediction that are not; what was never drafted is in neither."""
    reasoning_tokens: int = 0
    audio_tokens: int = 0

    def plus(self, speculation: SpeculationStats) -> PredictionTokens:
        """With those of one more choice."""
        accepted, rejected = speculation.num_accepted_prediction_tokens, speculation.num_rejected_prediction_tokens
        return PredictionTokens(
            accepted_prediction_tokens=self.accepted_prediction_tokens + accepted,
            rejected_prediction_tokens=self.rejected_prediction_tokens + rejected,
        )


class Usage(msgspec.Struct, frozen=True):
    """OpenAI's usage object; tokens drafted and rejected are in no count of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: PredictionTokens | msgspec.UnsetType = msgspec.UNSET
    """Where a prediction was sent, or answers begin with reasoning."""


class ProposerDecoding(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one proposer's tokens."""

    num_drafts: int
    """Drafts with at least one of its tokens: a draft by several counts for each."""
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
    """Tokens of the longest draft that the request allows."""
    per_step_accepted: list[int] | msgspec.UnsetType = msgspec.UNSET
    """Draft tokens accepted by each target pass that verified a draft; where the server is told to be detailed."""
    per_step_drafted: list[int] | msgspec.UnsetType = msgspec.UNSET
    """Tokens of each draft."""
    by_proposer: dict[str, ProposerDecoding]


class RequestMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's per-request metrics; null is what has not been: no token, or none after the first."""

    time_to_first_token_ms: float | None
    generation_time_ms: float | None
    queue_time_ms: float | None
    mean_itl_ms: float | None
    tokens_per_second: float | None
    speculative_decoding: SpeculativeDecoding | None


class ChoiceTrace(msgspec.Struct, frozen=True):
    """What was drafted for one choice, target pass by target pass."""

    index: int
    drafts: list[DraftTrace]


class Extension(msgspec.Struct, frozen=True, omit_defaults=True):
    """specdec's own part of an answer: the seed that reproduces it (of several prompts, one each), report and trace."""

    seed: int | None = None
    seeds: list[int] | None = None
    enforcement: EnforcementReport | None = None
    """What was enforced of the constraint; on request."""
    trace: list[ChoiceTrace] | None = None
    """What was drafted for its choices; on request."""


def usage(
    num_prompt_tokens: int,
    num_completion_tokens: int,
    num_cached_tokens: int,
    prediction_tokens: PredictionTokens | None,
    num_reasoning_tokens: int | None = None,
) -> Usage:
    """The usage object of these counts."""
    details = prediction_tokens
    if num_reasoning_tokens is not None:
        details = msgspec.structs.replace(details or PredictionTokens(), reasoning_tokens=num_reasoning_tokens)
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_completion_tokens,
        total_tokens=num_prompt_tokens + num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached_tokens),
        completion_tokens_details=msgspec.UNSET if details is None else details,
    )


def speculative_decoding(
    stats: SpeculationStats, max_draft_tokens: int, trace: Sequence[DraftTrace] | None = None
) -> SpeculativeDecoding:
    """The engine's counts in vLLM's shape; step by step as well where there is a trace.

    A draft token is accepted only if all before it in its draft were.
    """
    steps = None if trace is None else [draft for draft in trace if draft.token_ids]
    accepted = [0] * max(max_draft_tokens, len(stats.num_accepted_per_position))
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
        num_spec_tokens=max_draft_tokens,
        per_step_accepted=msgspec.UNSET if steps is None else [draft.num_accepted for draft in steps],
        per_step_drafted=msgspec.UNSET if steps is None else [len(draft.token_ids) for draft in steps],
        by_proposer={
            proposer: ProposerDecoding(
                num_drafts=counts.num_drafts,
                num_draft_tokens=counts.num_draft_tokens,
                num_accepted_tokens=counts.num_accepted_tokens,
                num_rejected_tokens=counts.num_rejected_tokens,
                num_discarded_tokens=counts.num_discarded_tokens,
            )
            for proposer, counts in stats.by_proposer.items()
        },
    )
