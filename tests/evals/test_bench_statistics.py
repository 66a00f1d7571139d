"""The arithmetic of a load: percentiles, gaps of tokens, objectives, arrival times, the slope of memory."""

import asyncio
import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.evals.bench_arrivals import LoadPoint, arrival_offsets, sweep
from specdec.evals.bench_cost import ServingCost
from specdec.evals.bench_latency import Latencies, keeps, parse_objectives, token_gaps
from specdec.evals.bench_memory import MemoryWatch, slope_per_minute
from specdec.evals.bench_metrics import ServerMetrics, SpeculationCounts

SECONDS = st.lists(st.floats(0, 1e3), min_size=1, max_size=50)


def test_percentiles_of_a_hundred_and_one_values_are_their_ranks():
    found = Latencies.of_seconds([i / 1000 for i in reversed(range(101))])
    assert (found.p50, found.p90, found.p99, found.max, found.count) == pytest.approx((50, 90, 99, 100, 101))
    assert found.mean == pytest.approx(50)
    assert Latencies.of_seconds([]) is None


@given(SECONDS)
def test_percentiles_rise_and_stay_within_the_values(values):
    found = Latencies.of_seconds(values)
    slack = 1e-6
    assert 1e3 * min(values) <= found.p50 + slack
    assert found.p50 <= found.p90 + slack
    assert found.p90 <= found.p99 + slack
    assert found.p99 <= found.max + slack
    assert found.max == pytest.approx(1e3 * max(values))


def test_the_gap_of_a_chunk_is_shared_by_its_tokens():
    gaps = token_gaps([1.0, 1.3, 1.4, 2.0], [5, 3, 0, 2])
    assert gaps == pytest.approx([0.1, 0.1, 0.1, 0.35, 0.35])


@given(st.lists(st.tuples(st.floats(0.001, 1), st.integers(0, 5)), min_size=1, max_size=30))
def test_gaps_of_tokens_add_up_to_the_time_of_the_last_chunk_with_a_token(chunks):
    times = list(itertools.accumulate(gap for gap, _ in chunks))
    counts = [num for _, num in chunks]
    gaps = token_gaps(times, counts)
    assert len(gaps) == sum(counts[1:])
    last = max((i for i in range(1, len(counts)) if counts[i]), default=0)
    assert gaps.sum() == pytest.approx(times[last] - times[0])


def test_objectives_are_read_as_vllm_writes_them():
    expected = {"ttft": 0.5, "tpot": 0.1}
    for texts in (["ttft:500", "tpot:100"], ["ttft:500 tpot:100"], ["ttft:500,tpot:100"]):
        assert parse_objectives(texts) == pytest.approx(expected)
    assert parse_objectives([]) == {}
    for text in ("ttft", "ttft:", "ttft:fast", "itl:5", "ttft:-1", "ttft:inf", "ttft:nan", "ttft:1 ttft:2"):
        with pytest.raises(ValueError):
            parse_objectives([text])


def test_a_request_is_good_if_it_keeps_every_objective_that_applies_to_it():
    latencies = {"ttft": 0.4, "tpot": None, "e2el": 2.0}
    assert keeps({"ttft": 0.4, "tpot": 0.001}, latencies)
    assert not keeps({"ttft": 0.39}, latencies)
    assert not keeps({"ttft": 1.0, "e2el": 1.9}, latencies)


def test_arrivals_are_those_of_their_seed_and_rise():
    point = LoadPoint(concurrency=None, request_rate=10.0, num_requests=200)
    offsets = list(arrival_offsets(point, seed=1))
    assert offsets == list(arrival_offsets(point, seed=1)) != list(arrival_offsets(point, seed=2))
    assert len(offsets) == 200
    assert offsets[0] == 0
    assert offsets == sorted(offsets)


@pytest.mark.parametrize(("burstiness", "variation"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)])
def test_gaps_have_the_mean_of_the_rate_and_the_variation_of_the_burstiness(burstiness, variation):
    point = LoadPoint(concurrency=None, request_rate=50.0, burstiness=burstiness, num_requests=20_000)
    gaps = np.diff(list(arrival_offsets(point, seed=3)))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.1)


def test_arrivals_end_with_the_number_or_the_duration_whichever_is_first():
    def count(**fields):
        return len(list(arrival_offsets(LoadPoint(concurrency=None, **fields), seed=0)))

    assert count(request_rate=math.inf, num_requests=7) == 7
    assert count(request_rate=100.0, num_requests=7, duration_s=60.0) == 7
    assert 40 < count(request_rate=100.0, duration_s=0.8) < 130
    assert count(request_rate=100.0, num_requests=10_000, duration_s=0.8) == count(request_rate=100.0, duration_s=0.8)


def test_a_sweep_has_every_rate_at_every_limit():
    points = sweep([1, 4], [2.0, math.inf], burstiness=1.0, num_requests=5, duration_s=None)
    assert [point.label for point in points] == [
        "concurrency 1, 2 requests/s", "concurrency 1", "concurrency 4, 2 requests/s", "concurrency 4",
    ]  # fmt: skip
    (alone,) = sweep([], [math.inf], burstiness=1.0, num_requests=5, duration_s=None)
    assert alone.label == "all at once"


@given(st.floats(-50, 50), st.floats(0, 1000), st.integers(90, 300))
def test_the_slope_of_a_line_is_found_whatever_came_in_the_first_minute(slope, start, num_seconds):
    seconds = [5.0 + i for i in range(num_seconds)]
    values = [10_000.0 if second - 5 < 60 else start + slope * second / 60 for second in seconds]
    assert slope_per_minute(seconds, values) == pytest.approx(slope, abs=1e-6, rel=1e-6)


def test_a_short_run_has_no_slope():
    assert slope_per_minute([], []) is None
    assert slope_per_minute([float(i) for i in range(89)], [1.0] * 89) is None
    assert slope_per_minute([float(i) for i in range(90)], [1.0] * 90) == 0


async def test_the_memory_of_children_counts():
    program = "import sys; held = bytearray(120_000_000); print(1, flush=True); sys.stdin.read()"
    watch = MemoryWatch.of_process(os.getpid())
    async with watch.running():
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        await child.stdout.readline()
    child.stdin.close()
    await child.wait()
    use = watch.use()
    assert use.num_samples >= 2
    assert use.last_mb - use.first_mb > 100
    assert use.parts["children"].last_mb - use.parts["children"].first_mb > 100
    assert use.last_mb == pytest.approx(sum(part.last_mb for part in use.parts.values()))
    assert use.peak_mb >= use.last_mb


async def test_what_cannot_be_said_at_the_moment_is_no_sample():
    said = iter([{}, {"server": 3e6, "engine": 5e6}, {}])

    async def resident_bytes():
        return next(said, {})

    watch = MemoryWatch(resident_bytes, "a server")
    async with watch.running():
        assert watch.use() is None
    assert watch.use().num_samples == 1
    assert (watch.use().last_mb, watch.use().parts["engine"].last_mb) == (8.0, 5.0)


def test_a_process_that_is_not_there_cannot_be_watched():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(ProcessLookupError, match=str(child.pid)):
        MemoryWatch.of_process(child.pid)


EXPOSITION = """\
# TYPE {0}:num_requests_running gauge
{0}:num_requests_running{{model_name="m"}} 2.0
# TYPE {0}:kv_cache_usage_perc gauge
{0}:kv_cache_usage_perc{{model_name="m"}} 0.0
# TYPE {0}:spec_decode_num_drafts counter
{0}:spec_decode_num_drafts_total{{model_name="m"}} 10.0
# TYPE {0}:spec_decode_num_draft_tokens counter
{0}:spec_decode_num_draft_tokens_total{{proposer="a"}} 20.0
{0}:spec_decode_num_draft_tokens_total{{proposer="b"}} 30.0
# TYPE {0}:spec_decode_num_accepted_tokens counter
{0}:spec_decode_num_accepted_tokens_total{{proposer="a"}} 15.0
# TYPE python_info gauge
python_info 1.0
"""


@pytest.mark.parametrize("prefix", ["vllm", "specdec"])
def test_counts_are_found_under_any_prefix_with_their_labels_added_up(prefix):
    metrics = ServerMetrics.parse(EXPOSITION.format(prefix))
    assert metrics.prefix == prefix
    assert metrics.held() == {"num_requests_running": 2.0}
    counts = metrics.speculation()
    assert counts == SpeculationCounts(num_drafts=10, num_draft_tokens=50, num_accepted_tokens=15)
    assert counts.acceptance_rate == 0.3
    assert counts.mean_acceptance_length == 2.5
    more = counts.plus(SpeculationCounts(num_drafts=2, num_draft_tokens=5, num_discarded_tokens=5))
    assert more.plus(counts, sign=-1) == SpeculationCounts(num_drafts=2, num_draft_tokens=5, num_discarded_tokens=5)


def test_counts_that_a_server_gives_under_two_prefixes_count_once():
    metrics = ServerMetrics.parse(
        EXPOSITION.format("specdec").replace("python_info 1.0\n", "") + EXPOSITION.format("vllm")
    )
    assert metrics == ServerMetrics.parse(EXPOSITION.format("specdec"))


def test_other_expositions_are_none_of_ours():
    assert ServerMetrics.parse("python_info 1.0\n") is None
    assert SpeculationCounts().acceptance_rate is None


PROCESSES = """\
# TYPE specdec:num_requests_running gauge
specdec:num_requests_running{{model_name="m"}} 0.0
# TYPE specdec:engine_step_seconds counter
specdec:engine_step_seconds_total{{model_name="m"}} {0}
# TYPE specdec:generation_tokens counter
specdec:generation_tokens_total{{model_name="m"}} {1}
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes{{process="server"}} 1e+08
process_resident_memory_bytes{{process="engine"}} 2e+09
# TYPE process_cpu_seconds counter
process_cpu_seconds_total{{process="server"}} {2}
process_cpu_seconds_total{{process="engine"}} {3}
"""


def test_what_a_token_takes_is_split_into_the_engine_and_the_rest():
    before = ServerMetrics.parse(PROCESSES.format(1.0, 50, 2.0, 3.0))
    after = ServerMetrics.parse(PROCESSES.format(9.0, 1050, 3.0, 15.0))
    assert after.resident_bytes == {"server": 1e8, "engine": 2e9}
    cost = ServingCost.between(before, after, 10.0)
    assert cost.num_tokens == 1000
    assert (cost.wall_ms, cost.engine_ms, cost.overhead_ms) == (10.0, 8.0, 2.0)
    assert (cost.server_cpu_ms, cost.engine_cpu_ms) == (1.0, 12.0)
    assert ServingCost.between(after, after, 10.0) is None


def test_a_server_that_does_not_time_its_engine_has_no_cost():
    metrics = ServerMetrics.parse(EXPOSITION.format("vllm"))
    assert ServingCost.between(metrics, metrics, 10.0) is None
