"""MaskMeasurement: the times of one engine, over all texts that it takes or over some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from specdec.evals.mask_texts import TokenizedCase
from specdec.evals.mask_worker import SchemaTimes, TextTimes
from specdec.evals.percentiles import Percentiles

TextKey = tuple[int, int, int]
"""Case, text, and the rendering that was accepted: engines that share a key took the same tokens."""
_NUM_SLOWEST = 10


@dataclass(slots=True)
class MaskMeasurement:
    num_schemas: int = 0
    num_texts: int = 0
    compile_ms: dict[int, float] = field(default_factory=dict)
    """By case."""
    times: dict[TextKey, TextTimes] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)
    num_refused_texts: int = 0
    """Of schemas that compiled."""
    table: tuple[int, int] | None = None

    def add(self, number: int, case: TokenizedCase, timed: SchemaTimes) -> None:
        """The times of the suite's case of this number."""
        self.num_schemas += 1
        self.num_texts += len(case.texts)
        self.table = timed.table or self.table
        if timed.compile_ms is not None:
            self.compile_ms[number] = timed.compile_ms
        if timed.refusal is not None:
            message = f"{case.case.name}: {timed.refusal.reason}"
            if timed.refusal.is_disagreement:
                self.disagreements.append(message)
            elif timed.refusal.is_fault:
                self.faults.append(message)
            else:
                self.refusals[timed.refusal.reason] += 1
        for i, text in enumerate(timed.texts):
            if text.rendering is None:
                self.num_refused_texts += 1
            else:
                self.times[number, i, text.rendering] = text

    def all_times(self) -> dict[str, object]:
        """Percentiles over all texts that it took, and over all compiles."""
        return self._figures(self.times, self.compile_ms)

    def times_of(self, keys: Collection[TextKey]) -> dict[str, object]:
        """Percentiles over these texts, which it took, and over the compiles of their schemas."""
        return self._figures(keys, sorted({number for number, _, _ in keys}))

    def _figures(self, keys: Collection[TextKey], cases: Collection[int]) -> dict[str, object]:
        chosen = [self.times[key] for key in keys]
        whole = [text.whole for text in chosen if text.whole is not None]
        warm = [text.warm for text in chosen if text.warm is not None]
        guarded = [text.guarded for text in chosen if text.guarded is not None]
        cold = [each.mask[each.is_cold] for each in whole if each.is_cold is not None]
        mask_us = {
            "whole": Percentiles.of_nanoseconds(each.mask for each in (*whole, *guarded)),
            "warm": Percentiles.of_nanoseconds(each.mask for each in warm),
        }
        if guarded:
            mask_us["unguarded"] = Percentiles.of_nanoseconds(each.mask for each in whole)
            mask_us["guarded"] = Percentiles.of_nanoseconds(each.mask for each in guarded)
        if len(cold) == len(whole):
            mask_us["cold"] = Percentiles.of_nanoseconds(cold)
        return {
            "mask_us": mask_us,
            "advance_us": Percentiles.of_nanoseconds(each.advance for each in whole),
            "compile_ms": Percentiles.of(np.array([self.compile_ms[number] for number in cases], np.float64)),
        }

    def counts(self) -> dict[str, object]:
        return {
            "schemas": self.num_schemas,
            "compiled": len(self.compile_ms),
            "refused_schemas": dict(self.refusals.most_common()),
            "texts": self.num_texts,
            "accepted_texts": len(self.times),
            "refused_texts": self.num_refused_texts,
            "guarded_texts": sum(text.guarded is not None for text in self.times.values()),
            "second_renderings": sum(rendering > 0 for _, _, rendering in self.times),
            "faults": self.faults,
            "disagreements": self.disagreements,
        }

    def slowest(self, cases: list[TokenizedCase]) -> Iterator[dict[str, object]]:
        """The masks of the first pass that took longest, with the tokens before them."""
        found = []
        for (number, i, rendering), text in self.times.items():
            assert text.whole is not None
            position = int(np.argmax(text.whole.mask))
            found.append((int(text.whole.mask[position]), number, i, rendering, position))
        for nanoseconds, number, i, rendering, position in sorted(found, reverse=True)[:_NUM_SLOWEST]:
            yield {
                "schema": cases[number].case.name,
                "us": nanoseconds / 1000,
                "position": position,
                "token_ids": cases[number].texts[i][rendering][:position][-16:],
            }
