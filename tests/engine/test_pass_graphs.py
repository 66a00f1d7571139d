"""PassGraphs and warm-up: what is captured and compiled when an engine is built, in how much memory, and if not."""

import gc
import logging
import subprocess
import sys
from functools import partial

import kernel_engines
import pytest
import torch
from device_watch import DEVICE, DeviceWatch
from kernel_engines import CASES, PROMPTS, SAMPLINGS, SPECULATIONS, answers, kernel_engine, kernels_on, params_of

from specdec import Engine, SamplingParams, build
from specdec.attention import Span
from specdec.backend import KernelBackend
from specdec.captured_passes import CapturedPasses
from specdec.captured_sampling import KINDS
from specdec.device_memory import CudaMemory
from specdec.errors import ConfigError
from specdec.graph_capture import CudaGraphCapture, RepeatCapture
from specdec.kernels.paged_attention_arguments import MAX_HEAD_SIZE
from specdec.models.progress import ModelProgress
from specdec.pass_graphs import PassGraphs
from specdec.triton_attention import TritonAttention
from specdec.warm_up import warm_up_passes, warm_up_sampling

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine(device, config_of):
    return kernel_engine(device, config_of(device=device.type, enforce_eager=False))


@pytest.fixture(scope="module")
def eager(device, config_of):
    return kernel_engine(device, config_of(device=device.type, enforce_eager=True))


def test_replayed_and_eager_passes_take_turns(config_of, device):
    """A prompt that is too long for a graph, then answers that are not."""
    changes = {"device": device.type, "max_model_len": 640, "num_kv_blocks": 120, "max_num_batched_tokens": 2048}
    engine, eager = (kernel_engine(device, config_of(enforce_eager=each, **changes)) for each in (False, True))
    replayed = []
    with pytest.MonkeyPatch.context() as patch:
        forward = CapturedPasses.forward
        patch.setattr(CapturedPasses, "forward", lambda *given: replayed.append(forward(*given)) or replayed[-1])
        prompts = [[3 + i % 50 for i in range(600)], [4, 5], [7 * i % 90 for i in range(50)]]
        params = [SamplingParams(max_tokens=12, seed=i, temperature=0.7, ignore_eos=True) for i in range(3)]
        ours = engine.generate(prompts, params)
    assert {each is None for each in replayed} == {True, False}
    theirs = eager.generate(prompts, params)
    assert [each.choices[0].token_ids for each in ours] == [each.choices[0].token_ids for each in theirs]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_passes_are_the_same_bits_replayed_and_eager(config_of, device, dtype, monkeypatch):
    if device.type == "cpu":
        # The reference of attention is not invariant, which is no matter here.
        monkeypatch.setattr(build, "check_row_invariance", lambda *_, **__: None)
    engine = kernel_engine(device, config_of(device=device.type, exact=True, dtype=dtype, enforce_eager=False))
    runner = engine.runner
    for count in (1, 2, 5, 17, 40):
        spans = [Span(list(range(count)), 0, list(range(5)), count), Span([7], 8, [9, 10, 11], 1)]
        replayed = runner.forward(spans)
        assert torch.equal(replayed, runner.forward_eagerly(spans))
    if device.type == "cpu":
        return
    together = answers(engine, "sampled", "coupled")
    alone = [
        engine.generate(prompt, params, speculative=SPECULATIONS["none"])[0].choices[0]
        for prompt, params in zip(PROMPTS, SAMPLINGS["sampled"], strict=True)
    ]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


def test_captures_are_told_of(device, config_of):
    seen = []
    with kernels_on(device):
        engine = Engine(
            config_of(device=device.type, enforce_eager=False, max_num_batched_tokens=8, max_num_seqs=2),
            progress=seen.append,
        )
    described = engine.describe()
    for description, num_graphs in (
        ("Capturing graphs", described.num_graphs),
        ("Capturing graphs of drafting", described.num_drafting_graphs),
        ("Capturing graphs of sampling", described.num_sampling_graphs),
    ):
        told = [each for each in seen if each.description == description]
        assert {each.completed for each in told} == set(range(num_graphs + 1))
        assert told[-1] == ModelProgress(
            stage="preparing", description=description, completed=num_graphs, total=num_graphs
        )


def test_a_capture_that_fails_is_logged_and_the_engine_is_eager(config_of, caplog, monkeypatch, eager, device):
    class Refusing(RepeatCapture):
        num_left = 3

        def capture(self, work):
            type(self).num_left -= 1
            if type(self).num_left < 0:
                raise RuntimeError("operation not permitted when stream is capturing")
            return super().capture(work)

    monkeypatch.setattr(KernelBackend, "graphs", lambda _: Refusing)
    with caplog.at_level(logging.WARNING, logger="specdec"):
        engine = kernel_engine(device, config_of(device=device.type, enforce_eager=False))
    *of_passes, of_drafting, of_sampling = [record.getMessage() for record in caplog.records]
    assert of_passes == [
        f"passes of the {name} model are launched kernel by kernel, which is slower: a graph of them could not be "
        "captured (RuntimeError: operation not permitted when stream is capturing)"
        for name in ("target", "draft")
    ]
    assert of_drafting == (
        "drafting is launched kernel by kernel, which is slower: a graph of it could not be captured (RuntimeError: "
        "operation not permitted when stream is capturing)"
    )
    assert of_sampling == (
        "sampling is launched kernel by kernel, which is slower: a graph of it could not be captured (RuntimeError: "
        "operation not permitted when stream is capturing)"
    )
    described = engine.describe()
    assert described.num_graphs == described.num_drafting_graphs == described.num_sampling_graphs == 0
    ours, theirs = (each.generate(PROMPTS[:1], params_of()[:1]) for each in (engine, eager))
    assert ours[0].choices[0].token_ids == theirs[0].choices[0].token_ids


def test_a_cpu_has_no_graphs(config_of):
    engine = Engine(config_of(device="cpu", enforce_eager=False))
    described = engine.describe()
    assert described.num_graphs == described.num_drafting_graphs == described.num_sampling_graphs == 0
    assert engine.runner.forward.__func__ is type(engine.runner).forward
    assert engine.runner._captured is None


def test_a_gpus_captures_are_cudas():
    assert KernelBackend(torch.device("cuda", 0)).graphs().func is CudaGraphCapture
    assert KernelBackend(CPU).graphs() is RepeatCapture


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_an_engine_is_built_behind_its_warm_up(config_of, eager, enforce_eager):
    """As on a GPU: passes, logits and sampling run before graphs are captured, and in other modes than these."""
    if eager.runner.device.type == "cuda":
        pytest.skip("every engine is, there")
    with kernels_on(CPU, compiles=True):
        engine = Engine(config_of(enforce_eager=enforce_eager))
    engine.warm_up_thread()
    ours, theirs = (answers(each, "sampled", "coupled") for each in (engine, eager))
    assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]


def test_warming_up_places_every_tensor_and_leaves_answers_and_counts_alone(config_of, monkeypatch, eager):
    if eager.runner.device.type == "cuda":
        pytest.skip("the device is a double: once is enough")
    with DeviceWatch() as watch, kernels_on(DEVICE):
        engine = Engine(config_of(enforce_eager=False))
        monkeypatch.setattr(watch, "is_strict", True)
        for runner in (engine.runner, engine._runtime.draft_runner):
            warm_up_passes(runner, num_blocks=60, block_size=16, max_model_len=80, max_tokens=64)
        warm_up_sampling(
            engine.verifier,
            engine.verifier._sampler,
            engine._logits,
            tokenizer=engine.tokenizer,
            vocab_size=engine.runner.model.config.vocab_size,
            max_drafts=5,
        )
        stats = engine.stats()
        assert (stats.num_steps, stats.num_generation_tokens, stats.num_faults) == (0, 0, {})
        ours = answers(engine, "sampled", "coupled")
    monkeypatch.undo()
    assert [each.token_ids for each in ours] == [each.token_ids for each in answers(eager, "sampled", "coupled")]


def test_heads_that_the_kernel_cannot_take_are_refused(tmp_path):
    from tiny_model import write_tiny_model

    folder = write_tiny_model(tmp_path / "wide", head_dim=MAX_HEAD_SIZE + 2, num_layers=1)
    config = kernel_engines.EngineConfig(model=str(folder), max_model_len=64, num_kv_blocks=8)
    with pytest.raises(ConfigError, match="heads of 258 numbers, and the attention kernel takes up to 256") as refused:
        kernel_engine(CPU, config)
    assert refused.value.flag == "--device"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_device", lambda _: CPU)
        assert Engine(config).describe().device == "cpu"


class Draining:
    """A device that has less room after each capture."""

    def __init__(self):
        self.num_captured = 0

    def free_and_total(self):
        return 10**9 - (10**6 * (self.num_captured > 0) + 1000 * self.num_captured), 10**9

    def new_capture(self):
        def capture(work):
            self.num_captured += 1
            work()
            return work

        made = RepeatCapture()
        made.capture = capture
        return made


def test_what_graphs_will_hold_is_measured_by_a_few(engine):
    model = engine.runner.model
    if model.device.type == "cuda":
        pytest.skip("the memory is a double, and one place is enough")
    memory = Draining()
    graphs = PassGraphs(
        new_capture=memory.new_capture,
        attention=TritonAttention(CPU),
        max_model_len=80,
        max_tokens=64,
        max_sequences=4,
        max_rows=64,
    )
    (buckets,) = graphs.buckets([model])
    num_sampling_graphs = len(KINDS) * len(graphs.sampling_buckets())
    assert graphs.num_bytes([model], memory, block_size=16) == 10**6 + 1000 * (len(buckets) + num_sampling_graphs)
    assert memory.num_captured == 4 + 4 < len(buckets)


def test_what_a_draft_model_s_graphs_will_hold_is_measured_with_its_loop(engine):
    runners = engine.runner, engine._runtime.draft_runner
    models = [runner.model for runner in runners]
    if models[0].device.type == "cuda":
        pytest.skip("the memory is a double, and one place is enough")
    memory = Draining()
    graphs = PassGraphs(
        new_capture=memory.new_capture,
        attention=TritonAttention(CPU),
        max_model_len=80,
        max_tokens=64,
        max_sequences=16,
        max_rows=64,
    )
    num_passes = sum(map(len, graphs.buckets(models)))
    assert graphs.drafting_sizes(models[1]) == [16, 8, 4, 2, 1]
    num_loops = 2 * 5
    num_sampling_graphs = len(KINDS) * len(graphs.sampling_buckets())
    # Each loop has two graphs. What is common to all is had by the first of them.
    expected = 10**6 + 1000 * (num_passes + 2 * num_loops + num_sampling_graphs)
    assert graphs.num_bytes(models, memory, block_size=16) == expected
    assert memory.num_captured == 4 + 4 + 2 * 4 + 4


def test_exact_graphs_hold_no_more_partial_results_than_there_is_room_for(engine):
    model = engine.runner.model
    sizes = {"max_tokens": 512, "max_sequences": 8, "max_rows": 512, "new_capture": RepeatCapture}
    short, long = (
        PassGraphs(attention=TritonAttention(CPU, row_invariant=True), max_model_len=length, **sizes)
        for length in (4096, 2**22)
    )
    assert short.buckets([model])[0][0].num_tokens == 512
    most = long.buckets([model])[0][0].num_tokens
    each = long.attention.partial_bytes(model.config.num_attention_heads, model.config.head_dim, 2**22)
    assert 1 <= most < 512
    assert most * each <= 2**28


@pytest.mark.gpu
def test_the_memory_of_graphs_is_left_beside_a_gpus_pool(config_of, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    told = []
    num_bytes = PassGraphs.num_bytes
    monkeypatch.setattr(PassGraphs, "num_bytes", lambda *given: told.append(num_bytes(*given)) or told[-1])
    config = config_of(device="cuda", num_kv_blocks=None, gpu_memory_utilization=0.5, max_num_batched_tokens=None)
    free_before, total = CudaMemory(torch.device("cuda")).free_and_total()
    engine = Engine(config)
    free_after, _ = CudaMemory(torch.device("cuda")).free_and_total()
    assert engine.describe().num_graphs > 20
    assert 0 < told[0] < 2**31
    assert free_before - free_after < 0.5 * total
    assert answers(engine, "sampled", "coupled")


@pytest.fixture
def compiled(monkeypatch):
    """The names of kernels that Triton compiles from now on; what others had compiled in this process it forgets."""
    triton = pytest.importorskip("triton")
    knobs = triton.knobs
    for name, module in list(sys.modules.items()):
        if name.startswith("specdec.kernels."):
            for kernel in vars(module).values():
                if isinstance(kernel, triton.JITFunction):
                    kernel.device_caches.clear()
    names = []
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", lambda *, fn, **_: names.append(fn.name))
    return names


@pytest.mark.gpu
@pytest.mark.parametrize("enforce_eager", [False, True])
def test_no_request_waits_for_a_kernel_of_a_pass_to_be_compiled(config_of, compiled, enforce_eager):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    # Of sizes that no other test has.
    changes = {"max_model_len": 1500, "num_kv_blocks": 300, "block_size": 32, "max_num_batched_tokens": None}
    engine = Engine(config_of(device="cuda", dtype="bfloat16", enforce_eager=enforce_eager, **changes))
    assert compiled
    compiled.clear()
    for speculation in SPECULATIONS:
        answers(engine, "sampled", speculation)
    prompts = [[3 + i % 50 for i in range(length)] for length in (1, 2, 7, 33, 100, 470, 1300, 3)]
    engine.generate(prompts, SamplingParams(max_tokens=20, seed=3, ignore_eos=True))
    ours = {"paged_attention_kernel", "merge_splits_kernel", "_kv_store_kernel", "_rope_kernel", "_rms_norm_kernel"}
    ours.add("_few_row_linear_kernel")
    assert ours.isdisjoint(compiled)


@pytest.mark.gpu
def test_no_request_waits_for_a_kernel_of_sampling_to_be_compiled(config_of, compiled):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    engine = Engine(config_of(device="cuda", max_num_batched_tokens=None))
    compiled.clear()
    for sampling, speculation in CASES:
        answers(engine, sampling, speculation)
    assert compiled == []


@pytest.mark.gpu
def test_a_graph_is_replayed_over_what_its_tensors_hold_then():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    numbers, total = torch.ones(1000, device=device), torch.zeros((), device=device)

    def work():
        total.copy_((2 * numbers).sum())

    stream = torch.cuda.current_stream(device)
    replay = CudaGraphCapture(device).capture(work)
    assert torch.cuda.current_stream(device) == stream
    assert float(total) == 2000
    numbers += 1
    replay()
    assert float(total) == 4000


@pytest.mark.gpu
def test_a_graph_outlives_others_of_its_stream():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(5)
    # Long sums for few results, which a library parts and adds up in its workspace.
    rows = torch.randn(2, 16384, dtype=torch.bfloat16, device=device)
    weight = torch.randn(256, 16384, dtype=torch.bfloat16, device=device)
    products = [torch.empty(2, 256, dtype=torch.bfloat16, device=device) for _ in range(2)]
    kept, dropped = (
        CudaGraphCapture(device).capture(partial(torch.mm, rows, weight.T, out=product)) for product in products
    )
    del dropped
    gc.collect()
    torch.cuda.empty_cache()
    expected = products[0].clone()
    others = torch.full((2**26,), torch.nan, device=device)
    for _ in range(3):
        kept()
    torch.cuda.synchronize(device)
    assert torch.equal(products[0], expected)
    assert bool(others.isnan().all())


REFUSED = """
import torch
from specdec.graph_capture import CudaGraphCapture

device = torch.device("cuda", torch.cuda.current_device())
numbers, total = torch.ones(1000, device=device), torch.zeros((), device=device)
stream = torch.cuda.current_stream(device)
try:
    CudaGraphCapture(device).capture(lambda: total.add_(numbers.sum().item()))
except RuntimeError:
    pass
else:
    raise SystemExit("a wait was captured")
assert torch.cuda.current_stream(device) == stream
assert float((3 * numbers).sum()) == 3000
"""


@pytest.mark.gpu
def test_after_a_capture_that_the_device_refuses_it_works_on():
    """In a process of its own, as some versions of torch then take no other capture."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    finished = subprocess.run([sys.executable, "-P", "-c", REFUSED], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_trial_that_fails_is_logged_and_holds_nothing(engine, caplog):
    if engine.runner.device.type == "cuda":
        pytest.skip("the device is a double, and one place is enough")

    class Refusing(RepeatCapture):
        def capture(self, work):
            raise RuntimeError("operation not permitted when stream is capturing")

    sizes = {"max_model_len": 80, "max_tokens": 64, "max_sequences": 4, "max_rows": 64}
    graphs = PassGraphs(new_capture=Refusing, attention=TritonAttention(CPU), **sizes)
    with caplog.at_level(logging.WARNING, logger="specdec"):
        assert graphs.num_bytes([engine.runner.model], Draining(), block_size=16) == 0
    assert "for a trial (RuntimeError: operation not permitted" in caplog.text

    class Full(RepeatCapture):
        def capture(self, work):
            raise torch.OutOfMemoryError("CUDA out of memory")

    graphs = PassGraphs(new_capture=Full, attention=TritonAttention(CPU), **sizes)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.num_bytes([engine.runner.model], Draining(), block_size=16)
