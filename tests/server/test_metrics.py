"""The exposition parses, and its counts add up to what clients were told."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import CHAT, TIMEOUT_S, LiveServer, chat_body, serving, slowed, wait_until
from prometheus_client.parser import text_string_to_metric_families

from specdec import Engine, EngineConfig, EngineStats, FinishReason, Request, SamplingParams, TokenDelta
from specdec.async_engine import STATS_INTERVAL_S
from specdec.grammars import Interest
from specdec.sequence import SpeculationCounts
from specdec.server import ServerConfig
from specdec.server.metrics import LatencyObserver, ServerMetrics
from specdec.speculative import PROPOSERS, SpeculativeConfig
from specdec.step_tokens import StepTokens


@pytest.fixture
def fresh(make_engine: Callable[..., Engine]) -> Iterator[LiveServer]:
    engine = make_engine(speculative=SpeculativeConfig(method="ngram", num_speculative_tokens=3))
    config = ServerConfig(served_model_names=("tiny",), per_request_spec_decode_metrics="summary")
    with serving(engine, config) as server:
        yield server


def scrape(server: LiveServer) -> dict[str, list[tuple[dict[str, str], float]]]:
    text = httpx.get(server.url + "/metrics").text
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def wait_until_counted(server: LiveServer, num_finished: int) -> None:
    """A snapshot follows the last delta of an answer, which its client may have by then."""
    counts = server.async_engine.stats
    wait_until(lambda: sum(counts().num_finished.values()) == num_finished, "the counts to be published")


def total(samples: dict[str, list[tuple[dict[str, str], float]]], name: str) -> float:
    return sum(value for _, value in samples["specdec:" + name])


def test_counts_add_up_to_the_usage_that_clients_were_told(fresh: LiveServer) -> None:
    answers = [
        httpx.post(fresh.url + "/v1/chat/completions", json=chat_body(max_tokens=20, n=1 + i % 2), timeout=30).json()
        for i in range(6)
    ]
    wait_until_counted(fresh, sum(len(answer["choices"]) for answer in answers))
    samples = scrape(fresh)
    completion_tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    num_choices = sum(len(answer["choices"]) for answer in answers)
    assert total(samples, "generation_tokens_total") == completion_tokens
    assert total(samples, "request_generation_tokens_sum") == completion_tokens
    assert total(samples, "request_prompt_tokens_sum") == sum(a["usage"]["prompt_tokens"] for a in answers)
    assert total(samples, "request_success_total") == num_choices
    assert total(samples, "request_generation_tokens_count") == num_choices
    assert total(samples, "time_to_first_token_seconds_count") == num_choices
    assert total(samples, "inter_token_latency_seconds_count") <= completion_tokens - num_choices
    assert total(samples, "e2e_request_latency_seconds_count") == len(answers)
    for name in ("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"):
        assert total(samples, name + "_count") == num_choices
    parts = ("request_queue_time_seconds_sum", "request_prefill_time_seconds_sum")
    assert 0 < sum(total(samples, name) for name in parts) <= total(samples, "time_to_first_token_seconds_sum")
    assert total(samples, "cache_config_info") == 1
    computed = total(samples, "prompt_tokens_total") - total(samples, "prefix_cache_hits_total")
    assert total(samples, "iteration_tokens_total_sum") == computed + completion_tokens
    assert total(samples, "iteration_tokens_total_count") == total(samples, "engine_steps_total")
    assert total(samples, "num_requests_running") == total(samples, "num_requests_waiting") == 0
    assert total(samples, "kv_cache_usage_perc") == 0
    assert all(labels["model_name"] == "tiny" for labels, _ in samples["specdec:generation_tokens_total"])


def test_processes_are_told_apart_and_the_engines_time_is_that_of_its_steps(process_live: LiveServer) -> None:
    httpx.post(process_live.url + "/v1/chat/completions", json=chat_body(max_tokens=20), timeout=30)
    samples = scrape(process_live)
    resident = {labels["process"]: value for labels, value in samples["process_resident_memory_bytes"]}
    assert set(resident) == {"server", "engine", "workers"}

    def is_the_engines_own() -> bool:
        said = {labels["process"]: value for labels, value in scrape(process_live)["process_resident_memory_bytes"]}
        return said["engine"] == pytest.approx(psutil.Process(process_live.async_engine.pid).memory_info().rss, rel=0.1)

    # Free memory may go back to the system between the two.
    wait_until(is_the_engines_own, "the memory of the engine's process")
    assert {labels["process"] for labels, _ in samples["process_cpu_seconds_total"]} == {"server", "engine"}

    wait_until(lambda: total(scrape(process_live), "engine_step_seconds_total") > 0, "a snapshot")


def test_without_a_process_of_its_own_the_engine_is_the_servers(live: LiveServer) -> None:
    samples = scrape(live)
    assert {labels["process"] for labels, _ in samples["process_resident_memory_bytes"]} == {"server", "workers"}


def test_with_compatible_names_every_metric_is_there_under_vllms_as_well() -> None:
    for has_vllm_names in (False, True):
        metrics = ServerMetrics("tiny", EngineStats, os.getpid(), has_vllm_names=has_vllm_names)
        metrics.queue_time.observe(0.5)
        metrics.count_rejection("rate_limit")
        samples = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(metrics.text().decode())
            for sample in family.samples
            if not sample.name.startswith("process_")
        }
        ours = {key: value for key, value in samples.items() if key[0].startswith("specdec:")}
        renamed = {("vllm:" + key[0].removeprefix("specdec:"), *key[1:]): value for key, value in ours.items()}
        assert ours
        assert {key: value for key, value in samples.items() if key not in ours} == (renamed if has_vllm_names else {})


def test_every_token_after_the_first_delta_is_one_observation_of_latency() -> None:
    metrics = ServerMetrics("tiny", EngineStats, os.getpid())
    request = Request(request_id="a", prompt_token_ids=(1,), sampling_params=SamplingParams(n=2))
    observer = LatencyObserver(metrics, [request])
    for token_ids, finish_reason in (((1,), None), ((2, 3, 4), None), ((), None), ((5, 6), FinishReason.STOP)):
        for choice_index in range(2):
            observer(
                TokenDelta(request_id="a", choice_index=choice_index, token_ids=token_ids, finish_reason=finish_reason)
            )
    counts = {
        sample.name.removeprefix("specdec:"): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name.endswith(("_count", "_sum"))
    }
    assert counts["time_to_first_token_seconds_count"] == 2
    assert counts["inter_token_latency_seconds_count"] == 2 * 5
    assert counts["request_generation_tokens_sum"] == 2 * 6
    assert counts["e2e_request_latency_seconds_count"] == 1
    assert counts["request_params_n_sum"] == 2


def test_speculation_adds_up_in_metrics_and_in_each_answer(fresh: LiveServer) -> None:
    body = chat_body(messages=[{"role": "user", "content": "one two three " * 30}], max_tokens=300, temperature=0)
    answer = httpx.post(fresh.url + "/v1/chat/completions", json={**body, "ignore_eos": True}, timeout=60).json()
    wait_until_counted(fresh, 1)
    samples = scrape(fresh)
    outcomes = ("num_accepted_tokens_total", "num_rejected_tokens_total", "num_discarded_tokens_total")
    assert total(samples, "spec_decode_num_draft_tokens_total") > 0
    assert total(samples, "spec_decode_num_draft_tokens_total") == sum(
        total(samples, "spec_decode_" + name) for name in outcomes
    )
    assert total(samples, "spec_decode_num_accepted_tokens_per_pos_total") == total(
        samples, "spec_decode_num_accepted_tokens_total"
    )
    assert 0 <= answer["metrics"]["queue_time_ms"] <= answer["metrics"]["time_to_first_token_ms"]
    speculative = answer["metrics"]["speculative_decoding"]
    histogram = speculative["acceptance_histogram"]
    assert speculative["num_spec_tokens"] == 3
    assert len(histogram) == 4
    assert min(histogram) >= 0
    assert sum(histogram) == speculative["num_spec_steps"]
    assert sum(i * count for i, count in enumerate(histogram)) == speculative["num_accepted_draft_tokens"]
    assert speculative["num_draft_tokens"] == total(samples, "spec_decode_num_draft_tokens_total")
    assert speculative["num_spec_steps"] == total(samples, "spec_decode_num_drafts_total")


def test_tokens_that_the_grammar_drafted_are_counted_apart(fresh: LiveServer) -> None:
    schema = {"enum": ["as long as it takes", "as much as it takes", 7]}
    body = chat_body(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        speculative={"method": "grammar+ngram", "num_speculative_tokens": 3},
        max_tokens=40,
    )
    answers = [
        httpx.post(fresh.url + "/v1/chat/completions", json={**body, "seed": seed}, timeout=60).json()
        for seed in range(4)
    ]
    wait_until_counted(fresh, 4)
    samples = scrape(fresh)
    by_proposer = [answer["metrics"]["speculative_decoding"]["by_proposer"] for answer in answers]
    accepted = sum(each.get("grammar", {"num_accepted_tokens": 0})["num_accepted_tokens"] for each in by_proposer)
    assert total(samples, "grammar_forced_tokens_total") == accepted > 0
    assert len(samples["specdec:draft_invalidated_by_grammar_total"]) == 1


@given(
    passes=st.lists(
        st.lists(st.sampled_from(PROPOSERS), max_size=6).flatmap(
            lambda proposers: st.tuples(st.just(proposers), st.integers(0, len(proposers)), st.booleans())
        ),
        max_size=20,
    )
)
def test_the_counts_of_proposers_add_up_to_those_of_all(passes: list[tuple[list[str], int, bool]]) -> None:
    counts = SpeculationCounts()
    for proposers, num_accepted, was_cut in passes:
        counts.record(proposers, num_accepted=num_accepted, was_cut=was_cut)
    metrics = ServerMetrics("tiny", lambda: EngineStats(speculation=counts.freeze()), os.getpid())
    sums: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            name = sample.name.removeprefix("specdec:spec_decode_")
            sums[name,] += sample.value
            sums[name, sample.labels.get("proposer", "")] += sample.value
            sums[name, "at", sample.labels.get("position", "")] += sample.value
    drafted = [(proposers, num_accepted) for proposers, num_accepted, _ in passes if proposers]
    assert sums["num_drafts_total",] == len(drafted)
    assert sums["num_draft_tokens_total",] == sum(len(proposers) for proposers, _ in drafted)
    assert sums["num_accepted_tokens_total",] == sum(num_accepted for _, num_accepted in drafted)
    assert sums["num_draft_tokens_total",] == sum(
        sums[f"num_{fate}_tokens_total",] for fate in ("accepted", "rejected", "discarded")
    )
    for proposer in PROPOSERS:
        num_mine = sum(proposer in proposers for proposers, _ in drafted)
        assert sums["num_proposer_drafts_total", proposer] == num_mine
        assert sums["num_accepted_tokens_total", proposer] == sum(p[:n].count(proposer) for p, n in drafted)
    for position in range(6):
        assert sums["num_accepted_tokens_per_pos_total", "at", str(position)] == sum(n > position for _, n in drafted)
        assert sums["num_draft_tokens_per_pos_total", "at", str(position)] == sum(len(p) > position for p, _ in drafted)
    assert sums["specdec:grammar_forced_tokens_total",] == sums["num_accepted_tokens_total", "grammar"]


def test_metrics_of_a_request_come_with_the_last_chunk_and_are_null_for_several_choices(fresh: LiveServer) -> None:
    body = chat_body(max_tokens=3, stream=True, stream_options={"include_usage": True})
    text = httpx.post(fresh.url + "/v1/chat/completions", json=body, timeout=30).text
    assert text.count('"metrics":{') == 1
    assert '"metrics":{' in text.split("\n\n")[-3]
    answer = httpx.post(fresh.url + "/v1/chat/completions", json=chat_body(max_tokens=3, n=2), timeout=30).json()
    assert answer["metrics"] is None


def test_the_steps_are_sorted_by_their_tokens() -> None:
    tokens = StepTokens()
    for num_tokens in (0, 1, 2, 8, 9, 16384, 16385):
        tokens.record(num_tokens)
    metrics = ServerMetrics("tiny", lambda: EngineStats(step_tokens=tokens.freeze()), os.getpid())
    found = {
        sample.labels["le"]: sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == "specdec:iteration_tokens_total_bucket"
    }
    assert [found[bound] for bound in ("1.0", "8.0", "16.0", "8192.0", "16384.0", "+Inf")] == [2, 4, 5, 5, 6, 7]
    assert tokens.freeze().num_tokens == 32789


@pytest.mark.slow
def test_what_waits_is_told_apart_by_what_it_waits_for(tiny_model_folder: Path) -> None:
    engine = Engine(
        EngineConfig(
            model=str(tiny_model_folder), num_kv_blocks=20, block_size=16, max_num_seqs=3, max_num_batched_tokens=32
        )
    )
    is_held, prepare = threading.Event(), engine.prepare

    def hold(request: Request, interest: Interest | None = None) -> object:
        assert request.constraint is None or is_held.wait(TIMEOUT_S), "nobody let it go on"
        return prepare(request, interest)

    engine.prepare = hold
    seen: Counter[str] = Counter()

    def scraped(server: LiveServer) -> dict[str, float]:
        samples = scrape(server)
        reasons = {labels["reason"]: value for labels, value in samples["specdec:num_requests_waiting_by_reason"]}
        assert total(samples, "num_requests_waiting") == sum(reasons.values())
        for reason, value in reasons.items():
            seen[reason] = max(seen[reason], int(value))
        return reasons

    # Longer than a snapshot may be old, so that there is one of every step.
    with serving(slowed(engine, 2 * STATS_INTERVAL_S)) as server, ThreadPoolExecutor(4) as pool:

        def ask(**fields: object) -> int:
            return httpx.post(server.url + CHAT, json=chat_body(**fields), timeout=120).status_code

        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [1, 2]}}}
        words = "one " * 200
        long_prompt = [{"role": "user", "content": engine.tokenizer.decode(engine.tokenizer.encode(words)[:130])}]
        asked = [pool.submit(ask, response_format=schema, n=2, max_tokens=9)]
        wait_until(lambda: scraped(server)["grammar"] == 2, "a constraint to be compiled")
        asked += [pool.submit(ask, messages=long_prompt, n=2, max_tokens=80, ignore_eos=True)]
        wait_until(lambda: scraped(server)["deferred"] == 1, "a choice to wait for another's prompt")
        asked += [pool.submit(ask, n=2, max_tokens=80, ignore_eos=True)]
        wait_until(lambda: scraped(server)["capacity"] >= 1, "a choice to wait for a place")
        wait_until(lambda: scraped(server)["preempted"] >= 1, "a choice to make room")
        is_held.set()
        assert [one.result() for one in asked] == [200] * 3
        wait_until(lambda: not any(scraped(server).values()), "nothing to wait")
    assert set(seen) == {"capacity", "preempted", "deferred", "grammar"}


def test_who_is_not_drafted_for_is_counted_while_it_runs(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(speculative=SpeculativeConfig(method="ngram", num_speculative_tokens=3))
    repeated = [{"role": "user", "content": "one two three " * 30}]

    def count(server: LiveServer) -> int:
        return int(total(scrape(server), "spec_decode_disabled_requests"))

    with serving(slowed(engine, 2 * STATS_INTERVAL_S)) as server, ThreadPoolExecutor(1) as pool:

        def ask(**fields: object) -> int:
            body = chat_body(messages=repeated, max_tokens=12, ignore_eos=True, temperature=0, **fields)
            return httpx.post(server.url + CHAT, json=body, timeout=60).status_code

        assert count(server) == 0
        for turned_off in ({"enabled": False}, {"num_speculative_tokens": 0}):
            asked = pool.submit(ask, speculative=turned_off, n=2)
            wait_until(lambda: count(server) == 2, "two choices that have had no draft")
            assert asked.result() == 200
            wait_until(lambda: count(server) == 0, "them to be over")
        asked = pool.submit(ask)
        wait_until(lambda: total(scrape(server), "spec_decode_num_drafts_total") > 0, "a draft")
        assert asked.result() == 200


def test_where_only_a_grammar_drafts_an_answer_without_one_misses_nothing(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    assert engine.config.speculative == SpeculativeConfig(method="grammar")
    with serving(slowed(engine, 2 * STATS_INTERVAL_S)) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, server.url + CHAT, json=chat_body(max_tokens=9, ignore_eos=True), timeout=60)
        wait_until(lambda: total(scrape(server), "generation_tokens_total") > 2, "some tokens")
        assert total(scrape(server), "spec_decode_disabled_requests") == 0
        assert asked.result().status_code == 200


def test_paths_that_clients_make_up_are_no_labels(fresh: LiveServer) -> None:
    for path in ("/a", "/b/c", "/v1/models/x", "/v1/models/y"):
        httpx.get(fresh.url + path)
    handlers = {labels["handler"] for labels, _ in scrape(fresh)["specdec:http_requests_total"]}
    assert handlers <= {"unrouted", "/metrics", "/v1/models/{name}"}


def test_status_codes_are_counted_as_sent(fresh: LiveServer) -> None:
    httpx.post(fresh.url + "/v1/completions", json={})
    httpx.get(fresh.url + "/v1/completions")
    statuses = {
        (labels["handler"], labels["status"]): value for labels, value in scrape(fresh)["specdec:http_requests_total"]
    }
    assert statuses["/v1/completions", "400"] == 1
    assert statuses["unrouted", "405"] == 1
