"""`specdec bench kernels`: what is wrong is not timed, what is timed is held against what was measured."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from typing import ClassVar

import pytest
import torch
from typer.testing import CliRunner

from specdec import captured_sampling
from specdec.attention import SlotIndex
from specdec.evals import (
    bench_cli,
    bench_device,
    bench_kernel_cache,
    bench_kernel_rows,
    bench_kernel_sampling,
    bench_kernel_verification,
    bench_limits,
)
from specdec.evals.bench_device import BenchDevice, Launch
from specdec.evals.bench_kernel_cell import KernelSetting, difference
from specdec.evals.bench_kernels import OPS
from specdec.evals.bench_shapes import SHAPES

SIZES = shlex.split("--shape tiny --batch 1,3 --context 16,40 --prompt 48 --k 2 --vocab-size 500 --repeats 2")
ON_CPU = {name for name, op in OPS.items() if op.on_cpu is not None}


@pytest.fixture(autouse=True)
def small_measurements(monkeypatch):
    monkeypatch.setattr(bench_device, "_FLUSH_BYTES", {"cpu": 2**16, "cuda": 2**26})
    monkeypatch.setattr(bench_limits, "_COPY_BYTES", {"cpu": 2**16, "cuda": 2**26})
    monkeypatch.setattr(bench_limits, "_MATMUL_SIZES", {"cpu": (32, 64), "cuda": (1024, 1024)})


def bench(*arguments):
    finished = CliRunner().invoke(bench_cli.app, ["kernels", *SIZES, "--json", *arguments])
    assert finished.stdout.count("\n") == 1, finished.output
    return finished.exit_code, json.loads(finished.stdout)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_that_an_engine_runs_on_a_cpu_is_checked_and_timed(dtype):
    exit_code, shown = bench("--device", "cpu", "--dtype", dtype)
    assert exit_code == 0, shown["failures"]
    assert {each["op"] for each in shown["ops"]} == ON_CPU
    assert set(shown["left_out"]) == set(OPS) - ON_CPU
    for each in shown["ops"]:
        assert each["measured"] != "kernel"
        for cell in each["cells"]:
            assert len(cell["ms"]["values"]) == 2
            assert cell["ms"]["low"] > 0
            seconds = cell["ms"]["median"] / 1000
            rate = cell["work"]["num_bytes"] / seconds / 1e9
            assert cell["share_of_copy"] == pytest.approx(rate / shown["limits"]["copy_gb_per_s"]["median"])
            if each["op"] == "paged_attention":
                rate = cell["work"]["num_flops"] / seconds / 1e12
                assert cell["share_of_matmul"] == pytest.approx(rate / shown["limits"]["matmul_tflop_per_s"]["median"])
            else:
                assert cell["share_of_matmul"] is None


def test_cells_move_what_their_shapes_say():
    _, shown = bench("--device", "cpu", "--dtype", "float32")
    moved = {(each["op"], cell["cell"]): cell["work"]["num_bytes"] for each in shown["ops"] for cell in each["cells"]}
    # tiny: 4 query heads and 2 key-value heads of 16, hidden size 64, intermediate size 128.
    assert moved["paged_attention", "decode 1, batch 3, context 40"] == 4 * (3 * 40 * 2 * 2 * 16 + 3 * 2 * 4 * 16)
    assert moved["paged_attention", "verify 3, batch 1, context 16"] == 4 * (16 * 2 * 2 * 16 + 3 * 2 * 4 * 16)
    assert moved["paged_attention", "prompt of 48"] == 4 * (48 * 2 * 2 * 16 + 48 * 2 * 4 * 16)
    assert moved["kv_store", "tokens 9"] == 9 * (4 * 2 * 2 * 2 * 16 + 8)
    assert moved["rms_norm", "rows 3"] == 4 * (2 * 3 * 64 + 64)
    assert moved["rms_norm", "rows 3, with residual"] == 4 * (4 * 3 * 64 + 64)
    assert moved["rope", "rows 48"] == 48 * (4 * (2 * 6 + 1) * 16 + 8)
    assert moved["silu_mul", "rows 1"] == 4 * 3 * 128
    assert moved["token_mask", "batch 3, rows 9"] == 4 * round(9 * 500 * 31 / 32) + 9 * (500 // 8 + 8)


def test_an_op_that_computes_something_else_is_named_and_not_timed(monkeypatch):
    kind = type(bench_kernel_rows.cpu_ops())
    rotate = kind.rotate
    monkeypatch.setattr(kind, "rotate", lambda *args: rotate(*args).flip(2))
    exit_code, shown = bench("--device", "cpu", "--op", "rope", "--op", "silu_mul")
    assert exit_code == 1
    assert [each["op"] for each in shown["ops"]] == ["silu_mul"]
    (failure,) = shown["failures"]
    assert failure.startswith("rope is not timed: it differs from its reference: heads of 1 rows")


def test_an_op_that_stores_nothing_or_fails_is_not_timed_either(monkeypatch):
    monkeypatch.setattr(SlotIndex, "store", lambda self, key, value, cache: None)
    exit_code, shown = bench("--device", "cpu", "--op", "kv_store", "--op", "rms_norm")
    assert exit_code == 1
    assert "kv_store is not timed" in shown["failures"][0]

    def broken(*_):
        raise IndexError("slot 7 is nowhere")

    monkeypatch.setattr(SlotIndex, "store", broken)
    exit_code, shown = bench("--device", "cpu", "--op", "kv_store", "--op", "rms_norm")
    assert exit_code == 1
    assert "IndexError: slot 7 is nowhere" in shown["failures"][0]
    assert [each["op"] for each in shown["ops"]] == ["rms_norm"]


def test_what_there_is_no_memory_for_is_left_out_by_name(monkeypatch):
    monkeypatch.setattr(BenchDevice, "has_room_for", lambda self, num_bytes: num_bytes < 40_000)
    exit_code, shown = bench("--device", "cpu", "--op", "silu_mul")
    assert exit_code == 0
    assert "more than is free" in shown["left_out"]["silu_mul, rows 48"]
    assert [cell["cell"] for cell in shown["ops"][0]["cells"]] == ["rows 1", "rows 3", "rows 9"]


def failing_at(number, failure):
    """BenchDevice.times_ms, but for one call; those of the limits are the first three."""
    times_ms, numbers = BenchDevice.times_ms, itertools.count()
    return lambda *given: failure() if next(numbers) == number else times_ms(*given)


def test_a_cell_that_fails_is_told_and_the_others_are_timed(monkeypatch):
    def refuse():
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(BenchDevice, "times_ms", failing_at(4, refuse))
    exit_code, shown = bench("--device", "cpu", "--op", "silu_mul")
    assert exit_code == 1
    assert shown["failures"] == ["silu_mul, rows 3, is not timed: RuntimeError: CUDA error: misaligned address"]
    assert [cell["cell"] for cell in shown["ops"][0]["cells"]] == ["rows 1", "rows 9", "rows 48"]


def test_what_was_measured_until_a_time_limit_is_kept(monkeypatch):
    def end():
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)

    monkeypatch.setattr(BenchDevice, "times_ms", failing_at(5, end))
    before = signal.getsignal(signal.SIGTERM)
    exit_code, shown = bench("--device", "cpu", "--op", "silu_mul", "--op", "rope")
    assert signal.getsignal(signal.SIGTERM) is before
    assert exit_code == 1
    assert shown["failures"] == ["stopped before all was measured, by a signal"]
    assert [(each["op"], len(each["cells"])) for each in shown["ops"]] == [("rope", 2)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_needs_and_ends_with_2():
    finished = CliRunner().invoke(bench_cli.app, ["kernels", *SIZES], env={"COLUMNS": "400"})
    assert finished.exit_code == 2
    assert "the kernels need an NVIDIA GPU, its driver and a CUDA build of torch" in finished.output
    assert "--device cpu" in finished.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "softmax"], "'softmax' is none of rms_norm"),
        (["--shape", "gpt-9"], "'gpt-9' is none of llama-3-8b"),
        (["--context", "2"], "a context of 2 tokens has no room for 2 drafts"),
        (["--batch", "0"], "'0' is no list of numbers between 1 and 4096"),
        (["--num-stages", "2,9"], "'2,9' is no list of numbers between 1 and 8"),
        (["--num-warps", "4,6"], "'4,6' is no list of 1, 2, 4, 8, 16, 32"),
        (["--num-stages", "3", "--op", "rope"], "it is about the kernel of paged_attention, which is not timed"),
        (["--num-warps", "8", "--device", "cpu"], "it is about the kernel of paged_attention, which is not timed"),
    ],
)
def test_wrong_parameters_are_named_with_the_way_out(arguments, message):
    finished = CliRunner().invoke(bench_cli.app, ["kernels", *SIZES, *arguments], env={"COLUMNS": "400"})
    assert finished.exit_code == 2
    assert message in finished.output


@pytest.mark.parametrize("command", [["kernels", "--device", "cpu"], ["engine", "--shape", "tiny"]])
def test_the_interpreter_is_never_timed(command, monkeypatch):
    monkeypatch.setattr(bench_device, "INTERPRETED", True)
    finished = CliRunner().invoke(bench_cli.app, command, env={"COLUMNS": "400"})
    assert finished.exit_code == 2
    assert "TRITON_INTERPRET is set" in finished.output


class WrappersOnCpu(BenchDevice):
    """Calls the kernels' wrappers as on a GPU; they run their references on CPU tensors."""

    @property
    def is_gpu(self):
        return True


class GpuInName(WrappersOnCpu):
    """Times nothing, and says how each call would have been launched."""

    launches: ClassVar[list[Launch]] = []
    name = "a GPU in name"

    def has_room_for(self, num_bytes):
        return True

    def release(self):
        pass

    def times_ms(self, call, repeats, launch=Launch.AS_GRAPH):
        call()
        self.launches.append(launch)
        return [0.125] * repeats


@pytest.fixture
def gpu_in_name(monkeypatch):
    monkeypatch.setattr(GpuInName, "launches", [])
    monkeypatch.setattr(BenchDevice, "named", lambda _: GpuInName(torch.device("cpu")))
    return GpuInName


def setting_of(bench, dtype=torch.float32, **changes):
    numbers = {
        "batches": (1, 3),
        "contexts": (16, 40),
        "num_prompt_tokens": 48,
        "num_drafts": 2,
        "vocab_size": 500,
    }
    return KernelSetting(bench=bench, dtype=dtype, shape=SHAPES["tiny"], **(numbers | changes))


@pytest.mark.parametrize("name", OPS)
def test_what_a_gpu_would_be_given_is_what_the_wrappers_take(name):
    setting = setting_of(WrappersOnCpu(torch.device("cpu")))
    assert OPS[name].check(setting) is None
    cells = OPS[name].cells(setting)
    assert len({cell.label for cell in cells}) == len(cells)
    for cell in cells:
        call = cell.prepare()
        call()
        call()
        assert cell.work.num_bytes > 0


def test_on_a_gpu_caches_are_of_fp8_as_well():
    setting = setting_of(WrappersOnCpu(torch.device("cpu")), torch.float16)
    for name, label, num_bytes in (
        ("kv_store", "tokens 9", 9 * (2 * 2 * 2 * 16 * 2 + 8)),
        ("kv_store", "tokens 9, fp8", 9 * (2 * 2 * 16 * (2 + 1) + 8)),
        ("paged_attention", "decode 1, batch 3, context 40", 2 * (3 * 40 * 2 * 2 * 16 + 3 * 2 * 4 * 16)),
        ("paged_attention", "decode 1, batch 3, context 40, fp8", 3 * 40 * 2 * 2 * 16 + 2 * 3 * 2 * 4 * 16),
    ):
        (cell,) = (cell for cell in OPS[name].cells(setting) if cell.label == label)
        assert cell.work.num_bytes == num_bytes


def test_what_follows_a_pass_is_timed_as_a_graph_of_the_engine_s_and_kernel_by_kernel(gpu_in_name):
    ops = ("mask_sample_verify", "captured_sampling")
    exit_code, shown = bench(*(part for name in ops for part in ("--op", name)))
    assert exit_code == 0, shown["failures"]
    assert {each["op"]: [cell["cell"] for cell in each["cells"]] for each in shown["ops"]} == {
        "mask_sample_verify": [
            "batch 1, rows 3",
            "batch 1, rows 3, launched one by one",
            "batch 3, rows 9",
            "batch 3, rows 9, launched one by one",
        ],
        "captured_sampling": ["batch 1, rows 3, a graph of 4", "batch 3, rows 9, a graph of 16"],
    }
    # Those before are of what the device does at best.
    assert gpu_in_name.launches[5:] == [Launch.AS_GRAPH, Launch.ONE_BY_ONE] * 2 + [Launch.AS_IT_IS] * 2
    num_bytes = {
        cell["work"]["num_bytes"] for each in shown["ops"] for cell in each["cells"] if "rows 9" in cell["cell"]
    }
    assert num_bytes == {9 * (4 * 500 + 500 // 8 + 37) + 24 * 9 + 8 * 3}, "what fills a graph up is no work"


@pytest.mark.usefixtures("gpu_in_name")
def test_a_step_that_no_engine_captures_is_left_out_by_name():
    exit_code, shown = bench("--op", "captured_sampling", "--batch", "1,171")
    assert exit_code == 0, shown["failures"]
    assert [cell["cell"] for cell in shown["ops"][0]["cells"]] == ["batch 1, rows 3, a graph of 4"]
    assert shown["left_out"] == {"captured_sampling, batch 171, rows 513": "an engine captures steps of up to 512 rows"}


@pytest.mark.usefixtures("gpu_in_name")
def test_stages_and_warps_of_attention_are_compared(monkeypatch):
    tilings, attend = [], bench_kernel_cache.paged_attention

    def watched(*tensors, tiling, **options):
        tilings.append((tiling.num_stages, tiling.num_warps))
        attend(*tensors, tiling=tiling, **options)

    monkeypatch.setattr(bench_kernel_cache, "paged_attention", watched)
    for flags, kinds, numbers in (
        # Of fp8 in three stages.
        ((), [""], {(2, None), (3, None)}),
        (("--num-stages", "2,3"), [", 2 stages", ", 3 stages"], {(2, None), (3, None)}),
        (("--num-stages", "3", "--num-warps", "4,8"), [", 3 stages, 4 warps", ", 3 stages, 8 warps"], {(3, 4), (3, 8)}),
    ):
        tilings.clear()
        exit_code, shown = bench("--op", "paged_attention", "--dtype", "float16", "--batch", "3", *flags)
        assert exit_code == 0, shown["failures"]
        (op,) = shown["ops"]
        of_one = [cell["cell"] for cell in op["cells"] if cell["cell"].startswith("decode 1, batch 3, context 40")]
        stem = "decode 1, batch 3, context 40"
        assert of_one == [stem + cache + kind for cache in ("", ", fp8") for kind in kinds]
        assert len(op["cells"]) == 2 * 5 * len(kinds)
        assert set(tilings) == numbers
        # Each is checked in three steps of either cache, and then timed.
        assert len(tilings) == (2 * 3 + 2 * 5) * len(kinds)


@pytest.mark.parametrize("name", ["kv_store", "paged_attention"])
def test_scales_that_are_left_out_are_found(name, monkeypatch):
    function = getattr(bench_kernel_cache, name)

    def without(*arguments, **options):
        ones = {
            scale: torch.ones_like(options[scale])
            for scale in ("key_scale", "value_scale")
            if options.get(scale) is not None
        }
        function(*arguments, **(options | ones))

    monkeypatch.setattr(bench_kernel_cache, name, without)
    found = OPS[name].check(setting_of(WrappersOnCpu(torch.device("cpu"))))
    assert "fp8" in found
    assert "differ from the reference's" in found


def off_by_one(function, place):
    """The function, which then changes the first number of the argument at this place."""

    def wrong(*arguments, **options):
        function(*arguments, **options)
        arguments[place][0] += 1

    return wrong


@pytest.mark.parametrize(
    ("name", "module", "function", "place"),
    [
        ("sample", bench_kernel_sampling, "sample", 3),
        ("token_mask", bench_kernel_sampling, "apply_token_mask", 0),
        ("mask_sample_verify", bench_kernel_sampling, "sample", 3),
        ("mask_sample_verify", bench_kernel_sampling, "verify_coupled", 3),
        ("captured_sampling", captured_sampling, "sample", 3),
        ("captured_sampling", captured_sampling, "verify_coupled", 3),
        ("captured_sampling", captured_sampling, "verify_coupled", 4),
        ("verify_coupled", bench_kernel_verification, "verify_coupled", 3),
        ("verify_by_rule", bench_kernel_verification, "verify_by_rule", 8),
    ],
)
def test_one_wrong_number_is_found(name, module, function, place, monkeypatch):
    monkeypatch.setattr(module, function, off_by_one(getattr(module, function), place))
    assert "differ from the reference's" in OPS[name].check(setting_of(WrappersOnCpu(torch.device("cpu"))))


def test_numbers_that_were_never_written_differ():
    assert difference("x", torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0]), 1.0) is not None
    assert difference("x", torch.tensor([float("-inf")]), torch.tensor([float("-inf")])) is None
    assert difference("x", torch.tensor([1.0]), torch.tensor([1.0, 2.0])) is not None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_kernels_are_checked_and_timed_on_a_gpu(dtype):
    exit_code, shown = bench("--device", "cuda", "--dtype", dtype)
    assert exit_code == 0, shown["failures"]
    assert [each["op"] for each in shown["ops"]] == list(OPS)
    assert all(each["measured"] == "kernel" for each in shown["ops"])
    assert all(cell["ms"]["low"] > 0 for each in shown["ops"] for cell in each["cells"])
    assert shown["left_out"] == {}


@pytest.mark.gpu
def test_stages_and_warps_of_attention_are_compared_on_a_gpu():
    exit_code, shown = bench("--op", "paged_attention", "--num-stages", "2,3,5", "--num-warps", "4,8")
    assert exit_code == 0, shown["failures"]
    kinds = {tuple(cell["cell"].split(", ")[-2:]) for cell in shown["ops"][0]["cells"]}
    assert kinds == {(f"{stages} stages", f"{warps} warps") for stages in (2, 3, 5) for warps in (4, 8)}


def test_help_and_mistakes_need_no_torch():
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom specdec.evals.bench_cli import app\n"
        "for arguments in (['--help'], ['kernels', '--help'], ['engine', '--help'], ['engine', '--nonsense']):\n"
        "    CliRunner().invoke(app, arguments)\n"
        "print('torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"
