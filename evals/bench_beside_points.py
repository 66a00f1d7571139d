"""The points of a bench beside another library: how long each side took, and their ratio."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from specdec.evals.spread import Spread
from specdec.evals.terminal import Terminal


@dataclass(slots=True)
class SideTimes:
    """In seconds, in the order measured; the sides took turns."""

    to_first_token: list[float] = field(default_factory=list)
    """Of the whole batch: prompts, and one token each."""
    whole: list[float] = field(default_factory=list)


class SidePoint(msgspec.Struct, frozen=True, kw_only=True):
    seconds: Spread
    """From the first request to the last token."""
    first_token_s: Spread
    tokens_per_s: float
    ms_per_step: float
    """Of decoding: what the tokens after the first took, by medians."""

    @classmethod
    def of(cls, times: SideTimes, batch: int, num_new_tokens: int) -> SidePoint:
        seconds, first = Spread.of(times.whole), Spread.of(times.to_first_token)
        return cls(
            seconds=seconds,
            first_token_s=first,
            tokens_per_s=batch * num_new_tokens / seconds.median,
            ms_per_step=1000 * (seconds.median - first.median) / (num_new_tokens - 1),
        )


class WayPoint(msgspec.Struct, frozen=True, kw_only=True):
    way: str
    attention: str
    """As the library calls it."""
    times: SidePoint
    ratio: Spread
    """Tokens a second of ours to theirs, of each pair of neighbouring runs."""
    first_token_ratio: float
    """Of the medians: above 1 where we are faster."""
    step_ratio: float
    """Likewise."""
    same_tokens: float
    """Until the two first differ, as a share of all; low precision parts them at near ties."""

    @classmethod
    def of(
        cls,
        *,
        way: str,
        attention: str,
        own: tuple[SideTimes, SidePoint],
        other: SideTimes,
        batch: int,
        num_new_tokens: int,
        same: float,
    ) -> WayPoint:
        times = SidePoint.of(other, batch, num_new_tokens)
        own_times, own_point = own
        return cls(
            way=way,
            attention=attention,
            times=times,
            ratio=Spread.of([theirs / ours for ours, theirs in zip(own_times.whole, other.whole, strict=True)]),
            first_token_ratio=statistics.median(other.to_first_token) / own_point.first_token_s.median,
            step_ratio=times.ms_per_step / own_point.ms_per_step,
            same_tokens=same,
        )


class BesidePoint(msgspec.Struct, frozen=True, kw_only=True):
    batch: int
    context: int
    """Tokens of a prompt."""
    num_new_tokens: int
    own: SidePoint
    ways: tuple[WayPoint, ...]


def show(points: Sequence[BesidePoint], terminal: Terminal) -> None:
    """A table for each point, with a row a side."""
    for point in points:
        terminal.table(
            f"batch {point.batch}: prompts of {point.context} tokens, {point.num_new_tokens} new ones each; medians",
            ("", "s (range)", "tokens/s", "s to the first", "ms a step", "ratio (range)", "of a step", "same tokens"),
            [
                ("specdec", *_times(point.own), "", "", ""),
                *(
                    (
                        f"{way.way} ({way.attention})",
                        *_times(way.times),
                        f"{way.ratio}x",
                        f"{way.step_ratio:.2f}x",
                        f"{100 * way.same_tokens:.0f} %",
                    )
                    for way in point.ways
                ),
            ],
        )


def _times(times: SidePoint) -> tuple[str, str, str, str]:
    return (
        str(times.seconds),
        f"{times.tokens_per_s:.1f}",
        str(times.first_token_s),
        f"{times.ms_per_step:.3f}",
    )
