"""The GPU path: the same answers as on a CPU, by the kernels' references, in Triton's interpreter, or on a GPU.

test_device_path_interpreted.py runs this file a second time, with TRITON_INTERPRET set.
"""

import pytest
import torch
from kernel_engines import (
    CASES,
    NUM_TOKENS,
    PROMPTS,
    SAMPLINGS,
    SPECULATIONS,
    answers,
    assert_alike,
    kernel_engine,
    params_of,
)

from specdec import Engine, SpeculativeConfig
from specdec.backend import CpuBackend, KernelBackend, backend_of
from specdec.triton_attention import TritonAttention

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cpu_engine(config_of):
    return Engine(config_of(device="cpu"))


@pytest.fixture(scope="module")
def engine(device, config_of):
    engine = kernel_engine(device, config_of(device=device.type))
    assert engine.runner.device.type == device.type
    return engine


@pytest.mark.parametrize(("sampling", "speculation"), CASES)
def test_answers_are_those_of_the_cpu_path(engine, cpu_engine, sampling, speculation):
    num_drafted = engine.stats().speculation.num_draft_tokens
    ours = answers(engine, sampling, speculation)
    theirs = answers(cpu_engine, sampling, speculation)
    assert (engine.stats().speculation.num_draft_tokens > num_drafted) == (speculation != "none")
    assert_alike(ours, theirs, device=engine.runner.device, speculation=speculation)


@pytest.mark.parametrize("sampling", [sampling for sampling, speculation in CASES if speculation == "coupled"])
def test_coupled_speculation_changes_nothing(engine, sampling):
    plain, coupled = (answers(engine, sampling, each) for each in ("none", "coupled"))
    assert [each.token_ids for each in coupled] == [each.token_ids for each in plain]


@pytest.mark.parametrize("speculation", ["none", "coupled"])
def test_a_preempted_answer_goes_on_as_on_the_cpu(device, config_of, cpu_engine, speculation):
    """With penalties, whose counts outlive the preemption; without one, the answer would be the same."""
    max_tokens = 2 * NUM_TOKENS
    penalties = {"frequency_penalty": 0.7, "presence_penalty": 0.4, "repetition_penalty": 1.2}
    params = params_of(max_tokens=max_tokens, min_tokens=NUM_TOKENS, logit_bias={5: 2.0}, **penalties)
    longest = max(len(cpu_engine.tokenizer.encode(prompt)) for prompt in PROMPTS)
    # The oldest alone takes the small pool in the end.
    few, many = -(-(longest + max_tokens) // 8), 60
    outputs = []
    for num_kv_blocks in (few, many):
        for place in (device, CPU):
            config = config_of(device=place.type, block_size=8, num_kv_blocks=num_kv_blocks)
            engine = Engine(config) if place is CPU else kernel_engine(place, config)
            own = engine.generate(PROMPTS, params, speculative=SPECULATIONS[speculation])
            outputs.append([each.choices[0].token_ids for each in own])
            assert (engine.stats().num_preemptions > 0) == (num_kv_blocks == few)
    assert outputs[1:] == outputs[:-1]


def test_synthetic_drafts_are_accepted_as_on_the_cpu(device, config_of):
    speculative = SpeculativeConfig(
        method="synthetic", synthetic_acceptance_rates=(0.9, 0.6, 0.3), num_speculative_tokens=3
    )
    config = config_of(speculative=speculative)
    engines = [Engine(config_of(speculative=speculative, device="cpu")), kernel_engine(device, config)]
    theirs, ours = (each.generate(PROMPTS, params_of(max_tokens=2 * NUM_TOKENS)) for each in engines)
    assert [each.choices[0].token_ids for each in ours] == [each.choices[0].token_ids for each in theirs]
    theirs, ours = (each.stats().speculation.num_accepted_tokens for each in engines)
    assert ours == theirs > 0


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
    engine = Engine(
        config_of(device="auto", num_kv_blocks=None, gpu_memory_utilization=0.5, max_num_batched_tokens=None)
    )
    description = engine.describe()
    assert description.device.startswith("cuda")
    # All that the sequences could ever fill: the model is tiny.
    assert description.num_kv_blocks == 8 * 5
    assert answers(engine, "sampled", "none")
