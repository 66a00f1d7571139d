"""Tables of an engine's bench, for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specdec.evals.bench_engine_points import DecodePoint, PrefillPoint
from specdec.evals.terminal import Terminal


def show(decoded: Sequence[DecodePoint], prefilled: Sequence[PrefillPoint], terminal: Terminal) -> None:
    """A table for each context, with a column a point; then a row a prompt."""
    for context in dict.fromkeys(point.context for point in decoded):
        points = [point for point in decoded if point.context == context]
        rows = [row for row in _ROWS if any(row[1](point) != "-" for point in points)]
        terminal.table(
            f"decoding after {context} tokens, a step: medians",
            ("", *(_label(point) for point in points)),
            [(name, *(figure(point) for point in points)) for name, figure in rows],
        )
    if prefilled:
        terminal.table(
            "one prompt, to its first token",
            ("", "steps", "ms: median (range)", "tokens/s", "in passes, ms", "beside, ms", "TFLOP", "of product"),
            [
                (
                    f"{point.num_tokens} tokens",
                    str(point.num_steps),
                    str(point.ms),
                    f"{point.tokens_per_s:.0f}",
                    f"{point.pass_ms:.2f}",
                    f"{point.overhead_ms:.2f}",
                    f"{point.work.num_flops / 1e12:.3f}",
                    f"{100 * point.share_of_matmul:.1f} %",
                )
                for point in prefilled
            ],
        )


def _label(point: DecodePoint) -> str:
    return f"batch {point.batch}" + (f", K={point.num_drafts}" if point.num_drafts else "")


def _ms(of: Callable[[DecodePoint], float | None]) -> Callable[[DecodePoint], str]:
    def figure(point: DecodePoint) -> str:
        value = of(point)
        return "-" if value is None else f"{value:.3f}"

    return figure


def _gain(of: Callable[[DecodePoint], float | None]) -> Callable[[DecodePoint], str]:
    def figure(point: DecodePoint) -> str:
        value = of(point)
        return "-" if value is None else f"{value:.2f}x"

    return figure


def _acceptance(point: DecodePoint) -> str:
    if not point.num_drafts:
        return "-"
    return f"{point.acceptance_length:.2f} ({point.expected_acceptance_length:.2f})"


_ROWS: Sequence[tuple[str, Callable[[DecodePoint], str]]] = (
    ("tokens/s", lambda point: f"{point.tokens_per_s:.1f}"),
    ("ms a step (range)", lambda point: str(point.ms_per_step)),
    ("the target's pass, ms", _ms(lambda point: point.target_pass_ms)),
    ("a draft model's pass, ms", _ms(lambda point: point.draft_pass_ms)),
    ("all of these, ms", _ms(lambda point: point.draft_ms if point.draft_pass_ms is not None else None)),
    ("outside the passes, ms", _ms(lambda point: point.overhead_ms)),
    ("kernels and copies, ms", _ms(lambda point: point.kernel_ms)),
    (
        "outside kernels and copies, ms",
        _ms(lambda point: None if point.kernel_ms is None else point.ms_per_step.median - point.kernel_ms),
    ),
    ("weights, keys and values, MB", lambda point: f"{point.work.num_bytes / 1e6:.1f}"),
    ("of the copy's bandwidth", lambda point: f"{100 * point.share_of_copy:.1f} %"),
    ("of the product's rate", lambda point: f"{100 * point.share_of_matmul:.1f} %"),
    ("tokens of a pass (by the rates)", _acceptance),
    ("gain over no drafts", _gain(lambda point: point.gain)),
    ("gain if passes were all", _gain(lambda point: point.ideal_gain)),
)
