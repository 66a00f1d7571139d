"""What `acceptance` prints, and writes as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from specdec.evals.acceptance_group import GroupResult, drafting_of
from specdec.evals.acceptance_rates import AcceptanceRates
from specdec.evals.regions import REGIONS
from specdec.evals.result import EvalResult
from specdec.evals.spread import Spread
from specdec.evals.terminal import Terminal

_MAX_POSITIONS: Final = 8


def show_groups(groups: Sequence[GroupResult], terminal: Terminal) -> None:
    """Speed, acceptance by proposer, by region and by position."""
    arms = [(group, arm) for group in groups for arm in group.arms]
    drafting = drafting_of(groups)
    first_token = ("ms to first",) if any(arm.milliseconds_to_first_token for _, arm in arms) else ()
    terminal.table(
        "speed: medians (95 % interval of the median)",
        (
            "group",
            "at once",
            "arm",
            "tok/s",
            *first_token,
            "ms/token",
            "speed-up",
            "decoding",
            "tokens/pass",
            "valid",
            "differ",
        ),
        (
            (
                group.group,
                str(group.concurrency),
                arm.arm,
                f"{arm.tokens_per_second.median:.1f}",
                *(
                    f"{arm.milliseconds_to_first_token.median:.0f}"
                    for _ in first_token
                    if arm.milliseconds_to_first_token
                ),
                f"{arm.milliseconds_per_token.median:.1f}",
                _interval(arm.speedup),
                _interval(arm.decoding_speedup),
                "" if arm.rates is None else _number(arm.rates.tokens_per_target_pass),
                "" if arm.validity is None else f"{arm.validity['num_valid']}/{_num_finished(arm.validity)}",
                "" if arm is group.arms[0] else f"{arm.num_differing}/{group.num_requests}",
            )
            for group, arm in arms
        ),
    )
    reported = [(group, arm, own) for group, arm in arms if (own := arm.reported) is not None]
    if reported:
        terminal.table(
            "drafts, as the server counts them",
            ("group", "at once", "arm", "drafts", "draft tokens", "accepted", "mean length"),
            (
                (
                    group.group,
                    str(group.concurrency),
                    arm.arm,
                    str(own.num_drafts),
                    str(own.num_draft_tokens),
                    str(own.num_accepted_tokens),
                    _number(own.mean_acceptance_length),
                )
                for group, arm, own in reported
            ),
        )
    if not drafting:
        return
    names = sorted({name for _, _, rates in drafting for name in rates.by_proposer})
    terminal.table(
        "drafts: accepted of those compared, and by proposer (share of all tokens)",
        ("group", "at once", "arm", "accepted", "mean length", "forced", "forbidden", "discarded", *names),
        (
            (
                group.group,
                str(group.concurrency),
                arm.arm,
                _percent(rates.acceptance_rate),
                _number(rates.mean_acceptance_length),
                _percent(rates.forced_share),
                str(rates.num_forbidden_tokens),
                _percent(rates.num_discarded_tokens / rates.num_draft_tokens),
                *(_of_proposer(rates, name) for name in names),
            )
            for group, arm, rates in drafting
        ),
    )
    with_regions = [each for each in drafting if each.rates.by_region]
    if with_regions:
        terminal.table(
            "accepted by what is written (share of those tokens that was drafted)",
            ("group", "at once", "arm", *REGIONS),
            (
                (
                    group.group,
                    str(group.concurrency),
                    arm.arm,
                    *(
                        f"{_percent(own.acceptance_rate)} ({_percent(own.share_drafted)})"
                        for own in (rates.by_region[region] for region in REGIONS)
                    ),
                )
                for group, arm, rates in with_regions
            ),
        )
    num_positions = min(_MAX_POSITIONS, max(len(rates.unconditional_rates) for _, _, rates in drafting))
    terminal.table(
        "accepted by position: of all drafts that long (of those accepted so far) [of all drafts]",
        ("group", "at once", "arm", *(str(position + 1) for position in range(num_positions))),
        (
            (
                group.group,
                str(group.concurrency),
                arm.arm,
                *(_at_position(rates, position) for position in range(num_positions)),
            )
            for group, arm, rates in drafting
        ),
    )


def write_csv(result: EvalResult, path: Path) -> None:
    """One line a group, concurrency and arm."""
    groups = result.figures["groups"]
    assert isinstance(groups, list)
    rows = list(_csv_rows(groups))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def _csv_rows(groups: Sequence[GroupResult]) -> Iterator[dict[str, object]]:
    for group in groups:
        for arm in group.arms:
            row: dict[str, object] = {
                "group": group.group,
                "concurrency": group.concurrency,
                "arm": arm.arm,
                "num_requests": group.num_requests,
                "tokens_per_second": arm.tokens_per_second.median,
                "milliseconds_to_first_token": _median(arm.milliseconds_to_first_token),
                "milliseconds_per_token": arm.milliseconds_per_token.median,
                "speedup": _median(arm.speedup),
                "speedup_low": _bound(arm.speedup, 0),
                "speedup_high": _bound(arm.speedup, 1),
                "decoding_speedup": _median(arm.decoding_speedup),
                "num_differing": arm.num_differing,
                "num_valid": None if arm.validity is None else arm.validity["num_valid"],
            }
            yield row if arm.rates is None else row | _csv_rates(arm.rates)


def _csv_rates(rates: AcceptanceRates) -> dict[str, object]:
    row: dict[str, object] = {
        "num_tokens": rates.num_generated_tokens,
        "num_target_passes": rates.num_target_passes,
        "num_drafts": rates.num_drafts,
        "num_draft_tokens": rates.num_draft_tokens,
        "num_accepted_tokens": rates.num_accepted_tokens,
        "num_rejected_tokens": rates.num_rejected_tokens,
        "num_discarded_tokens": rates.num_discarded_tokens,
        "num_forbidden_tokens": rates.num_forbidden_tokens,
        "acceptance_rate": rates.acceptance_rate,
        "mean_acceptance_length": rates.mean_acceptance_length,
        "tokens_per_target_pass": rates.tokens_per_target_pass,
        "forced_share": rates.forced_share,
    }
    for name, own in rates.by_proposer.items():
        row[f"acceptance_rate_{name}"] = own.acceptance_rate
        row[f"share_of_tokens_{name}"] = own.share_of_tokens
    for region, of_region in rates.by_region.items():
        row[f"acceptance_rate_{region}"] = of_region.acceptance_rate
        row[f"share_drafted_{region}"] = of_region.share_drafted
    for position, rate in enumerate(rates.conditional_rates):
        row[f"conditional_rate_{position + 1}"] = rate
    return row


def _of_proposer(rates: AcceptanceRates, name: str) -> str:
    own = rates.by_proposer.get(name)
    return "" if own is None else f"{_percent(own.acceptance_rate)} ({_percent(own.share_of_tokens)})"


def _at_position(rates: AcceptanceRates, position: int) -> str:
    if position >= len(rates.unconditional_rates):
        return ""
    parts = (
        rates.unconditional_rates[position],
        rates.conditional_rates[position],
        rates.per_draft_rates[position],
    )
    of_long, of_accepted, of_all = ("-" if rate is None else f"{100 * rate:.0f}" for rate in parts)
    return f"{of_long} ({of_accepted}) [{of_all}]"


def _num_finished(validity: dict[str, object]) -> int:
    answers, cut = validity["num_answers"], validity["num_cut_by_length"]
    assert isinstance(answers, int)
    assert isinstance(cut, int)
    return answers - cut


def _interval(spread: Spread | None) -> str:
    if spread is None:
        return ""
    low, high = spread.interval or (spread.low, spread.high)
    return f"{spread.median:.2f} ({low:.2f} to {high:.2f})"


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median


def _bound(spread: Spread | None, which: int) -> float | None:
    return None if spread is None else (spread.interval or (spread.low, spread.high))[which]


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
