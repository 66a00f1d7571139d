"""`specdec bench engine --beside transformers`: one copy of the weights, the same tokens, in turns."""

import json
import shlex

import pytest
import torch
from typer.testing import CliRunner

from specdec.backend import CpuBackend
from specdec.config import EngineConfig
from specdec.engine import Engine
from specdec.evals import bench_beside, bench_cli, bench_device
from specdec.evals.bench_beside_check import fault_of_answers
from specdec.evals.bench_beside_points import SidePoint, SideTimes, WayPoint
from specdec.evals.bench_beside_sides import WAYS, EngineSide
from specdec.evals.bench_device import BenchDevice
from specdec.evals.bench_engine_model import KeptWeights, RandomWeights, write_shape
from specdec.evals.bench_shapes import SHAPES
from specdec.evals.peer import TransformersPeer, model_of_weights

TINY = shlex.split(
    "--beside transformers --shape tiny --dtype float32 --device cpu --batch 1,3 --context 40 --new-tokens 6 "
    "--repeats 2 --ways generate,static,continuous,continuous-sdpa"
)


def bench(*arguments):
    finished = CliRunner().invoke(bench_cli.app, ["engine", *arguments, "--json"])
    assert finished.stdout.count("\n") == 1, finished.output
    return finished.exit_code, json.loads(finished.stdout)


@pytest.fixture(scope="module")
def shown():
    exit_code, shown = bench(*TINY)
    assert exit_code == 0, shown["failures"]
    return shown


def test_every_way_is_timed_at_every_batch(shown):
    assert shown["left_out"] == {}
    assert [(point["batch"], point["context"], point["num_new_tokens"]) for point in shown["points"]] == [
        (1, 40, 6),
        (3, 40, 6),
    ]
    for point in shown["points"]:
        assert [way["way"] for way in point["ways"]] == ["generate", "static", "continuous", "continuous-sdpa"]
        for side in (point["own"], *(way["times"] for way in point["ways"])):
            assert len(side["seconds"]["values"]) == len(side["first_token_s"]["values"]) == 2
            assert side["tokens_per_s"] == pytest.approx(point["batch"] * 6 / side["seconds"]["median"])


def test_in_single_precision_both_give_the_same_tokens(shown):
    assert shown["logits_difference"] < 1e-4
    assert [way["same_tokens"] for point in shown["points"] for way in point["ways"]] == [1.0] * 8


def test_ratios_are_of_neighbouring_runs():
    own, other = SideTimes([1.0, 2.0], [3.0, 5.0]), SideTimes([2.0, 8.0], [6.0, 20.0])
    own_point = SidePoint.of(own, 4, 11)
    way = WayPoint.of(
        way="generate", attention="sdpa", own=(own, own_point), other=other, batch=4, num_new_tokens=11, same=1.0
    )
    assert way.ratio.values == (2.0, 4.0)
    assert own_point.ms_per_step == pytest.approx(1000 * (4.0 - 1.5) / 10)
    assert own_point.tokens_per_s == pytest.approx(4 * 11 / 4.0)
    assert way.step_ratio == pytest.approx((13.0 - 5.0) / (4.0 - 1.5))
    assert way.first_token_ratio == pytest.approx(5.0 / 1.5)


@pytest.mark.parametrize("name", ["tiny", "tiny-draft"])
def test_the_library_computes_on_the_engines_own_weights(name, tmp_path):
    weights = KeptWeights(RandomWeights(2))
    folder = write_shape(SHAPES[name], tmp_path / name)
    config = EngineConfig(
        model=str(folder), dtype="float32", device="cpu", num_kv_blocks=16, num_compile_workers=0, speculative=None
    )
    engine = Engine(config, load=weights)
    model = model_of_weights(folder, weights.slots, dtype=torch.float32)
    places = {name: slot.data_ptr() for name, slot in weights.slots.items()}
    assert {name: part.data_ptr() for name, part in model.named_parameters()} == places
    assert all(part.device.type == "cpu" for part in (*model.parameters(), *model.buffers()))
    prompts = [[5, 6, 7], [8, 9, 10]]
    (own, _), (other, _) = (side.generate(prompts, 9) for side in (EngineSide(engine), TransformersPeer(model)))
    assert own == other
    assert fault_of_answers(model, list(zip(prompts, own, strict=True))) is None
    wrong = [[*tokens[:4], (tokens[4] + 1) % 512, *tokens[5:]] for tokens in own]
    assert "token 4 of an answer lies" in fault_of_answers(model, list(zip(prompts, wrong, strict=True)))


def test_answers_that_differ_are_not_timed(monkeypatch):
    class Wrong(TransformersPeer):
        def generate(self, prompts, num_new_tokens):
            tokens, seconds = super().generate(prompts, num_new_tokens)
            return [[*each[:-1], (each[-1] + 1) % 512] for each in tokens], seconds

    monkeypatch.setitem(WAYS, "static", lambda model, **_: Wrong(model))
    exit_code, shown = bench(*TINY, "--batch", "2", "--ways", "generate,static")
    assert exit_code == 1
    (failure,) = shown["failures"]
    assert failure.startswith("static, batch 2, context 40 is not timed: token 5 of an answer lies")
    assert [way["way"] for way in shown["points"][0]["ways"]] == ["generate"]


def test_our_own_answers_are_held_to_the_same(monkeypatch):
    class Wrong(EngineSide):
        def generate(self, prompts, num_new_tokens):
            tokens, seconds = super().generate(prompts, num_new_tokens)
            return [[*each[:-1], (each[-1] + 1) % 512] for each in tokens], seconds

    monkeypatch.setattr(bench_beside, "EngineSide", Wrong)
    exit_code, shown = bench(*TINY, "--batch", "2", "--ways", "generate")
    assert exit_code == 1
    assert shown["points"] == []
    assert "is not timed: of ours, token 5 of an answer lies" in shown["failures"][0]


def test_passes_that_compute_something_else_are_not_timed(monkeypatch):
    attention = type(CpuBackend(torch.device("cpu")).attention(exact=False))
    forward = attention.forward

    def wrong(self, query, key, value, cache, plan):
        return forward(self, query, key, value, cache, plan).roll(1, dims=1)

    monkeypatch.setattr(attention, "forward", wrong)
    exit_code, shown = bench(*TINY)
    assert exit_code == 1
    assert shown["points"] == []
    assert shown["failures"][0].startswith("nothing is timed: logits")


def test_weights_that_are_not_the_same_are_not_timed(monkeypatch):
    def other(folder, weights, *, dtype):
        return model_of_weights(folder, {name: 1.3 * slot for name, slot in weights.items()}, dtype=dtype)

    monkeypatch.setattr(bench_beside, "model_of_weights", other)
    exit_code, shown = bench(*TINY)
    assert exit_code == 1
    assert shown["failures"][0].startswith("nothing is timed: logits differ from those of transformers by")


def test_a_way_that_does_not_run_here_is_named_and_the_others_are_timed(monkeypatch):
    def lacking(model, **_):
        raise ImportError("cannot import name 'ContinuousBatchingConfig'")

    monkeypatch.setitem(WAYS, "continuous", lacking)
    exit_code, shown = bench(*TINY, "--batch", "2", "--ways", "continuous,generate")
    assert exit_code == 0
    reason = shown["left_out"]["continuous, batch 2, context 40"]
    assert reason == "ImportError: cannot import name 'ContinuousBatchingConfig'"
    assert any("continuous, batch 2" in warning for warning in shown["warnings"])
    assert [way["way"] for way in shown["points"][0]["ways"]] == ["generate"]


def test_what_does_not_fit_is_left_out_by_name(monkeypatch):
    exit_code, shown = bench(*TINY, "--batch", "1", "--context", "40,9000", "--ways", "generate")
    assert exit_code == 0
    assert "and the model has 8192" in shown["left_out"]["batch 1, context 9000"]
    monkeypatch.setattr(BenchDevice, "has_room_for", lambda self, num_bytes: False)
    exit_code, shown = bench(*TINY)
    assert exit_code == 1
    assert shown["failures"] == ["nothing is timed: there is room for no point"]


def test_the_interpreters_times_are_nobodys(monkeypatch):
    monkeypatch.setattr(bench_device, "INTERPRETED", True)
    finished = CliRunner().invoke(bench_cli.app, ["engine", *TINY], env={"COLUMNS": "400"})
    assert finished.exit_code == 2
    assert "TRITON_INTERPRET is set" in finished.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TINY, "--ways", "pipeline"], "'pipeline' is none of generate, static, continuous, continuous-sdpa"),
        ([*TINY, "--k", "2"], "it changes nothing beside another library"),
        ([*TINY, "--phase", "decode"], "it changes nothing beside another library"),
        (["--shape", "tiny", "--new-tokens", "9"], "it changes nothing without --beside"),
    ],
)
def test_wrong_parameters_are_named_with_the_way_out(arguments, message):
    finished = CliRunner().invoke(bench_cli.app, ["engine", *arguments], env={"COLUMNS": "400"})
    assert finished.exit_code == 2
    assert message in finished.output


@pytest.mark.gpu
def test_both_sides_run_on_a_gpu():
    exit_code, shown = bench(*TINY, "--device", "cuda", "--dtype", "bfloat16", "--ways", "generate,continuous-sdpa")
    assert exit_code == 0, shown["failures"]
    assert shown["left_out"] == {}
    assert shown["engine"]["device"].startswith("cuda")
    assert torch.cuda.is_available()
