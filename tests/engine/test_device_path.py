"""The GPU path: the same answers as on a CPU, by the kernels' references, in Triton's interpreter, or on a GPU.

test_device_path_interpreted.py runs this file a second time, with TRITON_INTERPRET set.
"""

import pytest
import torch
from device_watch import DEVICE, DeviceWatch
from kernel_engines import kernel_engine, kernels_on

from specdec import Engine, EngineConfig, SamplingParams, SpeculativeConfig
from specdec.backend import CpuBackend, KernelBackend, backend_of
from specdec.kernels.dispatch import INTERPRETED
from specdec.speculative import SpeculativeParams, Verification
from specdec.triton_attention import TritonAttention

CPU = torch.device("cpu")
PLACES = [pytest.param("cpu", id="interpreter" if INTERPRETED else "cpu")]
if not INTERPRETED:
    PLACES.append(pytest.param("cuda", id="gpu", marks=pytest.mark.gpu))

PROMPTS = ["The quick brown fox jumps over the lazy", "a b c a b c a b c", "x"]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["one", "two"]}, "sizes": {"type": "array", "items": {"type": "integer"}}},
    "required": ["kind", "sizes"],
    "additionalProperties": False,
}


def params_of(**changes):
    return [
        SamplingParams(**({"max_tokens": 10, "seed": 1000 + i, "temperature": 0.8} | changes))
        for i in range(len(PROMPTS))
    ]


SAMPLINGS = {
    "greedy": params_of(temperature=0.0),
    "sampled": params_of(),
    "truncated": params_of(top_k=40, top_p=0.9, min_p=0.01),
    "penalised": params_of(frequency_penalty=0.7, presence_penalty=0.4, repetition_penalty=1.2),
    "biased": params_of(logit_bias={5: 4.0, 60: -3.0}, min_tokens=8),
    "several explained": params_of(n=2, logprobs=3),
    "under a schema": params_of(max_tokens=40),
    "greedy under a schema": params_of(max_tokens=40, temperature=0.0),
}
SPECULATIONS = {"none": SpeculativeParams(enabled=False)} | {
    str(each): SpeculativeParams(verification=each) for each in Verification
}


@pytest.fixture(scope="module", params=PLACES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="module")
def config_of(tiny_model_folder, tiny_draft_folder):
    """So short that it is soon measured how long its passes take."""

    def get(**changes):
        speculative = SpeculativeConfig(
            method="draft_model+grammar+ngram", model=str(tiny_draft_folder), num_speculative_tokens=3
        )
        config = {
            "model": str(tiny_model_folder),
            "dtype": "float32",
            "max_model_len": 80,
            "num_kv_blocks": 60,
            "max_num_seqs": 8,
            "speculative": speculative,
            "check_outputs": True,
        }
        return EngineConfig(**(config | changes))

    return get


@pytest.fixture(scope="module")
def cpu_engine(config_of):
    return Engine(config_of(device="cpu"))


@pytest.fixture(scope="module")
def engine(device, config_of):
    engine = kernel_engine(device, config_of(device=device.type))
    assert engine.runner.device.type == device.type
    return engine


def answers(engine, sampling, speculation):
    schema = SCHEMA if "schema" in sampling else None
    params = SAMPLINGS[sampling]
    outputs = engine.generate(PROMPTS, params, output_type=schema, speculative=SPECULATIONS[speculation])
    assert engine.stats().num_kv_blocks_in_use == 0
    return [choice for output in outputs for choice in output.choices]


@pytest.mark.parametrize("speculation", SPECULATIONS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_answers_are_those_of_the_cpu_path(engine, cpu_engine, sampling, speculation):
    num_drafted = engine.stats().speculation.num_draft_tokens
    ours = answers(engine, sampling, speculation)
    theirs = answers(cpu_engine, sampling, speculation)
    assert (engine.stats().speculation.num_draft_tokens > num_drafted) == (speculation != "none")
    for own, other in zip(ours, theirs, strict=True):
        assert (own.token_ids, own.finish_reason) == (other.token_ids, other.finish_reason)
        for logprob, expected in zip(own.logprobs or (), other.logprobs or (), strict=True):
            assert logprob.token_id == expected.token_id
            assert logprob.logprob == pytest.approx(expected.logprob, abs=1e-4)
            assert [each.token_id for each in logprob.top] == [each.token_id for each in expected.top]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_coupled_speculation_changes_nothing(engine, sampling):
    plain, coupled = (answers(engine, sampling, each) for each in ("none", "coupled"))
    assert [each.token_ids for each in coupled] == [each.token_ids for each in plain]


def test_synthetic_drafts_are_accepted_as_on_the_cpu(device, config_of):
    speculative = SpeculativeConfig(
        method="synthetic", synthetic_acceptance_rates=(0.9, 0.6, 0.3), num_speculative_tokens=3
    )
    config = config_of(speculative=speculative)
    engines = [Engine(config_of(speculative=speculative, device="cpu")), kernel_engine(device, config)]
    theirs, ours = (each.generate(PROMPTS, params_of(max_tokens=20)) for each in engines)
    assert [each.choices[0].token_ids for each in ours] == [each.choices[0].token_ids for each in theirs]
    theirs, ours = (each.stats().speculation.num_accepted_tokens for each in engines)
    assert ours == theirs > 0


@pytest.mark.skipif(INTERPRETED, reason="of an interpreted kernel's own tensors nobody says where they are")
class TestWithoutAGpu:
    """What a machine without a GPU can say of tensors on one."""

    @pytest.fixture(scope="class")
    def watched(self, config_of):
        """The watch, and an engine whose model is on the watched device."""
        with pytest.MonkeyPatch.context() as patch, DeviceWatch() as watch, kernels_on(DEVICE):
            patch.setattr(torch, "from_numpy", None)
            engine = Engine(config_of())
        assert engine.runner.model.embedding._place == DEVICE
        return watch, engine

    @pytest.mark.parametrize("speculation", SPECULATIONS)
    @pytest.mark.parametrize("sampling", SAMPLINGS)
    def test_no_step_has_a_tensor_in_the_wrong_place(self, watched, cpu_engine, sampling, speculation, monkeypatch):
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

    @pytest.mark.parametrize("sampling", ["greedy", "sampled", "truncated", "penalised", "biased", "under a schema"])
    def test_a_step_waits_for_the_device_once(self, watched, sampling, monkeypatch):
        watch, engine = watched
        monkeypatch.setattr(watch, "waits", [])
        num_steps = engine.stats().num_steps
        with watch:
            answers(engine, sampling, "none")
        assert len(watch.waits) == engine.stats().num_steps - num_steps > 0
        assert set(watch.waits) == {"specdec.device_verifier.DeviceVerifier.verify"}

    def test_a_coupled_draft_waits_for_the_device_once_a_pass(self, watched, monkeypatch):
        watch, engine = watched
        monkeypatch.setattr(watch, "waits", [])
        num_steps = engine.stats().num_steps
        with watch:
            answers(engine, "sampled", "coupled")
        verifying = [each for each in watch.waits if each == "specdec.device_verifier.DeviceVerifier.verify"]
        drafting = [each for each in watch.waits if each.endswith("DeviceSampler.sample_drafts")]
        assert len(verifying) == engine.stats().num_steps - num_steps
        assert 0 < len(drafting) <= 3 * len(verifying)
        assert len(verifying) + len(drafting) == len(watch.waits)


def test_a_gpu_gets_the_kernels_and_a_cpu_the_library():
    assert isinstance(backend_of(CPU), CpuBackend)
    assert isinstance(backend_of(torch.device("cuda", 0)), KernelBackend)


def test_exact_is_one_tiling_for_all_steps():
    tilings = []
    for exact in (True, False):
        attention = KernelBackend(CPU).attention(exact=exact)
        assert isinstance(attention, TritonAttention)
        tilings.append(attention.plan([], block_size=16, num_groups=3, dtype=torch.float32).tiling)
    assert tilings[0] is not None
    assert tilings[1] is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_on_a_gpu_holds_with_speculation_whatever_the_batch(config_of, dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    engine = Engine(config_of(device="cuda", exact=True, dtype=dtype))
    together = answers(engine, "sampled", "coupled")
    alone = [
        engine.generate(prompt, params, speculative=SPECULATIONS["none"])[0].choices[0]
        for prompt, params in zip(PROMPTS, SAMPLINGS["sampled"], strict=True)
    ]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


@pytest.mark.gpu
def test_a_gpus_pool_is_sized_by_its_memory(config_of):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    engine = Engine(config_of(device="auto", num_kv_blocks=None, gpu_memory_utilization=0.5))
    description = engine.describe()
    assert description.device.startswith("cuda")
    # All that the sequences could ever fill: the model is tiny.
    assert description.num_kv_blocks == 8 * 5
    assert answers(engine, "sampled", "none")
