"""`specdec bench engine`: the engine's own steps on random weights, timed if they compute what they should."""

import json
import shlex

import pytest
import torch
from kernel_engines import kernels_on
from typer.testing import CliRunner

from specdec.attention import SlotIndex
from specdec.backend import CpuBackend
from specdec.config import EngineConfig
from specdec.engine import Engine
from specdec.evals import bench_cli, bench_device, bench_limits
from specdec.evals.bench_device import BenchDevice
from specdec.evals.bench_engine_check import fault_of_passes
from specdec.evals.bench_engine_clock import PassClock
from specdec.evals.bench_engine_cost import decode_work
from specdec.evals.bench_engine_load import EngineLoad
from specdec.evals.bench_engine_model import RandomWeights, write_shape
from specdec.evals.bench_shapes import SHAPES
from specdec.machine_code import MachineCode
from specdec.model_runner import ModelRunner
from specdec.request import Request, SamplingParams
from specdec.speculative import SpeculativeConfig

TINY = shlex.split("--shape tiny --dtype float32 --device cpu --batch 1,3 --context 40 --steps 12 --repeats 2")
DRAFT = shlex.split("--draft-shape tiny-draft --k 0,2 --acceptance 0.8,0.5")


@pytest.fixture(autouse=True)
def small_measurements(monkeypatch):
    monkeypatch.setattr(bench_device, "_FLUSH_BYTES", {"cpu": 2**16, "cuda": 2**26})
    monkeypatch.setattr(bench_limits, "_COPY_BYTES", {"cpu": 2**16, "cuda": 2**26})
    monkeypatch.setattr(bench_limits, "_MATMUL_SIZES", {"cpu": (32, 64), "cuda": (1024, 1024)})


def bench(*arguments):
    finished = CliRunner().invoke(bench_cli.app, ["engine", *arguments, "--json"])
    assert finished.stdout.count("\n") == 1, finished.output
    return finished.exit_code, json.loads(finished.stdout)


@pytest.fixture(scope="module")
def shown():
    """Decoding with and without drafts of a model, and a prompt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_device, "_FLUSH_BYTES", {"cpu": 2**16})
        patch.setattr(bench_limits, "_COPY_BYTES", {"cpu": 2**16})
        patch.setattr(bench_limits, "_MATMUL_SIZES", {"cpu": (32, 64)})
        exit_code, shown = bench(*TINY, *DRAFT)
    assert exit_code == 0, shown["failures"]
    return shown


def test_every_point_is_measured(shown):
    points = [(point["batch"], point["context"], point["num_drafts"]) for point in shown["decode"]]
    assert points == [(1, 40, 0), (1, 40, 2), (3, 40, 0), (3, 40, 2)]
    assert [point["num_tokens"] for point in shown["prefill"]] == [40]
    assert shown["left_out"] == {}
    assert all(len(point["ms_per_step"]["values"]) == 12 for point in shown["decode"])


def test_plain_decoding_gives_a_token_a_step_and_drafts_what_their_rates_say(shown):
    for point in shown["decode"]:
        expected = 1.0 if not point["num_drafts"] else 2.3
        assert point["expected_acceptance_length"] == pytest.approx(expected)
        if not point["num_drafts"]:
            assert point["acceptance_length"] == 1.0
        else:
            # Four standard deviations of 12 steps, and what the target draws by chance.
            assert abs(point["acceptance_length"] - expected) < 4 * (0.85 / (12 * point["batch"])) ** 0.5 + 0.1


def test_a_step_is_its_passes_and_what_is_beside_them(shown):
    for point in shown["decode"]:
        assert 0 < point["target_pass_ms"] < point["ms_per_step"]["median"]
        assert 0 < point["overhead_ms"] < point["ms_per_step"]["median"]
        assert point["kernel_ms"] is None
        if point["num_drafts"]:
            assert point["draft_ms"] > point["draft_pass_ms"] > 0
        else:
            assert point["draft_ms"] == 0
            assert point["draft_pass_ms"] is None


def test_shares_and_gains_follow_from_what_is_reported(shown):
    copy, product = (shown["limits"][name]["median"] for name in ("copy_gb_per_s", "matmul_tflop_per_s"))
    plain = {point["batch"]: point for point in shown["decode"] if not point["num_drafts"]}
    for point in shown["decode"]:
        ms = point["ms_per_step"]["median"]
        assert point["share_of_copy"] == pytest.approx(point["work"]["num_bytes"] / (ms * 1e6) / copy)
        without = plain[point["batch"]]
        if point["num_drafts"]:
            assert point["gain"] == pytest.approx(point["tokens_per_s"] / without["tokens_per_s"])
            passes_ms = point["target_pass_ms"] + point["draft_ms"]
            ideal = point["acceptance_length"] * without["target_pass_ms"] / passes_ms
            assert point["ideal_gain"] == pytest.approx(ideal)
        else:
            assert point["gain"] is None
    (prompt,) = shown["prefill"]
    assert prompt["share_of_matmul"] == pytest.approx(
        prompt["work"]["num_flops"] / (prompt["ms"]["median"] * 1e9) / product
    )


def test_bytes_are_those_of_the_sequences_that_ran(shown):
    tiny = SHAPES["tiny"]
    for point in shown["decode"]:
        if not point["num_drafts"]:
            least = decode_work(tiny, None, 4, [40] * point["batch"], 0).num_bytes
            per_token = 4 * 2 * 2 * 2 * 16
            mean = least + per_token * point["batch"] * (point["num_tokens"] - 40)
            assert point["work"]["num_bytes"] == pytest.approx(mean, abs=1)
            assert point["num_tokens"] > 40


def test_drafts_may_cost_nothing():
    exit_code, shown = bench(*TINY, "--phase", "decode", "--batch", "2", "--k", "1", "--acceptance", "1")
    assert exit_code == 0
    (point,) = shown["decode"]
    assert point["acceptance_length"] == 2.0
    assert point["draft_pass_ms"] is None
    assert point["gain"] is None
    assert shown["prefill"] == []


def test_what_does_not_fit_is_left_out_by_name(monkeypatch):
    sizes = ["--phase", "decode", "--batch", "1", "--k", "0", "--context", "40,9000"]
    exit_code, shown = bench(*TINY, *sizes)
    assert exit_code == 0
    assert "and the models have 8192" in shown["left_out"]["decode, batch 1, context 9000, K=0"]
    assert [point["context"] for point in shown["decode"]] == [40]
    monkeypatch.setattr(BenchDevice, "has_room_for", lambda self, num_bytes: False)
    exit_code, shown = bench(*TINY, *sizes)
    assert exit_code == 1
    assert shown["failures"] == ["nothing is timed: there is room for no point"]
    assert shown["decode"] == []
    assert "more than is free" in shown["left_out"]["decode, batch 1, context 40, K=0"]


def nothing_stored(monkeypatch):
    run = MachineCode.run

    def without_stores(self, name, job, *, num_threads):
        if name != "store":
            run(self, name, job, num_threads=num_threads)

    monkeypatch.setattr(SlotIndex, "store", lambda self, key, value, cache: None)
    monkeypatch.setattr(MachineCode, "run", without_stores)


def one_head_twice(monkeypatch):
    attention = type(CpuBackend(torch.device("cpu")).attention(exact=False))
    forward = attention.forward

    def wrong(self, query, key, value, cache, plan):
        attended = forward(self, query, key, value, cache, plan)
        attended[:, 0] = attended[:, 1]
        return attended

    monkeypatch.setattr(attention, "forward", wrong)


def single_tokens_a_place_too_late(monkeypatch):
    forward = ModelRunner.forward

    def wrong(self, spans, *buffer):
        logits = forward(self, spans, *buffer)
        return logits.roll(1, dims=1) if len(spans) == 1 and len(spans[0].token_ids) == 1 else logits

    monkeypatch.setattr(ModelRunner, "forward", wrong)


@pytest.mark.parametrize("fault", [nothing_stored, one_head_twice, single_tokens_a_place_too_late])
def test_passes_that_compute_something_else_are_not_timed(fault, monkeypatch):
    fault(monkeypatch)
    exit_code, shown = bench(*TINY, "--k", "0")
    assert exit_code == 1
    assert shown["decode"] == shown["prefill"] == []
    assert shown["limits"] is None
    (failure,) = shown["failures"]
    assert failure.startswith("nothing is timed: logits of passes over")
    assert "differ from the model written out by" in failure


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_passes_its_check(dtype, tmp_path):
    folder = write_shape(SHAPES["tiny"], tmp_path / "tiny")
    config = EngineConfig(model=str(folder), dtype=dtype, device="cpu", num_kv_blocks=16, num_compile_workers=0)
    assert fault_of_passes(Engine(config, load=RandomWeights(1))) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phase", "warm"], "'warm' is none of decode, prefill"),
        (["--shape", "gpt-9"], "'gpt-9' is none of llama-3-8b"),
        (["--draft-shape", "smollm2-8m"], "a draft must share its target's"),
        (["--draft-shape", "tiny-draft", "--k", "0"], "nothing is drafted; give --k as well"),
        (["--k", "5"], "4 rates for 5 drafts; give one each"),
        (["--k", "x"], "'x' is no list of numbers between 0 and 64"),
        (["--acceptance", "0.5,0.6"], "'0.5,0.6' is no list of shares between 0 and 1"),
        (["--acceptance", "nan"], "'nan' is no list of shares between 0 and 1"),
    ],
)
def test_wrong_parameters_are_named_with_the_way_out(arguments, message):
    finished = CliRunner().invoke(bench_cli.app, ["engine", *TINY, *arguments], env={"COLUMNS": "400"})
    assert finished.exit_code == 2
    assert message in finished.output


def test_random_weights_are_the_same_for_the_same_seed(tmp_path):
    folder = write_shape(SHAPES["tiny"], tmp_path / "tiny")
    config = EngineConfig(
        model=str(folder), dtype="float32", device="cpu", num_kv_blocks=16, num_compile_workers=0, speculative=None
    )
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    tokens = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        (output,) = Engine(config, load=RandomWeights(seed)).generate([[5, 6, 7]], params)
        tokens[name] = output.choices[0].token_ids
    assert tokens["first"] == tokens["again"] != tokens["other"]
    assert len(set(tokens["first"])) > 4


def test_drafts_of_a_model_are_accepted_at_given_rates(tmp_path):
    target, draft = (write_shape(SHAPES[name], tmp_path / name) for name in ("tiny", "tiny-draft"))
    rates = (0.9, 0.6, 0.2)
    speculative = SpeculativeConfig(
        method="synthetic+draft_model", model=str(draft), num_speculative_tokens=3, synthetic_acceptance_rates=rates
    )
    config = EngineConfig(
        model=str(target),
        dtype="float32",
        device="cpu",
        num_kv_blocks=400,
        num_compile_workers=0,
        speculative=speculative,
    )
    engine = Engine(config, load=RandomWeights(3))
    engine.generate([[5, 6]] * 8, [SamplingParams(max_tokens=120, seed=i, ignore_eos=True) for i in range(8)])
    counts = engine.stats().speculation
    assert set(counts.by_proposer) == {"synthetic"}
    for rate, accepted, drafted in zip(
        rates, counts.num_accepted_per_position, counts.num_drafted_per_position, strict=True
    ):
        assert abs(accepted / drafted - rate) < 4 * (rate * (1 - rate) / drafted) ** 0.5 + 0.02


@pytest.mark.parametrize("enforce_eager", [True, False])
def test_passes_over_tokens_that_the_device_drew_are_timed_too(tmp_path, enforce_eager):
    """Where several tokens are drawn in a row, which is so on a GPU, by launches or by replays of a graph."""
    target, draft = (write_shape(SHAPES[name], tmp_path / name) for name in ("tiny", "tiny-draft"))
    speculative = SpeculativeConfig(
        method="synthetic+draft_model", model=str(draft), num_speculative_tokens=3, synthetic_acceptance_rates=(1, 1, 1)
    )
    config = EngineConfig(
        model=str(target),
        dtype="float32",
        max_model_len=80,
        num_kv_blocks=40,
        num_compile_workers=0,
        enforce_eager=enforce_eager,
        speculative=speculative,
    )
    with kernels_on(torch.device("cpu")):
        engine = Engine(config, load=RandomWeights(3))
    assert bool(engine.describe().num_drafting_graphs) is not enforce_eager
    clock = PassClock(engine)
    params = SamplingParams(max_tokens=60, seed=1, ignore_eos=True)
    engine.add_request(Request(request_id="drafted", prompt_token_ids=(5, 6, 7), sampling_params=params))
    with clock.recording():
        for _ in range(6):
            clock.begin_step()
            engine.step()
    steps = clock.take()
    assert [len(step.target_ms) for step in steps] == [1] * 6
    # The prompt's own, then one a draft token.
    assert [len(step.draft_ms) for step in steps[1:]] == [3] * 5
    assert all(ms > 0 for step in steps for ms in step.draft_ms)


def test_a_point_that_fails_is_told_and_the_others_are_timed(monkeypatch):
    prefill = EngineLoad.prefill

    def failing(self, num_tokens):
        if num_tokens == 30:
            raise torch.OutOfMemoryError("no room for 30 tokens")
        return prefill(self, num_tokens)

    monkeypatch.setattr(EngineLoad, "prefill", failing)
    exit_code, shown = bench(*TINY, "--phase", "prefill", "--context", "30,40", "--k", "0")
    assert exit_code == 1
    assert shown["failures"] == ["prompt of 30 is not timed: OutOfMemoryError: no room for 30 tokens"]
    assert [point["num_tokens"] for point in shown["prefill"]] == [40]


def test_no_request_ends_before_the_last_step():
    # One chunk a step, and every sequence drafts and is accepted all the time.
    assert EngineLoad.max_tokens(batch=4, context=100, num_drafts=2, num_steps=5, budget=50) > 3 * (4 * 100 / 50 + 5)


@pytest.mark.gpu
def test_steps_are_timed_on_a_gpu():
    exit_code, shown = bench(*shlex.split("--shape tiny --device cuda --batch 1,3 --context 40 --steps 8"), *DRAFT)
    assert exit_code == 0, shown["failures"]
    assert shown["engine"]["device"].startswith("cuda")
    assert all(point["kernel_ms"] > 0 for point in shown["decode"])
    assert torch.cuda.is_available()
