"""An engine whose passes are replayed gives the answers of one whose passes are eager; on a GPU by CUDA graphs.

test_device_path_interpreted.py runs this file a second time, with TRITON_INTERPRET set.
"""

import pytest
from kernel_engines import CASES, answers, assert_alike, kernel_engine

from specdec import SamplingParams
from specdec.kernels.dispatch import INTERPRETED

SMALL = {"enforce_eager": False} | ({"max_num_batched_tokens": 8, "max_num_seqs": 4} if INTERPRETED else {})


@pytest.fixture(scope="module")
def graphed(device, config_of):
    return kernel_engine(device, config_of(device=device.type, **SMALL))


@pytest.fixture(scope="module")
def eager(device, config_of):
    return kernel_engine(device, config_of(device=device.type, **SMALL | {"enforce_eager": True}))


@pytest.fixture
def forwards(graphed, monkeypatch):
    """For each pass of the target whether it was replayed."""
    seen = []
    captured = graphed.runner._captured
    forward = captured.forward

    def watched(spans, *drawn):
        logits = forward(spans, *drawn)
        seen.append(logits is not None)
        return logits

    monkeypatch.setattr(captured, "forward", watched)
    return seen


@pytest.fixture
def samplings(graphed, monkeypatch):
    """For each verification whether it was replayed."""
    seen = []
    captured = graphed.verifier._captured
    send, replay = captured.send, captured.replay

    def watched_send(*given):
        step = send(*given)
        seen.append(False)
        return step

    def watched_replay(*given):
        seen[-1] = True
        return replay(*given)

    monkeypatch.setattr(captured, "send", watched_send)
    monkeypatch.setattr(captured, "replay", watched_replay)
    return seen


def test_a_graphed_engine_says_so(graphed, eager):
    assert graphed.describe().num_sampling_graphs == graphed.verifier.num_graphs == 4 * (4 if INTERPRETED else 9)
    assert eager.describe().num_sampling_graphs == eager.verifier.num_graphs == 0
    assert graphed.describe().num_drafting_graphs == 2 * (3 if INTERPRETED else 4)
    assert eager.describe().num_drafting_graphs == 0
    assert graphed.describe().num_graphs > 20 or INTERPRETED
    assert graphed.runner.num_graphs + graphed._runtime.draft_runner.num_graphs == graphed.describe().num_graphs > 0
    assert eager.describe().num_graphs == eager.runner.num_graphs == 0


SOME_CASES = CASES
if INTERPRETED:
    SOME_CASES = [("several explained", "none"), ("penalised", "coupled"), ("truncated", "none")]


@pytest.mark.parametrize(("sampling", "speculation"), SOME_CASES)
def test_answers_are_those_of_eager_passes(graphed, eager, forwards, samplings, sampling, speculation):
    ours, theirs = (answers(engine, sampling, speculation) for engine in (graphed, eager))
    assert all(forwards)
    assert all(samplings)
    # A pass over prompts alone draws nothing.
    assert len(forwards) >= len(samplings) > 2
    assert graphed.stats().num_faults == {}
    assert_alike(ours, theirs, device=graphed.runner.device, speculation=speculation)


def test_replays_stay_right_while_contexts_grow(graphed, eager, forwards):
    """To the end of the longest context there can be."""
    num_tokens = 8 if INTERPRETED else 70
    params = [SamplingParams(max_tokens=num_tokens, seed=i, temperature=0.7, ignore_eos=True) for i in range(2)]
    ours, theirs = (engine.generate([[5], [9, 11]], params) for engine in (graphed, eager))
    assert all(forwards)
    for own, other in zip(ours, theirs, strict=True):
        assert len(own.choices[0].token_ids) == num_tokens
        assert own.choices[0].token_ids == other.choices[0].token_ids
