"""Caches of fp8: what they keep is rounded and nothing else changes; by the kernels' references, or on a GPU."""

import functools
import json
import re

import jsonschema
import kernel_engines
import pytest
import torch
from kernel_engines import SCHEMA, answers, kernel_engine, params_of
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model

from specdec import Engine, EngineConfig
from specdec.attention import Span
from specdec.backend import CpuBackend, KernelBackend
from specdec.errors import CheckpointError, ConfigError
from specdec.evals.bench_engine_check import fault_of_passes
from specdec.kv_cache import bytes_per_block
from specdec.models.loader import SINGLE_FILE

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
COUPLED = ["greedy", "sampled", "penalised", "under a schema", "greedy under a schema"]


@pytest.fixture(scope="module")
def config_of(tiny_model_folder, tiny_draft_folder):
    return functools.partial(
        kernel_engines.config_of, tiny_model_folder, tiny_draft_folder, kv_cache_dtype="fp8", device="auto"
    )


@pytest.fixture(scope="module")
def engine(device, config_of):
    return kernel_engine(device, config_of())


@pytest.fixture(scope="module")
def invariant(device, config_of, engine):
    """Last bits, which depend on the rows beside, decide what a number is rounded to; on a GPU they need not.

    On a CPU the references' products are not invariant, and their answers agree in practice.
    """
    return kernel_engine(device, config_of(exact=True)) if device.type == "cuda" else engine


def test_target_and_draft_share_an_arena_of_fp8(engine, config_of, device):
    runners = [engine.runner, engine._runtime.draft_runner]
    assert all(keys.dtype == values.dtype == FP8 for each in runners for keys, values in each._cache.layers)
    description = engine.describe()
    assert description.kv_cache_dtype == "float8_e4m3fn"
    shapes = [each.model.kv_shape for each in runners]
    assert description.kv_cache_bytes == description.num_kv_blocks * bytes_per_block(shapes, description.block_size)
    places = [keys.untyped_storage().data_ptr() for each in runners for keys, _ in each._cache.layers]
    assert len(set(places)) == 1


def test_the_same_memory_holds_twice_the_tokens_of_16_bits(config_of, device):
    numbers = {}
    for name in ("auto", "fp8"):
        config = config_of(dtype="bfloat16", kv_cache_dtype=name, num_kv_blocks=None, kv_cache_memory=64 * 2**10)
        numbers[name] = kernel_engine(device, config).describe().num_kv_blocks
    assert numbers["auto"] > 10
    assert numbers["fp8"] in {2 * numbers["auto"], 2 * numbers["auto"] + 1}


def test_passes_are_those_of_the_model_with_rounded_keys_and_values(engine):
    assert fault_of_passes(engine) is None


def test_logits_differ_by_the_rounding_alone(engine, config_of, device):
    exact = kernel_engine(device, config_of(kv_cache_dtype="auto"))
    span = Span([3 + 7 * i % 60 for i in range(40)], 0, [0, 1, 2], num_logits=40)
    ours, theirs = (each.runner.forward([span]).clone() for each in (engine, exact))
    difference = float((ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())
    # A number is off by 2^-4 of itself at most, by less than half of that on average, and two layers add up. What it
    # is exactly the test above says.
    assert 2**-8 < difference < 2**-3


@pytest.mark.parametrize("sampling", COUPLED)
def test_coupled_speculation_changes_nothing(invariant, sampling):
    num_drafted = invariant.stats().speculation.num_draft_tokens
    plain, coupled = (answers(invariant, sampling, each) for each in ("none", "coupled"))
    assert invariant.stats().speculation.num_draft_tokens > num_drafted
    assert [each.token_ids for each in coupled] == [each.token_ids for each in plain]


@pytest.mark.parametrize("speculation", ["none", "coupled", "rejection", "block"])
def test_answers_under_a_schema_validate(engine, speculation):
    for answer in answers(engine, "under a schema", speculation):
        jsonschema.validate(json.loads(answer.text), SCHEMA)


def test_captured_passes_give_what_eager_ones_give(invariant, config_of, device):
    eager = kernel_engine(device, config_of(enforce_eager=True, exact=device.type == "cuda"))
    assert invariant.describe().num_graphs > 0 == eager.describe().num_graphs
    for sampling, speculation in (("sampled", "none"), ("under a schema", "coupled")):
        ours, theirs = (answers(each, sampling, speculation) for each in (invariant, eager))
        assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]


def test_a_prompt_that_is_found_again_gets_the_same_answer(invariant):
    prompt = "The quick brown fox jumps over the lazy dog, and the lazy dog does not mind at all"
    params = params_of(temperature=0.0)[0]
    first, second = (invariant.generate([prompt], params)[0] for _ in range(2))
    assert first.num_cached_tokens == 0 < second.num_cached_tokens
    assert second.choices[0].token_ids == first.choices[0].token_ids


def with_scales(folder, **scales):
    """A tiny model that brings scales for its two layers of two heads: by `k0` and the like."""
    write_tiny_model(folder, num_layers=2, num_kv_heads=2)
    tensors = load_file(folder / SINGLE_FILE)
    tensors |= {f"model.layers.{name[1]}.self_attn.{name[0]}_scale": scale for name, scale in scales.items()}
    save_file(tensors, folder / SINGLE_FILE)
    return EngineConfig(
        model=str(folder), num_kv_blocks=16, kv_cache_dtype="fp8", num_compile_workers=0, speculative=None
    )


def test_a_checkpoints_scales_are_those_of_its_caches(tmp_path, device):
    given = {
        "k0": torch.tensor(0.5),
        "v0": torch.tensor([0.25], dtype=torch.bfloat16),
        "k1": torch.tensor([0.125, 2.0]),
    }
    engine = kernel_engine(device, with_scales(tmp_path / "model", **given))
    (key0, value0), (key1, value1) = engine.runner.model.kv_scales.layers
    assert [scale.tolist() for scale in (key0, value0, key1, value1)] == [
        [0.5, 0.5],
        [0.25, 0.25],
        [0.125, 2.0],
        [1.0, 1.0],
    ]
    assert all(scale.device.type == device.type for scale in (key0, value0, key1, value1))
    assert fault_of_passes(engine) is None


def test_where_caches_are_not_fp8_a_checkpoints_scales_are_nobodys(tmp_path):
    config = with_scales(tmp_path / "model", k0=torch.tensor(0.5))
    plain = Engine(EngineConfig(**{name: getattr(config, name) for name in ("model", "num_kv_blocks")}, device="cpu"))
    assert plain.runner.model.kv_scales is None


def test_a_scale_keeps_what_would_be_too_large(tmp_path, device):
    """The largest finite number is 448: without a scale all larger keys are that one."""
    folder = tmp_path / "model"
    config = with_scales(folder, v0=torch.tensor(64.0), v1=torch.tensor(64.0))
    tensors = load_file(folder / SINGLE_FILE)
    for name in tensors:
        if "v_proj" in name:
            tensors[name] *= 3000
    save_file(tensors, folder / SINGLE_FILE)
    assert fault_of_passes(kernel_engine(device, config)) is None
    span = Span([5, 9, 13, 17], 0, [0], num_logits=4)
    logits = {}
    for name, kv_cache_dtype in (("scaled", "fp8"), ("exact", "auto")):
        changed = EngineConfig(
            model=config.model, num_kv_blocks=16, kv_cache_dtype=kv_cache_dtype, num_compile_workers=0, speculative=None
        )
        logits[name] = kernel_engine(device, changed).runner.forward([span]).clone()
    save_file({name: tensor for name, tensor in tensors.items() if "_scale" not in name}, folder / SINGLE_FILE)
    logits["clipped"] = kernel_engine(device, config).runner.forward([span]).clone()

    def distance(name):
        return float((logits[name] - logits["exact"]).square().mean().sqrt())

    assert 0 < 2 * distance("scaled") < distance("clipped")


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.tensor(0.0), "k_scale has [0.0]; a scale must be finite and above 0"),
        (torch.tensor(float("nan")), "k_scale has [nan]; a scale must be finite and above 0"),
        (torch.tensor([1.0, 1.0, 1.0]), "k_scale is [3]; it must be one number, or one for each of 2 heads"),
    ],
)
def test_what_is_no_scale_is_refused(scale, message, tmp_path):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        kernel_engine(CPU, with_scales(tmp_path / "model", k1=scale))


def test_a_cpu_refuses_them_before_anything_is_pulled():
    with pytest.raises(ConfigError, match="caches of fp8 need a GPU") as refused:
        Engine(EngineConfig(model="no/such-model", device="cpu", kv_cache_dtype="fp8"))
    assert refused.value.flag == "--kv-cache-dtype"
    assert CpuBackend(CPU).kv_dtype("auto") is None


def test_a_gpu_that_cannot_read_fp8_refuses_them(monkeypatch):
    backend = KernelBackend(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert backend.kv_dtype("auto") is None
    with pytest.raises(ConfigError, match=re.escape("its compute capability is 8.0, and 8.9 is the least")):
        backend.kv_dtype("fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert backend.kv_dtype("fp8") == FP8


@pytest.mark.gpu
def test_exact_arithmetic_on_a_gpu_holds_with_them(config_of):
    """The check at start compares bits, and refuses where they differ."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert Engine(config_of(exact=True)).describe().exact
