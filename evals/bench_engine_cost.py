"""What a step has to move at least, and what speculation could gain at best."""

from __future__ import annotations

from collections.abc import Sequence

from specdec.evals.bench_work import Attended, Work, pass_work
from specdec.models.config import ModelConfig


def decode_work(
    target: ModelConfig,
    draft: ModelConfig | None,
    itemsize: int,
    context_lens: Sequence[int],
    num_drafts: int,
    *,
    kv_itemsize: int | None = None,
) -> Work:
    """One step over sequences of so many tokens, the last of which is not computed yet.

    The target verifies all drafts in one pass; a draft model takes a pass for each of them.
    """
    spans = [Attended(num_drafts + 1, context_len + num_drafts) for context_len in context_lens]
    num_logits = len(spans) * (num_drafts + 1)
    work = pass_work(target, itemsize, spans, num_logits=num_logits, kv_itemsize=kv_itemsize)
    if draft is not None:
        for i in range(num_drafts):
            drafted = [Attended(1, context_len + i) for context_len in context_lens]
            work += pass_work(draft, itemsize, drafted, num_logits=len(drafted), kv_itemsize=kv_itemsize)
    return work


def prefill_work(target: ModelConfig, itemsize: int, num_tokens: int, *, kv_itemsize: int | None = None) -> Work:
    """One prompt, up to its first token."""
    return pass_work(target, itemsize, [Attended(num_tokens, num_tokens)], num_logits=1, kv_itemsize=kv_itemsize)


def mean_acceptance_length(rates: Sequence[float], num_drafts: int) -> float:
    """Tokens that a pass is expected to emit: its own, and each draft that is accepted with all before it."""
    return 1.0 + sum(rates[:num_drafts])


def ideal_gain(*, acceptance_length: float, plain_ms: float, verify_ms: float, draft_ms: float) -> float:
    """Tokens a second with drafts to those without, if steps were made of passes alone.

    `draft_ms` is of all draft passes of a step together (Leviathan et al. 2023, theorem 3.8, with measured times in the
    place of equal ones).
    """
    return acceptance_length * plain_ms / (verify_ms + draft_ms)
