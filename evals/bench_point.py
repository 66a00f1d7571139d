"""PointResult: the figures of one point of a sweep, out of what became of its requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from specdec.evals.bench_arrivals import LoadPoint
from specdec.evals.bench_cost import ServingCost
from specdec.evals.bench_exchange import Exchange
from specdec.evals.bench_latency import Latencies, keeps, token_gaps
from specdec.evals.bench_load import LoadRun
from specdec.evals.bench_metrics import ServerMetrics, SpeculationCounts
from specdec.evals.validity import ValidityCount

_MAX_EXAMPLES = 20


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the drafts while the point ran."""

    source: str
    """`requests`: of completed answers that say so; `metrics`: of all that the server did meanwhile."""
    counts: SpeculationCounts
    acceptance_rate: float | None
    mean_acceptance_length: float | None


class PointResult(msgspec.Struct, frozen=True, kw_only=True):
    """Throughput counts completed requests alone, and latencies are theirs."""

    label: str
    concurrency: int | None
    request_rate: float | None
    """None is as fast as the limit allows."""
    seconds: float
    num_sent: int
    num_completed: int
    num_aborted: int
    num_refused: int
    """Malformed requests that were answered with the status they had to be."""
    num_turned_away: int
    num_failed: int
    statuses: dict[str, int]
    """Of all requests; `none` is no response."""
    wrong: tuple[str, ...]
    """The first requests that were not answered as they had to be."""
    num_prompt_tokens: int
    num_output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Latencies | None
    tpot_ms: Latencies | None
    """Per request: the time after its first chunk, by its tokens after the first."""
    itl_chunk_ms: Latencies | None
    """Between the chunks of a stream."""
    itl_token_ms: Latencies | None
    """Between tokens, those of one chunk sharing its gap; None where the server does not count as it goes."""
    e2e_ms: Latencies | None
    tokens_per_chunk: float | None
    are_tokens_chunks: bool
    """The server counts no tokens: every chunk was taken for one."""
    validity: dict[str, object] | None
    acceptance: Acceptance | None
    goodput_requests_per_s: float | None
    """Of completed requests that kept every objective; None without objectives."""
    cost: ServingCost | None
    """None where the server does not time its engine."""
    held: dict[str, float]
    """What the server still held when nothing ran any more."""
    processor_share: float
    lateness_ms: Latencies | None

    @property
    def num_violations(self) -> int:
        return 0 if self.validity is None else int(str(self.validity["num_violations"]))


def point_result(
    point: LoadPoint,
    run: LoadRun,
    *,
    objectives: Mapping[str, float],
    meanwhile: tuple[ServerMetrics, ServerMetrics] | None,
    held: Mapping[str, float],
) -> PointResult:
    """The figures; every completed constrained answer is judged here. `meanwhile` is a scrape before and one after."""
    scraped = None if meanwhile is None else _speculation(*meanwhile)
    outcomes = Counter(each.outcome for each in run.exchanges)
    completed = [each for each in run.exchanges if each.outcome == "completed"]
    are_tokens_chunks = any(each.num_output_tokens is None for each in completed)
    for each in completed:
        if each.num_output_tokens is None:
            each.num_output_tokens = len(each.chunk_times)
    num_prompt_tokens = sum(each.num_prompt_tokens for each in completed)
    num_output_tokens = sum(each.num_output_tokens or 0 for each in completed)
    num_chunks = sum(len(each.chunk_times) for each in completed)
    is_finite = point.request_rate != float("inf")
    return PointResult(
        label=point.label,
        concurrency=point.concurrency,
        request_rate=point.request_rate if is_finite else None,
        seconds=run.seconds,
        num_sent=len(run.exchanges),
        num_completed=outcomes["completed"],
        num_aborted=outcomes["aborted"],
        num_refused=outcomes["refused"],
        num_turned_away=outcomes["turned away"],
        num_failed=outcomes["failed"],
        statuses=dict(sorted(Counter(str(each.status or "none") for each in run.exchanges).items())),
        wrong=tuple(_wrong(each) for each in run.exchanges if each.outcome == "failed")[:_MAX_EXAMPLES],
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=num_output_tokens,
        requests_per_s=len(completed) / run.seconds,
        output_tokens_per_s=num_output_tokens / run.seconds,
        total_tokens_per_s=(num_prompt_tokens + num_output_tokens) / run.seconds,
        ttft_ms=Latencies.of_seconds([each.first_token_s for each in completed if each.first_token_s is not None]),
        tpot_ms=Latencies.of_seconds([each.per_token_s for each in completed if each.per_token_s is not None]),
        itl_chunk_ms=Latencies.of_seconds(_joined([np.diff(each.chunk_times) for each in completed])),
        itl_token_ms=_token_latencies(completed),
        e2e_ms=Latencies.of_seconds([each.total_s for each in completed]),
        tokens_per_chunk=num_output_tokens / num_chunks if num_chunks else None,
        are_tokens_chunks=are_tokens_chunks,
        validity=_validity(completed),
        acceptance=_acceptance(completed, scraped),
        goodput_requests_per_s=_num_good(completed, objectives) / run.seconds if objectives else None,
        cost=None if meanwhile is None else ServingCost.between(*meanwhile, run.seconds),
        held=dict(held),
        processor_share=run.processor_share,
        lateness_ms=Latencies.of_seconds(run.lateness_s),
    )


def _speculation(before: ServerMetrics, after: ServerMetrics) -> SpeculationCounts | None:
    counted, earlier = after.speculation(), before.speculation()
    return None if counted is None or earlier is None else counted.plus(earlier, sign=-1)


def _wrong(exchange: Exchange) -> str:
    malformed = exchange.planned.malformed
    name = exchange.planned.task.name if malformed is None else f"malformed: {malformed.name}"
    expected = " or ".join(map(str, exchange.expected))
    status = "no response" if exchange.status is None else f"status {exchange.status}"
    return f"{name}: {status} where {expected} was due; {exchange.error or 'no error'}"


def _joined(
    arrays: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.float64]]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _token_latencies(completed: Sequence[Exchange]) -> Latencies | None:
    counted = [each for each in completed if any(each.chunk_tokens)]
    return Latencies.of_seconds(_joined([token_gaps(each.chunk_times, each.chunk_tokens) for each in counted]))


def _validity(completed: Sequence[Exchange]) -> dict[str, object] | None:
    count = ValidityCount()
    for each in completed:
        task = each.planned.task
        if each.planned.is_constrained and task.schema is not None:
            count.add(name=task.name, text=each.text, finish_reason=str(each.finish_reason), schema=task.schema)
    return count.as_json() if count.num_answers else None


def _acceptance(completed: Sequence[Exchange], scraped: SpeculationCounts | None) -> Acceptance | None:
    told = [each.speculation for each in completed if each.speculation is not None]
    source, counts = "metrics", scraped
    if told:
        source, counts = "requests", SpeculationCounts()
        for each in told:
            counts = counts.plus(each)
    if counts is None or not counts.num_drafts:
        return None
    return Acceptance(
        source=source,
        counts=counts,
        acceptance_rate=counts.acceptance_rate,
        mean_acceptance_length=counts.mean_acceptance_length,
    )


def _num_good(completed: Sequence[Exchange], objectives: Mapping[str, float]) -> int:
    return sum(
        keeps(objectives, {"ttft": each.first_token_s, "tpot": each.per_token_s, "e2el": each.total_s})
        for each in completed
    )
