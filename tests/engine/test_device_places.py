"""What a machine without a GPU can say of tensors on one: where they are, and how often the host waits for them."""

import pytest
import torch
from device_watch import DEVICE, DeviceWatch
from kernel_engines import CASES, answers, config_of, kernels_on

from specdec import Engine


@pytest.fixture(scope="module")
def cpu_engine(tiny_model_folder, tiny_draft_folder):
    return Engine(config_of(tiny_model_folder, tiny_draft_folder, device="cpu"))


@pytest.fixture(scope="module")
def watched(tiny_model_folder, tiny_draft_folder):
    """The watch, and an engine whose model is on the watched device."""
    with pytest.MonkeyPatch.context() as patch, DeviceWatch() as watch, kernels_on(DEVICE):
        patch.setattr(torch, "from_numpy", None)
        engine = Engine(config_of(tiny_model_folder, tiny_draft_folder))
    assert engine.runner.model.embedding._place == DEVICE
    return watch, engine


# What a sampling edits is the same for all verifications, and for what these do one sampling is enough.
SOME_CASES = [
    (sampling, speculation) for sampling, speculation in CASES if speculation == "none" or sampling == "truncated"
]


@pytest.mark.parametrize(("sampling", "speculation"), [*SOME_CASES, ("under a schema", "rejection")])
def test_no_step_has_a_tensor_in_the_wrong_place(watched, cpu_engine, sampling, speculation, monkeypatch):
    watch, engine = watched
    # An array comes in by a function that takes a place, or not at all.
    monkeypatch.setattr(torch, "from_numpy", None)
    monkeypatch.setattr(watch, "is_strict", True)
    num_checked, num_steps = watch.num_checked, engine.stats().num_steps
    with watch:
        ours = answers(engine, sampling, speculation)
    num_steps = engine.stats().num_steps - num_steps
    assert watch.num_checked > num_checked + 20 * num_steps
    assert engine.stats().num_faults == {}
    monkeypatch.undo()
    theirs = answers(cpu_engine, sampling, speculation)
    assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]


@pytest.mark.parametrize(
    "sampling", ["greedy", "sampled", "truncated", "penalised", "biased", "several explained", "under a schema"]
)
def test_a_step_waits_for_the_device_once(watched, sampling, monkeypatch):
    watch, engine = watched
    monkeypatch.setattr(watch, "waits", [])
    num_steps = engine.stats().num_steps
    with watch:
        answers(engine, sampling, "none")
    assert len(watch.waits) == engine.stats().num_steps - num_steps > 0
    assert set(watch.waits) == {"specdec.device_tensors.HostCopy.arrays"}


def test_a_coupled_draft_waits_for_the_device_once_a_pass(watched, monkeypatch):
    watch, engine = watched
    monkeypatch.setattr(watch, "waits", [])
    num_steps = engine.stats().num_steps
    with watch:
        answers(engine, "sampled", "coupled")
    waiting = {
        "specdec.device_sampler.DeviceSampler.sample_drafts",
        "specdec.device_tensors.HostCopy.arrays",
    }
    assert set(watch.waits) <= waiting
    num_verifying = engine.stats().num_steps - num_steps
    assert 0 < len(watch.waits) - num_verifying <= 3 * num_verifying
