"""EngineCollector: what the engine counts, as metrics."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from specdec import EngineStats
from specdec.step_tokens import STEP_TOKEN_BOUNDS

PREFIX = "specdec:"


class EngineCollector(Collector):
    """EngineStats as metric families, made anew for each scrape."""

    def __init__(self, model_name: str, stats: Callable[[], EngineStats], num_compiling: Callable[[], int]) -> None:
        """`num_compiling` says how many choices the engine does not have yet, for their constraints are compiled."""
        self._model_name = model_name
        self._stats = stats
        self._num_compiling = num_compiling

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield self._gauge("num_requests_running", "Choices being computed.", stats.num_requests_running)
        yield from self._waiting(stats)
        usage = stats.num_kv_blocks_in_use / stats.num_kv_blocks if stats.num_kv_blocks else 0.0
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks in use; 1 is all of them.", usage)
        yield self._gauge("kv_blocks", "KV blocks in the pool.", stats.num_kv_blocks)
        yield self._gauge("kv_blocks_in_use", "KV blocks that running choices hold.", stats.num_kv_blocks_in_use)
        yield self._gauge("kv_blocks_cached", "KV blocks with a prefix hash.", stats.num_kv_blocks_cached)
        cache = GaugeMetricFamily(
            PREFIX + "cache_config_info",
            "What the KV cache is made of; always 1.",
            labels=("model_name", "block_size", "num_gpu_blocks"),
        )
        cache.add_metric((self._model_name, str(stats.block_size), str(stats.num_kv_blocks)), 1)
        yield cache
        yield self._gauge("grammar_cache_entries", "Compiled constraints kept.", stats.grammar_cache_entries)
        yield self._gauge("grammar_cache_bytes", "Memory of compiled constraints.", stats.grammar_cache_bytes)
        yield self._gauge("grammar_mask_rows", "Mask rows in the table.", stats.num_mask_rows)
        for name, text, value in (
            ("engine_steps", "Engine steps.", stats.num_steps),
            ("engine_step_seconds", "Time spent in engine steps.", stats.step_seconds),
            ("passes_ahead", "Passes launched before their tokens were known.", stats.num_passes_ahead),
            ("passes_ahead_used", "Those whose logits were used.", stats.num_passes_ahead_used),
            ("passes_ahead_dropped", "Those that came to nothing.", stats.num_passes_ahead_dropped),
            ("prompt_tokens", "Prompt tokens, prefix-cache hits included.", stats.num_prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.num_generation_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
            ("num_preemptions", "Choices preempted, to be computed again.", stats.num_preemptions),
            ("spec_decode_num_drafts", "Target passes that verified a draft.", stats.speculation.num_drafts),
            ("draft_invalidated_by_grammar", "Draft runs ended by the grammar.", stats.num_drafts_cut_by_grammar),
            (
                "draft_tokens_followed",
                "Tokens of a draft model under a grammar behind which it drew another without the host.",
                stats.num_draft_tokens_followed,
            ),
            (
                "draft_tokens_unfollowed",
                "Those behind which it could not: the device did not know where they lead.",
                stats.num_draft_tokens_unfollowed,
            ),
            (
                "draft_tokens_guarded",
                "Those behind which it could not: the mask depends on the tokens left.",
                stats.num_draft_tokens_guarded,
            ),
            ("grammar_forced_tokens", "Accepted tokens that the grammar drafted.", _num_forced_tokens(stats)),
            ("grammar_cache_hits", "Constraints found compiled.", stats.grammar_cache_hits),
            ("grammar_cache_misses", "Constraints compiled.", stats.grammar_cache_misses),
            ("grammar_compile_seconds", "Time spent compiling constraints.", stats.grammar_compile_seconds),
            ("grammar_compile_kills", "Compilations ended early.", stats.num_compilations_killed),
            ("grammar_mask_seconds", "Time spent computing masks.", stats.grammar_mask_seconds),
            ("outputs_checked", "Finished constrained choices that were judged.", stats.num_outputs_checked),
            ("output_check_failures", "Judged choices that broke their constraint.", stats.num_output_check_failures),
            ("outputs_not_checked", "Choices that could not be judged.", stats.num_outputs_not_checked),
        ):
            family = self._counter(name, text)
            family.add_metric((self._model_name,), value)
            yield family
        finished = self._counter("request_success", "Choices ended, by reason.", "finished_reason")
        for reason, count in stats.num_finished.items():
            finished.add_metric((self._model_name, reason), count)
        yield finished
        yield self._step_tokens(stats)
        faults = self._counter("request_faults", "Requests ended by a fault of the engine's own.", "stage")
        for stage, count in stats.num_faults.items():
            faults.add_metric((self._model_name, stage), count)
        yield faults
        yield from self._speculation(stats)

    def _waiting(self, stats: EngineStats) -> Iterator[Metric]:
        reasons = {**stats.num_waiting_by_reason, "grammar": self._num_compiling()}
        yield self._gauge("num_requests_waiting", "Choices that wait, for whatever reason.", sum(reasons.values()))
        by_reason = GaugeMetricFamily(
            PREFIX + "num_requests_waiting_by_reason",
            "Choices that wait for a place or blocks (capacity), for them again (preempted), for the prompt that "
            "another choice of their request computes (deferred), for their constraint to be compiled (grammar).",
            labels=("model_name", "reason"),
        )
        for reason, count in reasons.items():
            by_reason.add_metric((self._model_name, reason), count)
        yield by_reason

    def _step_tokens(self, stats: EngineStats) -> Metric:
        family = HistogramMetricFamily(
            PREFIX + "iteration_tokens_total",
            "Prompt tokens computed and tokens generated in an engine step.",
            labels=("model_name",),
        )
        bounds = [*(str(float(bound)) for bound in STEP_TOKEN_BOUNDS), "+Inf"]
        counts = itertools.accumulate(stats.step_tokens.num_steps)
        buckets = list(zip(bounds, counts, strict=True))
        family.add_metric((self._model_name,), buckets, stats.step_tokens.num_tokens)
        return family

    def _speculation(self, stats: EngineStats) -> Iterator[Metric]:
        """By proposer. Every token has one, so that their counts add up; a draft may be by several."""
        yield self._gauge(
            "spec_decode_disabled_requests",
            "Running choices on which nothing was drafted in their last step, though they may be speculated on.",
            stats.num_requests_undrafted,
        )
        for name, text, attribute in (
            ("num_proposer_drafts", "Drafts with a token of the proposer; one by several is in each.", "num_drafts"),
            ("num_draft_tokens", "Tokens drafted.", "num_draft_tokens"),
            ("num_accepted_tokens", "Draft tokens accepted.", "num_accepted_tokens"),
            ("num_rejected_tokens", "Draft tokens rejected.", "num_rejected_tokens"),
            ("num_discarded_tokens", "Draft tokens never compared.", "num_discarded_tokens"),
        ):
            family = self._counter("spec_decode_" + name, text, "proposer")
            for proposer, counts in stats.speculation.by_proposer.items():
                family.add_metric((self._model_name, proposer), getattr(counts, attribute))
            yield family
        for name, text, attribute in (
            ("num_draft_tokens_per_pos", "Tokens drafted, by position.", "num_drafted_per_position"),
            ("num_accepted_tokens_per_pos", "Draft tokens accepted, by position.", "num_accepted_per_position"),
        ):
            family = self._counter("spec_decode_" + name, text, "proposer", "position")
            for proposer, counts in stats.speculation.by_proposer.items():
                for position, count in enumerate(getattr(counts, attribute)):
                    family.add_metric((self._model_name, proposer, str(position)), count)
            yield family

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(PREFIX + name, text, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family

    def _counter(self, name: str, text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(PREFIX + name, text, labels=("model_name", *labels))


def _num_forced_tokens(stats: EngineStats) -> int:
    counts = stats.speculation.by_proposer.get("grammar")
    return 0 if counts is None else counts.num_accepted_tokens
