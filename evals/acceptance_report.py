"""The report of `acceptance`: one HTML file with its plots in it, to be opened anywhere."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from specdec.errors import ConfigError
from specdec.evals.acceptance_group import ArmResult, ColouredToken, Drafting, GroupResult, drafting_of
from specdec.evals.regions import REGIONS
from specdec.evals.result import EvalResult
from specdec.evals.spread import Spread
from specdec.proposer_colours import COLOURS
from specdec.speculative import PROPOSERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_POSITIONS: Final = 12
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: .25rem .6rem; text-align: right; }
th { border-bottom: 1px solid #999; } td:first-child, th:first-child { text-align: left; }
tr:nth-child(even) { background: #f5f5f5; } .failed { color: #b00020; } .note { color: #666; }
.answer { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.answer span { border-radius: 3px; color: #fff; } .key span { border-radius: 3px; color: #fff; padding: 0 .4rem; }
svg { max-width: 100%; height: auto; }
"""


def write_report(result: EvalResult, path: Path) -> None:
    """Write the report of an `acceptance` result. Raises ConfigError where no plots can be drawn."""
    path.write_text(report_of(result), encoding="utf-8")


def report_of(result: EvalResult) -> str:
    """The HTML."""
    groups = result.figures["groups"]
    assert isinstance(groups, list)
    drafting = drafting_of(groups)
    parts = [
        f"<h1>What speculation gains: {html.escape(str(result.settings['model']))}</h1>",
        f"<p class=note>{html.escape(_conditions(result))}</p>",
        *(f"<p class=failed>failed: {html.escape(failure)}</p>" for failure in result.failures),
        *(f"<p class=note>{html.escape(warning)}</p>" for warning in result.warnings),
        "<h2>Speed-up over plain decoding</h2>",
        (
            "<p class=note>Tokens a second, beside a plain run of the same requests; lines are the 95 % interval of "
            "the median. Left of 1 is a loss.</p>"
        ),
        _plot(_draw_speedups, groups),
        _speed_table(groups),
    ]
    if drafting:
        parts += [
            "<h2>Where tokens came from</h2>",
            (
                "<p class=note>Of all tokens of the answers: those that a proposer drafted and the target accepted, "
                "and those that the target had to draw by itself.</p>"
            ),
            _plot(_draw_shares, drafting),
            "<h2>Accepted, by position in the draft</h2>",
            "<p class=note>Of the drafts whose tokens before it were all accepted.</p>",
            _plot(_draw_positions, drafting),
        ]
    if any(each.rates.by_region for each in drafting):
        parts += [
            "<h2>Accepted, by what is being written</h2>",
            (
                "<p class=note>Of the draft tokens that were compared; above each bar, the share of such tokens that "
                "was drafted.</p>"
            ),
            _plot(_draw_regions, drafting),
        ]
    parts += [_examples(groups)]
    title = "specdec: acceptance"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _conditions(result: EvalResult) -> str:
    settings, environment = result.settings, result.environment
    if "url" in settings:
        return f"{settings['url']}, temperature {settings['temperature']:g}; asked from {environment.processor}"
    exact = "exact arithmetic" if settings["exact"] else "fast arithmetic"
    draft = f", draft {settings['draft']}" if settings["draft"] else ""
    return (
        f"{settings['dtype']}, {exact}, temperature {settings['temperature']:g}{draft}; {environment.num_threads} "
        f"threads of {environment.processor}"
    )


def _plot(draw: Any, data: Sequence[Any]) -> str:
    """An SVG element (Any: each drawing takes its own data)."""
    try:
        from matplotlib import rc_context  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("plots need matplotlib; install specdec-engine[reports]", flag="--html") from error
    with rc_context({"svg.fonttype": "none", "font.size": 10, "svg.hashsalt": "specdec"}):
        figure = Figure(figsize=(10, 1), layout="constrained")
        draw(figure, data)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    text = target.getvalue()
    return text[text.index("<svg") :]


def _draw_speedups(figure: Figure, groups: Sequence[GroupResult]) -> None:
    rows = [(group, arm, arm.speedup) for group in groups for arm in group.arms if arm.speedup is not None]
    figure.set_size_inches(10, 1.0 + 0.32 * len(rows))
    axes = figure.subplots()
    for i, (_, _, speedup) in enumerate(rows):
        low, high = _interval(speedup)
        colour = "#2a9d57" if low >= 1 else "#d1483f" if high < 1 else "#888888"
        axes.barh(i, speedup.median - 1, left=1, color=colour, height=0.7)
        axes.plot([low, high], [i, i], color="black", linewidth=1)
        axes.annotate(f"{speedup.median:.2f}", (max(high, 1.0), i), xytext=(4, -4), textcoords="offset points")
    axes.axvline(1, color="black", linewidth=1)
    _label_rows(axes, [_label(group, arm) for group, arm, _ in rows])
    axes.set_xlabel("times plain decoding")
    axes.margins(x=0.12)


def _draw_shares(figure: Figure, drafting: Sequence[Drafting]) -> None:
    figure.set_size_inches(10, 1.2 + 0.32 * len(drafting))
    axes = figure.subplots()
    names = [name for name in PROPOSERS if any(name in rates.by_proposer for _, _, rates in drafting)]
    left = [0.0] * len(drafting)
    for name in names:
        shares = [
            rates.by_proposer[name].share_of_tokens if name in rates.by_proposer else 0.0 for _, _, rates in drafting
        ]
        axes.barh(range(len(drafting)), shares, left=left, color=COLOURS[name], label=name, height=0.7)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    axes.barh(range(len(drafting)), [1 - each for each in left], left=left, color="#dddddd", label="target", height=0.7)
    _label_rows(axes, [_label(group, arm) for group, arm, _ in drafting])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of tokens")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35 / (1 + 0.1 * len(drafting))), ncols=len(names) + 1)


def _draw_positions(figure: Figure, drafting: Sequence[Drafting]) -> None:
    lines = [each for each in drafting if each.group.concurrency == drafting[0].group.concurrency]
    figure.set_size_inches(10, 4)
    axes = figure.subplots()
    for group, arm, rates in lines:
        accepted = [rate for rate in rates.conditional_rates[:_MAX_POSITIONS] if rate is not None]
        axes.plot(range(1, len(accepted) + 1), accepted, marker="o", markersize=4, label=f"{group.group}: {arm.arm}")
    axes.set_ylim(0, 1.03)
    axes.set_xticks(range(1, _MAX_POSITIONS + 1))
    axes.set_xlabel("position in the draft")
    axes.set_ylabel("accepted")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)


def _draw_regions(figure: Figure, drafting: Sequence[Drafting]) -> None:
    shown = [
        each for each in drafting if each.rates.by_region and each.group.concurrency == drafting[0].group.concurrency
    ]
    figure.set_size_inches(10, 4)
    axes = figure.subplots()
    width = 0.8 / len(shown)
    for i, (group, arm, rates) in enumerate(shown):
        own = [rates.by_region[region] for region in REGIONS]
        places = [j + (i - (len(shown) - 1) / 2) * width for j in range(len(REGIONS))]
        heights = [each.acceptance_rate or 0.0 for each in own]
        axes.bar(places, heights, width=width, label=f"{group.group}: {arm.arm}")
        for place, height, each in zip(places, heights, own, strict=True):
            share = "" if each.share_drafted is None else f"{100 * each.share_drafted:.0f} %"
            axes.annotate(share, (place, height), ha="center", xytext=(0, 2), textcoords="offset points", fontsize=7)
    axes.set_xticks(range(len(REGIONS)), REGIONS)
    axes.set_ylim(0, 1.1)
    axes.set_ylabel("accepted")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _speed_table(groups: Sequence[GroupResult]) -> str:
    rows = [
        (
            group.group,
            str(group.concurrency),
            arm.arm,
            f"{arm.tokens_per_second.median:.1f}",
            f"{arm.milliseconds_per_token.median:.1f}",
            "" if arm.speedup is None else f"{arm.speedup.median:.2f}",
            "" if arm.decoding_speedup is None else f"{arm.decoding_speedup.median:.2f}",
            "" if arm.rates is None else _number(arm.rates.tokens_per_target_pass),
            "" if arm.rates is None else _percent(arm.rates.acceptance_rate),
            "" if arm.validity is None else f"{arm.validity['num_valid']}",
        )
        for group in groups
        for arm in group.arms
    ]
    names = ("group", "at once", "arm", "tok/s", "ms/token", "speed-up", "decoding", "tokens/pass", "accepted", "valid")
    return _table(names, rows)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _examples(groups: Sequence[GroupResult]) -> str:
    """One answer of each arm that drafts, each token in the colour of who drafted it."""
    parts = ["<h2>Answers, by who drafted each token</h2>"]
    key = " ".join(f'<span style="background:{colour}">{name}</span>' for name, colour in COLOURS.items())
    parts.append(f"<p class=key>{key} and, without a colour, what the target drew by itself</p>")
    seen: set[tuple[str, str]] = set()
    for group in groups:
        for arm in group.arms:
            drafts = arm.rates is not None and arm.rates.num_draft_tokens > 0
            if not drafts or not arm.example or (group.group, arm.arm) in seen:
                continue
            seen.add((group.group, arm.arm))
            tokens = "".join(map(_coloured, arm.example))
            parts.append(f"<p class=note>{html.escape(_label(group, arm))}</p><div class=answer>{tokens}</div>")
    return "".join(parts)


def _coloured(token: ColouredToken) -> str:
    text = html.escape(token.text)
    if token.proposer is None:
        return text
    return f'<span style="background:{COLOURS[token.proposer]}" title="{token.proposer}">{text}</span>'


def _label(group: GroupResult, arm: ArmResult) -> str:
    return f"{group.group}, {group.concurrency} at once: {arm.arm}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.0f} %"


def _interval(spread: Spread) -> tuple[float, float]:
    return spread.interval or (spread.low, spread.high)
