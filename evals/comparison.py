"""Difference: where an answer leaves the plain one, and how near the plain engine was to going the same way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import msgspec

from specdec.request import CompletionOutput


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing in which two answers to one request differ."""

    task: str
    what: str
    """tokens, finish reason or text"""
    position: int | None = None
    """Index among the generated tokens; None where the tokens are the same."""
    plain: str = ""
    other: str = ""
    logprob_gap: float | None = None
    """How much likelier the plain engine's raw logits made its own token than the other one."""
    note: str = ""


def first_difference(task: str, plain: CompletionOutput, other: CompletionOutput) -> Difference | None:
    """None for equal tokens, finish reason and text; `plain` carries top log-probabilities for the gap."""
    for position, (own, others) in enumerate(zip_longest(plain.token_ids, other.token_ids)):
        if own != others:
            gap, note = _gap(plain, position, others)
            return Difference(
                task=task,
                what="tokens",
                position=position,
                plain=str(own),
                other=str(others),
                logprob_gap=gap,
                note=note,
            )
    if plain.finish_reason != other.finish_reason:
        return Difference(
            task=task, what="finish reason", plain=str(plain.finish_reason), other=str(other.finish_reason)
        )
    if plain.text != other.text:
        return Difference(task=task, what="text", plain=plain.text, other=other.text)
    return None


def same_tokens(own: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """Tokens until two answers of one length first differ, as a share of all, on average over pairs of answers."""
    shares = []
    for a, b in zip(own, other, strict=True):
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
        shares.append(same / len(a))
    return sum(shares) / len(shares)


def _gap(plain: CompletionOutput, position: int, other_id: int | None) -> tuple[float | None, str]:
    if position >= len(plain.token_ids):
        return None, "the plain answer had ended"
    if other_id is None:
        return None, "the other answer had ended"
    if plain.logprobs is None:
        return None, "no log-probabilities were asked for"
    at = plain.logprobs[position]
    for candidate in at.top:
        if candidate.token_id == other_id:
            return at.logprob - candidate.logprob, ""
    return None, f"not within the top {len(at.top)}"
