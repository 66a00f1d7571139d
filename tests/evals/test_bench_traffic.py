"""Traffic: the same requests for the same seed, in the shares that were asked for."""

import itertools

import pytest

from specdec.evals.bench_traffic import Generation, Mix, Traffic
from specdec.evals.workload import load_workload

GENERATION = Generation(
    model="m", endpoint="chat", max_tokens=64, temperature=0.0, ignore_eos=False, speculative="default",
    has_running_usage=True, has_predictions=True, are_prompts_unique=False,
)  # fmt: skip


def drawn(num_requests, seed=0, **shares):
    mix = Mix(**{"constrained": 0.0, "aborted": 0.0, "malformed": 0.0, **shares})
    tasks = [*load_workload("structured"), *load_workload("free_text")]
    return list(itertools.islice(Traffic(tasks, mix, GENERATION, seed).requests(), num_requests))


def test_traffic_is_that_of_its_seed():
    shares = {"constrained": 0.5, "aborted": 0.3, "malformed": 0.2}
    assert drawn(100, **shares) == drawn(100, **shares)
    assert drawn(100, **shares) != drawn(100, seed=1, **shares)


def test_traffic_has_the_shares_that_were_asked_for():
    requests = drawn(4000, constrained=0.5, aborted=0.3, malformed=0.2)
    sound = [each for each in requests if each.malformed is None]
    assert len(sound) / len(requests) == pytest.approx(0.8, abs=0.04)
    assert sum(each.is_constrained for each in sound) / len(sound) == pytest.approx(0.5, abs=0.04)
    left = [each.leaves_after for each in sound if each.leaves_after is not None]
    assert len(left) / len(sound) == pytest.approx(0.3, abs=0.04)
    assert min(left) == 0
    assert 32 < max(left) <= 64
    assert all(each.leaves_after is None for each in requests if each.malformed is not None)
    assert not any(each.is_constrained or each.malformed or each.leaves_after is not None for each in drawn(200))


def test_a_mix_of_what_is_not_there_is_refused():
    mix = Mix(constrained=0.5, aborted=0.0, malformed=0.0)
    with pytest.raises(ValueError, match="no task has a schema"):
        Traffic(load_workload("free_text"), mix, GENERATION, 0)
    plain = Mix(constrained=0.0, aborted=0.0, malformed=0.0)
    only = Traffic(load_workload("structured"), plain, GENERATION, 0)
    assert "response_format" not in next(only.requests()).body
