"""How many blocks the pool has: on a CPU as it is told, on a GPU by what its memory leaves."""

import math

import msgspec
import pytest
import torch
from tiny_model import write_tiny_model

from specdec import Engine, EngineConfig, Request, SamplingParams
from specdec import build as build_module
from specdec.attention import TorchAttention
from specdec.build import build_runtime
from specdec.device_memory import Budget, check_pool_fits, check_weights_fit, taking
from specdec.device_verifier import verification_bytes
from specdec.errors import ConfigError
from specdec.kv_cache import bytes_per_block
from specdec.model_runner import ModelRunner
from specdec.models.llama import LlamaModel
from specdec.models.loader import load_weights
from specdec.pool_size import max_batched_tokens, max_logits_rows, num_kv_blocks
from specdec.speculative import MAX_DRAFT_TOKENS

GIB = 2**30


class Memory:
    """A device of so many bytes, of which some are taken; a step holds so many more."""

    def __init__(self, total, taken=0, peak=0):
        self.total, self.taken, self.peak = total, taken, peak
        self.num_runs = 0

    def free_and_total(self):
        return self.total - self.taken, self.total

    def peak_of(self, work):
        work()
        self.num_runs += 1
        return self.peak


@pytest.fixture(scope="module")
def runtime_of(tiny_model_folder, tiny_draft_folder):
    def get(**changes):
        config = EngineConfig(model=str(tiny_model_folder), dtype="float32", max_model_len=256, **changes)
        return config, build_runtime(config)

    return get


def blocks_of(runtime_of, memory, **changes):
    config, runtime = runtime_of(**changes)
    return num_kv_blocks(config, [runtime.runner.model], TorchAttention(), memory, 256)


def block_bytes_of(runtime):
    return bytes_per_block([runtime.runner.model.kv_shape], 16)


def test_a_gpus_pool_is_what_weights_and_the_largest_step_leave(runtime_of):
    config, runtime = runtime_of(gpu_memory_utilization=0.5, max_num_seqs=4096, max_num_batched_tokens=4096)
    block_bytes = block_bytes_of(runtime)
    own = verification_bytes(runtime.runner.model.config.vocab_size, MAX_DRAFT_TOKENS)
    # Of 4 GiB half is allowed; what is left beside these is room for 100 blocks and a bit.
    memory = Memory(4 * GIB, taken=2 * GIB - own - 12345 - 100 * block_bytes - 77, peak=12345)
    assert num_kv_blocks(config, [runtime.runner.model], TorchAttention(), memory, 256) == 100
    assert memory.num_runs == 1


def test_no_pool_is_larger_than_all_sequences_could_fill(runtime_of):
    assert blocks_of(runtime_of, Memory(64 * GIB), max_num_seqs=7) == 7 * 256 // 16


def test_what_is_asked_for_is_not_measured(runtime_of):
    memory = Memory(GIB, taken=GIB)
    assert blocks_of(runtime_of, memory, num_kv_blocks=11) == 11
    _, runtime = runtime_of()
    assert blocks_of(runtime_of, memory, kv_cache_memory=5 * block_bytes_of(runtime) + 1) == 5
    assert memory.num_runs == 0


def test_a_model_without_room_for_a_pool_is_refused_with_the_sizes(runtime_of):
    with pytest.raises(ConfigError) as refused:
        blocks_of(runtime_of, Memory(16 * GIB, taken=14 * GIB, peak=3 * GIB), max_num_batched_tokens=2048)
    assert refused.value.flag == "--gpu-memory-utilization"
    message = str(refused.value)
    for part in ("16.00 GiB", "14.40 GiB", "14.00 GiB", "2048 tokens", "lower --max-num-batched-tokens", "--dtype"):
        assert part in message


@pytest.mark.parametrize(
    ("dtype", "advice"), [(torch.float32, "--dtype bfloat16"), (torch.bfloat16, "a smaller model")]
)
def test_weights_without_room_are_refused_before_they_are_loaded(dtype, advice):
    memory = Memory(16 * GIB, taken=GIB)
    check_weights_fit(memory, 13 * GIB, utilization=0.9, dtype=dtype)
    with pytest.raises(ConfigError, match=advice) as refused:
        check_weights_fit(memory, 14 * GIB, utilization=0.9, dtype=dtype)
    for part in ("14.00 GiB", "16.00 GiB", "15.00 GiB are free", "13.40 GiB"):
        assert part in str(refused.value)


def test_a_pool_that_just_fits_is_taken():
    budget = Budget(total=100, allowed=90, taken=50, step=20)
    assert budget.pool == 20
    check_pool_fits(budget, 20, utilization=0.9, max_num_batched_tokens=512)
    with pytest.raises(ConfigError):
        check_pool_fits(budget, 21, utilization=0.9, max_num_batched_tokens=512)


def test_memory_that_runs_out_is_a_configs_fault():
    with (
        pytest.raises(ConfigError, match="too small for the weights; take less") as refused,
        taking("the weights", flag="--device", otherwise="take less"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert refused.value.flag == "--device"


@pytest.mark.parametrize("batched_tokens", [64, 300, 700])
def test_the_largest_step_has_all_its_tokens_and_rows_at_the_end_of_the_longest_contexts(
    runtime_of, monkeypatch, batched_tokens
):
    config, runtime = runtime_of(max_num_seqs=5, max_num_batched_tokens=batched_tokens)
    forward, passes = ModelRunner.forward, []

    def watched(runner, spans, buffer):
        passes.append((spans, forward(runner, spans, buffer)))
        return passes[-1][1]

    monkeypatch.setattr(ModelRunner, "forward", watched)
    num_kv_blocks(config, [runtime.runner.model] * 2, TorchAttention(), Memory(64 * GIB), 256)
    assert [logits.shape[0] for _, logits in passes] == [max_logits_rows(config), 5]
    for spans, logits in passes:
        assert sum(len(span.token_ids) for span in spans) == batched_tokens
        assert {span.context_len for span in spans} == {256}
        assert logits.isfinite().all()


def test_there_are_no_more_rows_than_the_longest_drafts_have():
    config = EngineConfig(max_num_seqs=2, max_num_batched_tokens=1000)
    assert max_logits_rows(config) == 2 * (1 + MAX_DRAFT_TOKENS)
    assert max_logits_rows(EngineConfig(max_num_seqs=64)) == 512
    assert max_logits_rows(EngineConfig(max_num_seqs=64, max_num_batched_tokens=2048)) == 2048
    assert max_logits_rows(EngineConfig(max_num_seqs=600)) == 600


@pytest.mark.parametrize(("device", "expected"), [("cpu", 512), ("cuda", 2048)])
def test_a_step_has_as_many_tokens_as_keep_the_device_busy_unless_it_is_told(device, expected):
    def tokens(**changes):
        return max_batched_tokens(EngineConfig(**changes), torch.device(device))

    assert tokens() == tokens(max_num_seqs=3) == expected
    assert tokens(max_num_seqs=3000) == 3000
    assert tokens(max_num_batched_tokens=100) == 100
    assert tokens(max_num_batched_tokens=5000) == 5000


def test_what_an_engine_is_said_to_take_in_a_step_is_what_its_scheduler_shares_out(tiny_model_folder):
    config = EngineConfig(model=str(tiny_model_folder), device="cpu", max_model_len=64, num_compile_workers=0)
    engine = Engine(config)
    assert engine.describe().max_num_batched_tokens == 512
    told = Engine(msgspec.structs.replace(config, max_num_batched_tokens=70))
    told.add_request(Request(request_id="long", prompt_token_ids=(5,) * 50, sampling_params=SamplingParams()))
    told.add_request(Request(request_id="next", prompt_token_ids=(6,) * 50, sampling_params=SamplingParams()))
    assert [each.num_tokens for each in told.scheduler.schedule().scheduled] == [50, 20]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sizes_are_known_before_there_is_memory(tmp_path, dtype):
    """What an untied model with biases takes, by its tensors on no device, is what its loaded ones take."""
    folder = write_tiny_model(tmp_path / "m", tie_word_embeddings=False, attention_bias=True, mlp_bias=True)
    seen = []

    class NoRoom(Memory):
        def free_and_total(self):
            seen.append(1)
            return super().free_and_total()

    config = EngineConfig(model=str(folder), dtype=dtype, max_model_len=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaModel, "finish_loading", lambda self: seen.append(self.num_bytes))
        build = build_module._Loader(config, build_module.backend_of(torch.device("cpu")), None, 64, load_weights, None)
        build.load(folder, build_module.ModelConfig.from_folder(folder))
        (loaded,) = seen
        tight = build_module._Loader(config, build.backend, NoRoom(loaded * 10 // 9), 64, load_weights, None)
        with pytest.raises(ConfigError):
            tight.load(folder, build_module.ModelConfig.from_folder(folder))
        roomy = build_module._Loader(
            config, build.backend, NoRoom(math.ceil(loaded * 10 / 9) + 9), 64, load_weights, None
        )
        roomy.load(folder, build_module.ModelConfig.from_folder(folder))
    assert seen.count(1) == 2
    assert seen[-1] == loaded


def test_a_gpu_that_is_not_there_is_refused_by_its_flag(tiny_model_folder):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="no CUDA device") as refused:
        build_runtime(EngineConfig(model=str(tiny_model_folder), device="cuda"))
    assert refused.value.flag == "--device"
    config = EngineConfig(model=str(tiny_model_folder), device="auto", max_model_len=64)
    assert build_runtime(config).description.device == "cpu"


def test_a_gpu_without_triton_is_refused_and_auto_stays_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert build_module._device(EngineConfig(device="cuda")) == torch.device("cuda", 3)
    assert build_module._device(EngineConfig(device="auto")) == torch.device("cuda", 3)
    assert build_module._device(EngineConfig(device="cpu")) == torch.device("cpu")
    monkeypatch.setattr(build_module, "HAS_TRITON", False)
    with pytest.raises(ConfigError, match="triton"):
        build_module._device(EngineConfig(device="cuda"))
    assert build_module._device(EngineConfig(device="auto")) == torch.device("cpu")
