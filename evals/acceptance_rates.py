"""AcceptanceRates: what became of drafts, by the definitions of the field.

    acceptance rate          accepted / (accepted + rejected)
    mean acceptance length   1 + accepted / drafts
    per position, i from 0   drafted_i: drafts that reached position i; accepted_i: drafts accepted up to and with i
      unconditional          accepted_i / drafted_i
      conditional            accepted_i / drafts that reached i with all before it accepted

A draft token after a rejection is discarded, so "reached i with all before it accepted" is bounded by accepted_(i-1);
where drafts differ in length it is fewer, and the counts per position alone do not say how many fewer. The conditional
rate is therefore reported against min(accepted_(i-1), drafted_i), which is exact for drafts of one length and a lower
bound for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise, zip_longest

import msgspec

from specdec.request import SpeculationStats


class AcceptanceRates(msgspec.Struct, frozen=True, kw_only=True):
    """Rates over any number of answers; None where nothing was drafted."""

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_rejected_tokens: int
    num_discarded_tokens: int
    num_target_passes: int
    num_generated_tokens: int
    acceptance_rate: float | None
    mean_acceptance_length: float | None
    tokens_per_target_pass: float | None
    num_drafted_per_position: tuple[int, ...]
    num_accepted_per_position: tuple[int, ...]
    unconditional_rates: tuple[float, ...]
    conditional_rates: tuple[float | None, ...]
    """None at a position that no draft reached with everything before it accepted."""


def acceptance_rates(stats: SpeculationStats, *, num_generated_tokens: int) -> AcceptanceRates:
    """Rates from counts, taken as they are: whether they can be right is for `broken_sum_rule` to say."""
    accepted, drafted = stats.num_accepted_per_position, stats.num_drafted_per_position
    previous = (stats.num_drafts, *accepted)
    return AcceptanceRates(
        num_drafts=stats.num_drafts,
        num_draft_tokens=stats.num_draft_tokens,
        num_accepted_tokens=stats.num_accepted_tokens,
        num_rejected_tokens=stats.num_rejected_tokens,
        num_discarded_tokens=stats.num_discarded_tokens,
        num_target_passes=stats.num_target_passes,
        num_generated_tokens=num_generated_tokens,
        acceptance_rate=_ratio(stats.num_accepted_tokens, stats.num_accepted_tokens + stats.num_rejected_tokens),
        mean_acceptance_length=1 + stats.num_accepted_tokens / stats.num_drafts if stats.num_drafts else None,
        tokens_per_target_pass=_ratio(num_generated_tokens, stats.num_target_passes),
        num_drafted_per_position=drafted,
        num_accepted_per_position=accepted,
        unconditional_rates=tuple(a / d for a, d in zip(accepted, drafted, strict=False)),
        conditional_rates=tuple(
            _ratio(a, min(d, before)) for a, d, before in zip(accepted, drafted, previous, strict=False)
        ),
    )


def sum_stats(parts: Iterable[SpeculationStats]) -> SpeculationStats:
    """The counts of several answers together."""
    total = SpeculationStats()
    for part in parts:
        total = SpeculationStats(
            num_drafts=total.num_drafts + part.num_drafts,
            num_draft_tokens=total.num_draft_tokens + part.num_draft_tokens,
            num_accepted_tokens=total.num_accepted_tokens + part.num_accepted_tokens,
            num_rejected_tokens=total.num_rejected_tokens + part.num_rejected_tokens,
            num_discarded_tokens=total.num_discarded_tokens + part.num_discarded_tokens,
            num_target_passes=total.num_target_passes + part.num_target_passes,
            num_drafted_per_position=_add(total.num_drafted_per_position, part.num_drafted_per_position),
            num_accepted_per_position=_add(total.num_accepted_per_position, part.num_accepted_per_position),
        )
    return total


def broken_sum_rule(stats: SpeculationStats) -> str | None:
    """Which count contradicts another; None where every drafted token ended as exactly one thing."""
    parts = (stats.num_accepted_tokens, stats.num_rejected_tokens, stats.num_discarded_tokens)
    drafted, accepted = stats.num_drafted_per_position, stats.num_accepted_per_position
    if min(parts) < 0 or sum(parts) != stats.num_draft_tokens:
        return (
            f"{stats.num_draft_tokens} tokens were drafted, but {parts[0]} accepted, {parts[1]} rejected and "
            f"{parts[2]} discarded"
        )
    if stats.num_rejected_tokens > stats.num_drafts:
        return f"{stats.num_rejected_tokens} tokens rejected in {stats.num_drafts} drafts: more than one a draft"
    if sum(drafted) != stats.num_draft_tokens or sum(accepted) != stats.num_accepted_tokens:
        return (
            f"the counts per position add up to {sum(drafted)} drafted and {sum(accepted)} accepted, not to "
            f"{stats.num_draft_tokens} and {stats.num_accepted_tokens}"
        )
    if len(drafted) != len(accepted) or any(a > d for a, d in zip(accepted, drafted, strict=True)):
        return f"accepted per position {accepted} exceeds drafted per position {drafted}"
    if any(later > earlier for counts in (drafted, accepted) for earlier, later in pairwise(counts)):
        return f"a later position has more than an earlier one: drafted {drafted}, accepted {accepted}"
    return None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _add(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip_longest(a, b, fillvalue=0))
