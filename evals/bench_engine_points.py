"""The points of an engine's bench: what was measured at each, and what each comes to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from specdec.evals.bench_engine_cost import decode_work, ideal_gain, mean_acceptance_length, prefill_work
from specdec.evals.bench_engine_load import TimedDecode, TimedStep
from specdec.evals.bench_limits import DeviceLimits
from specdec.evals.bench_work import Work
from specdec.evals.spread import Spread
from specdec.models.config import ModelConfig


class EngineModels(msgspec.Struct, frozen=True, kw_only=True):
    """What computes, and in how many bytes a number."""

    target: ModelConfig
    draft: ModelConfig | None
    itemsize: int
    kv_itemsize: int
    acceptance_rates: tuple[float, ...]


class DecodePoint(msgspec.Struct, frozen=True, kw_only=True):
    batch: int
    context: int
    """Tokens of a prompt."""
    num_tokens: float
    """Of a sequence before a step, on average."""
    num_drafts: int
    ms_per_step: Spread
    tokens_per_s: float
    acceptance_length: float
    """Tokens that a sequence got of a step."""
    expected_acceptance_length: float
    """By the rates alone. The target may draw a drafted token by chance as well."""
    target_pass_ms: float
    draft_pass_ms: float | None
    """Of one of them; None without a draft model."""
    draft_ms: float
    """Of all that a step has."""
    overhead_ms: float
    """Of a step, outside the passes."""
    kernel_ms: float | None
    """Of a step, that a GPU's kernels and copies take; None on a CPU, and where the profiler failed."""
    work: Work
    """Of a step, at least."""
    share_of_copy: float
    share_of_matmul: float
    gain: float | None = None
    """Tokens a second to those without drafts; None where these were not measured."""
    ideal_gain: float | None = None

    def beside(self, plain: DecodePoint) -> DecodePoint:
        """The same with what is gained over a point without drafts."""
        return msgspec.structs.replace(
            self,
            gain=self.tokens_per_s / plain.tokens_per_s,
            ideal_gain=ideal_gain(
                acceptance_length=self.acceptance_length,
                plain_ms=plain.target_pass_ms,
                verify_ms=self.target_pass_ms,
                draft_ms=self.draft_ms,
            ),
        )


class PrefillPoint(msgspec.Struct, frozen=True, kw_only=True):
    num_tokens: int
    num_steps: int
    ms: Spread
    """From the first step to the first token."""
    tokens_per_s: float
    pass_ms: float
    overhead_ms: float
    """Of all the steps, outside the passes."""
    work: Work
    share_of_copy: float
    share_of_matmul: float


def decode_point(
    decoded: TimedDecode, models: EngineModels, limits: DeviceLimits, *, batch: int, context: int, num_drafts: int
) -> DecodePoint:
    steps = decoded.steps
    works = [
        decode_work(
            models.target,
            models.draft,
            models.itemsize,
            step.context_lens,
            num_drafts,
            kv_itemsize=models.kv_itemsize,
        )
        for step in steps
    ]
    work = Work(
        round(statistics.mean(each.num_bytes for each in works)),
        round(statistics.mean(each.num_flops for each in works)),
    )
    ms_per_step = Spread.of([1000 * step.seconds for step in steps])
    num_emitted = sum(step.num_emitted for step in steps)
    draft_passes = [ms for step in steps for ms in step.passes.draft_ms]
    return DecodePoint(
        batch=batch,
        context=context,
        num_tokens=statistics.mean(length for step in steps for length in step.context_lens),
        num_drafts=num_drafts,
        ms_per_step=ms_per_step,
        tokens_per_s=num_emitted / sum(step.seconds for step in steps),
        acceptance_length=num_emitted / (batch * len(steps)),
        expected_acceptance_length=mean_acceptance_length(models.acceptance_rates, num_drafts),
        target_pass_ms=statistics.median(sum(step.passes.target_ms) for step in steps),
        draft_pass_ms=statistics.median(draft_passes) if draft_passes else None,
        draft_ms=statistics.median(sum(step.passes.draft_ms) for step in steps),
        overhead_ms=statistics.median(step.overhead_ms for step in steps),
        kernel_ms=decoded.kernel_ms,
        work=work,
        share_of_copy=limits.share_of_copy(work, ms_per_step.median),
        share_of_matmul=limits.share_of_matmul(work, ms_per_step.median),
    )


def prefill_point(
    runs: Sequence[Sequence[TimedStep]], models: EngineModels, limits: DeviceLimits, num_tokens: int
) -> PrefillPoint:
    """Of the same prompt's length, several times."""
    ms = Spread.of([1000 * sum(step.seconds for step in steps) for steps in runs])
    work = prefill_work(models.target, models.itemsize, num_tokens, kv_itemsize=models.kv_itemsize)
    return PrefillPoint(
        num_tokens=num_tokens,
        num_steps=len(runs[0]),
        ms=ms,
        tokens_per_s=1000 * num_tokens / ms.median,
        pass_ms=statistics.median(sum(step.passes.ms for step in steps) for steps in runs),
        overhead_ms=statistics.median(sum(step.overhead_ms for step in steps) for steps in runs),
        work=work,
        share_of_copy=limits.share_of_copy(work, ms.median),
        share_of_matmul=limits.share_of_matmul(work, ms.median),
    )


def with_gains(points: Sequence[DecodePoint]) -> list[DecodePoint]:
    """Each with drafts held against the one without of the same batch and context, where there is one."""
    plain = {(point.batch, point.context): point for point in points if not point.num_drafts}
    compared = []
    for point in points:
        without = plain.get((point.batch, point.context)) if point.num_drafts else None
        compared.append(point if without is None else point.beside(without))
    return compared
