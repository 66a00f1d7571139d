"""AcceptanceRates: what became of drafts, by the definitions of the field.

    acceptance rate          accepted / (accepted + rejected)
    mean acceptance length   1 + accepted / drafts
    per position, i from 0   drafted_i: drafts that reached position i; compared_i: those whose tokens before it were
                             all accepted, and whose answer had not ended; accepted_i: those accepted up to and with i
      unconditional          accepted_i / drafted_i
      conditional            accepted_i / compared_i
      per draft              accepted_i / drafts, whatever their length: what a proposer is worth that stops early

A draft token after a rejection is discarded. A token is written in one region (regions.py): that of the token which the
answer has there, whoever drew it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, zip_longest
from typing import TypeVar

import msgspec

from specdec.evals.regions import REGIONS, Region
from specdec.request import CompletionOutput, DraftTrace, ProposerStats, SpeculationStats

S = TypeVar("S", SpeculationStats, ProposerStats)


class Pass(msgspec.Struct, frozen=True):
    """One target pass over one answer."""

    draft: DraftTrace
    emitted: tuple[int, ...]
    """The accepted tokens, and the target's own unless the answer ended with them."""
    first: int
    """Where they stand in the answer."""

    @property
    def num_compared(self) -> int:
        """Draft tokens that were held against the target's: the accepted ones and the rejected one."""
        return min(len(self.draft.token_ids), len(self.emitted))


def passes_of(choice: CompletionOutput) -> Iterator[Pass]:
    """The passes that gave a traced answer."""
    first = 0
    for draft in choice.drafts:
        emitted = choice.token_ids[first : first + draft.num_accepted + 1]
        yield Pass(draft, emitted, first)
        first += len(emitted)


class ProposerRates(msgspec.Struct, frozen=True, kw_only=True):
    """One proposer's part."""

    num_draft_tokens: int
    num_accepted_tokens: int
    num_rejected_tokens: int
    num_discarded_tokens: int
    acceptance_rate: float | None
    share_of_tokens: float
    """Of all tokens of the answers, those that it had drafted and that were accepted."""


class RegionRates(msgspec.Struct, frozen=True, kw_only=True):
    """What was written in one region."""

    num_tokens: int
    num_crossing: int
    """Tokens that go on into another region."""
    num_compared: int
    """Draft tokens that stood here and were held against the target's."""
    num_accepted: int
    acceptance_rate: float | None
    share_drafted: float | None
    """Of the tokens here, those that had been drafted."""


class AcceptanceRates(msgspec.Struct, frozen=True, kw_only=True):
    """Rates over any number of answers; None where nothing was drafted."""

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_rejected_tokens: int
    num_discarded_tokens: int
    num_forbidden_tokens: int
    """Drafted without the grammar's mask, and forbidden by it."""
    num_target_passes: int
    num_generated_tokens: int
    acceptance_rate: float | None
    mean_acceptance_length: float | None
    tokens_per_target_pass: float | None
    forced_share: float
    """Of all tokens, those that the grammar had forced and that were accepted as drafts."""
    num_drafted_per_position: tuple[int, ...]
    num_compared_per_position: tuple[int, ...]
    num_accepted_per_position: tuple[int, ...]
    unconditional_rates: tuple[float, ...]
    conditional_rates: tuple[float | None, ...]
    """None at a position that was never compared."""
    per_draft_rates: tuple[float, ...]
    by_proposer: dict[str, ProposerRates]
    by_region: dict[Region, RegionRates]
    """Empty for texts that are not JSON."""


def acceptance_rates(
    choices: Sequence[CompletionOutput], regions: Sequence[Sequence[tuple[Region, bool]]] | None = None
) -> AcceptanceRates:
    """Rates of traced answers, taken as they are: whether they can be right is for `broken_sum_rule` to say.

    `regions` holds, for each answer, those of its tokens (regions.token_regions).
    """
    stats = sum_stats(choice.speculation for choice in choices)
    num_tokens = sum(len(choice.token_ids) for choice in choices)
    passes = [each for choice in choices for each in passes_of(choice)]
    drafted, accepted = stats.num_drafted_per_position, stats.num_accepted_per_position
    compared = tuple(sum(each.num_compared > i for each in passes) for i in range(len(drafted)))
    return AcceptanceRates(
        num_drafts=stats.num_drafts,
        num_draft_tokens=stats.num_draft_tokens,
        num_accepted_tokens=stats.num_accepted_tokens,
        num_rejected_tokens=stats.num_rejected_tokens,
        num_discarded_tokens=stats.num_discarded_tokens,
        num_forbidden_tokens=sum(each.draft.is_last_forbidden for each in passes),
        num_target_passes=stats.num_target_passes,
        num_generated_tokens=num_tokens,
        acceptance_rate=_ratio(stats.num_accepted_tokens, stats.num_accepted_tokens + stats.num_rejected_tokens),
        mean_acceptance_length=1 + stats.num_accepted_tokens / stats.num_drafts if stats.num_drafts else None,
        tokens_per_target_pass=_ratio(num_tokens, stats.num_target_passes),
        forced_share=_share(stats, "grammar", num_tokens),
        num_drafted_per_position=drafted,
        num_compared_per_position=compared,
        num_accepted_per_position=accepted,
        unconditional_rates=tuple(a / d for a, d in zip(accepted, drafted, strict=True)),
        conditional_rates=tuple(_ratio(a, c) for a, c in zip(accepted, compared, strict=True)),
        per_draft_rates=tuple(a / stats.num_drafts for a in accepted),
        by_proposer={
            name: ProposerRates(
                num_draft_tokens=own.num_draft_tokens,
                num_accepted_tokens=own.num_accepted_tokens,
                num_rejected_tokens=own.num_rejected_tokens,
                num_discarded_tokens=own.num_discarded_tokens,
                acceptance_rate=_ratio(own.num_accepted_tokens, own.num_accepted_tokens + own.num_rejected_tokens),
                share_of_tokens=_share(stats, name, num_tokens),
            )
            for name, own in sorted(stats.by_proposer.items())
        },
        by_region={} if regions is None else _by_region(choices, regions),
    )


def _by_region(
    choices: Sequence[CompletionOutput], regions: Sequence[Sequence[tuple[Region, bool]]]
) -> dict[Region, RegionRates]:
    num_tokens, num_crossing, num_compared, num_accepted = (dict.fromkeys(REGIONS, 0) for _ in range(4))
    for choice, own in zip(choices, regions, strict=True):
        for region, is_crossing in own:
            num_tokens[region] += 1
            num_crossing[region] += is_crossing
        for each in passes_of(choice):
            for i in range(each.num_compared):
                region = own[each.first + i][0]
                num_compared[region] += 1
                num_accepted[region] += i < each.draft.num_accepted
    return {
        region: RegionRates(
            num_tokens=num_tokens[region],
            num_crossing=num_crossing[region],
            num_compared=num_compared[region],
            num_accepted=num_accepted[region],
            acceptance_rate=_ratio(num_accepted[region], num_compared[region]),
            share_drafted=_ratio(num_accepted[region], num_tokens[region]),
        )
        for region in REGIONS
    }


def sum_stats(parts: Iterable[SpeculationStats]) -> SpeculationStats:
    """The counts of several answers together."""
    total = SpeculationStats()
    by_proposer: dict[str, ProposerStats] = {}
    for part in parts:
        total = _sum(total, part)
        for name, own in part.by_proposer.items():
            by_proposer[name] = _sum(by_proposer.get(name, ProposerStats()), own)
    return msgspec.structs.replace(total, by_proposer=by_proposer)


def _sum(one: S, other: S) -> S:
    """Field by field: counts, and counts per position."""
    changes = {}
    for name in one.__struct_fields__:
        mine, theirs = getattr(one, name), getattr(other, name)
        if isinstance(mine, int):
            changes[name] = mine + theirs
        elif isinstance(mine, tuple):
            changes[name] = tuple(x + y for x, y in zip_longest(mine, theirs, fillvalue=0))
    return msgspec.structs.replace(one, **changes)


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
    for name in ("num_draft_tokens", "num_accepted_tokens", "num_rejected_tokens", "num_discarded_tokens"):
        whole, own = getattr(stats, name), [getattr(each, name) for each in stats.by_proposer.values()]
        if sum(own) != whole or min(own, default=0) < 0:
            return f"{name} is {whole}, but {own} by proposer"
    return None


def _share(stats: SpeculationStats, proposer: str, num_tokens: int) -> float:
    own = stats.by_proposer.get(proposer)
    return 0.0 if own is None or not num_tokens else own.num_accepted_tokens / num_tokens


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
