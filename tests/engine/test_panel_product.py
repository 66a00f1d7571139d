"""Products with weights in panels: the definition, bit for bit, whatever the rows, threads and callers beside them."""

import subprocess
import sys
import threading

import pytest
import torch
from guarded_scratch import GuardedScratch

from specdec import panel_product as panel_product_module
from specdec.linear import PanelLinear, linear_method
from specdec.machine_code import MachineCode, Scratch, is_available
from specdec.panel_code import max_group_rows, panel_size
from specdec.panel_product import Panels, panel_product, panel_product_reference
from specdec.processor import max_lanes

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="the kernel needs AVX2"
)

DTYPES = [torch.bfloat16, torch.float16]
# Registers of either size; where there are none so large, two take their place.
ALL_LANES = [8, 16]
# Rows: each group's size, one more than fits a group, blocks of rows; inputs and outputs that fill no unit.
SHAPES = [
    *((rows, 40, 24) for rows in range(1, 2 * max_group_rows(16) + 2)),
    (1, 1, 1),
    (5, 577, 33),
    (61, 1536, 50),
    (300, 576, 16),
    (20, 9000, 17),
    # With two threads, chunks of several panels and a last one of fewer.
    (7, 40, 32 * 38 + 5),
]


@pytest.fixture(autouse=True)
def guarded(monkeypatch):
    """Scratch memory as large as was asked for, and no larger."""
    scratch = GuardedScratch()
    monkeypatch.setattr(panel_product_module, "_scratch", scratch)
    yield
    scratch.check()


def numbers(*shape, dtype, seed, magnitude=1.0):
    return (magnitude * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def same(one, other):
    """Bit for bit, but that what is not a number has many forms."""
    nan = one.isnan()
    return torch.equal(nan, other.isnan()) and torch.equal(
        one.masked_fill(nan, 0).view(torch.int16), other.masked_fill(nan, 0).view(torch.int16)
    )


@pytest.mark.parametrize("lanes", ALL_LANES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "num_inputs", "num_outputs"), SHAPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_is_the_definition_bit_for_bit(
    lanes, dtype, num_rows, num_inputs, num_outputs, has_bias, num_threads
):
    num_threads(2)
    x = numbers(num_rows, num_inputs, dtype=dtype, seed=1)
    weight = numbers(num_outputs, num_inputs, dtype=dtype, seed=2)
    bias = numbers(num_outputs, dtype=dtype, seed=3, magnitude=30.0) if has_bias else None
    product = panel_product(x, Panels.of(weight, lanes=lanes), bias)
    assert product.dtype is dtype
    assert product.shape == (num_rows, num_outputs)
    assert same(product, panel_product_reference(x, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [2.0**-24, 2.0**-9, 1.0, 3e4, 1e30])
def test_a_product_is_the_exact_one_up_to_one_rounding(dtype, magnitude):
    weight = numbers(33, 577, dtype=dtype, seed=1, magnitude=magnitude)
    if not bool(weight.isfinite().all()):
        pytest.skip("float16 ends before such weights")
    x = numbers(7, 577, dtype=dtype, seed=2) / 8
    bias = numbers(33, dtype=dtype, seed=3, magnitude=magnitude)
    product = panel_product(x, Panels.of(weight), bias)
    exact = x.double() @ weight.double().T + bias.double()
    # A rounding of the result, to which values below the normal ones are coarse; sums in fp32.
    terms = x.double().abs() @ weight.double().abs().T + bias.double().abs()
    allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5 * terms + torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    assert bool(((product.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize("lanes", ALL_LANES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_overflows_and_what_is_no_number_stay_so(lanes, dtype):
    weight = torch.eye(20, dtype=dtype)
    x = torch.zeros(3, 20, dtype=dtype)
    x[0, 3], x[1, 4], x[2, 5] = torch.inf, -torch.inf, torch.nan
    assert same(panel_product(x, Panels.of(weight, lanes=lanes), None), panel_product_reference(x, weight, None))
    largest = torch.full((2, 20), torch.finfo(dtype).max, dtype=dtype)
    product = panel_product(largest, Panels.of(largest, lanes=lanes), None)
    assert same(product, torch.full((2, 2), torch.inf, dtype=dtype)), "a sum beyond the largest number is infinite"


@pytest.mark.parametrize("lanes", ALL_LANES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_rounded_to_the_nearest_and_ties_to_even(lanes, dtype):
    step = torch.finfo(dtype).eps
    # 1, and parts of a step that are told apart in fp32 alone.
    x = torch.tensor([[1.0, part * step] for part in (0.25, 0.5, 0.75, 1.25, 1.5, 1.75, -0.25, -0.5, -0.75)]).to(dtype)
    product = panel_product(x, Panels.of(torch.ones(1, 2, dtype=dtype), lanes=lanes), None)
    assert same(product, x.float().sum(dim=1, keepdim=True).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_a_row_is_the_same_in_any_batch_and_with_any_threads(dtype, threads, num_threads):
    x = numbers(131, 576, dtype=dtype, seed=1)
    panels = Panels.of(numbers(16 * 40 + 1, 576, dtype=dtype, seed=2))
    num_threads(1)
    whole = panel_product(x, panels, None)
    num_threads(threads)
    for start, end in ((0, 131), (0, 1), (3, 20), (17, 18), (5, 53), (2, 9), (0, 129)):
        assert torch.equal(panel_product(x[start:end], panels, None), whole[start:end])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_apart_and_across(dtype):
    weight = numbers(48, 64, dtype=dtype, seed=1)
    wide = numbers(9, 200, dtype=dtype, seed=2)
    for x in (wide[:, 7:71], wide[::2, :64], numbers(64, 9, dtype=dtype, seed=3).T, wide[:1, :64].expand(5, 64)):
        assert same(panel_product(x, Panels.of(weight), None), panel_product_reference(x, weight, None))


@pytest.mark.parametrize("shape", [(0, 8, 8), (3, 8, 0)])
def test_nothing_multiplied_is_nothing(shape):
    num_rows, num_inputs, num_outputs = shape
    weight = torch.ones(num_outputs, num_inputs).bfloat16()
    product = panel_product(torch.ones(num_rows, num_inputs).bfloat16(), Panels.of(weight), None)
    assert product.shape == (num_rows, num_outputs)


def test_callers_on_several_threads_get_their_own_products(monkeypatch, num_threads):
    monkeypatch.setattr(panel_product_module, "_scratch", Scratch())
    weights = [numbers(100 + 30 * i, 64 * (i + 1), dtype=torch.bfloat16, seed=i) for i in range(4)]
    inputs = [numbers(3 + 20 * i, 64 * (i + 1), dtype=torch.bfloat16, seed=i + 9) for i in range(4)]
    expected = [panel_product_reference(x, weight, None) for x, weight in zip(inputs, weights, strict=True)]
    wrong = []

    def multiply(i):
        num_threads(2)
        panels = Panels.of(weights[i])
        products = (panel_product(inputs[i], panels, None) for _ in range(200))
        wrong.extend(i for product in products if not torch.equal(product, expected[i]))

    callers = [threading.Thread(target=multiply, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_what_lies_beside_the_rows_has_no_part_in_a_product():
    x = torch.full((7, 72), torch.nan).bfloat16()
    x[1:6, :64] = numbers(5, 64, dtype=torch.bfloat16, seed=1)
    weight = numbers(panel_size(max_lanes()) + 3, 64, dtype=torch.bfloat16, seed=2)
    product = panel_product(x[1:6, :64], Panels.of(weight), None)
    assert torch.equal(product, panel_product_reference(x[1:6, :64], weight, None))


@pytest.mark.parametrize(
    ("x", "bias", "says"),
    [
        (torch.ones(2, 7).bfloat16(), None, r"x must be \[T, 8\] torch.bfloat16.*\[2, 7\]"),
        (torch.ones(2, 8), None, "torch.float32"),
        (torch.ones(8).bfloat16(), None, r"\[8\]"),
        (torch.ones(2, 8, device="meta").bfloat16(), None, "meta"),
        (torch.ones(2, 8).bfloat16(), torch.ones(3).bfloat16(), r"bias must be \[4\].*it is \[3\]"),
        (torch.ones(2, 8).bfloat16(), torch.ones(4), r"bias must be \[4\].*torch.float32"),
        (torch.ones(2, 8).bfloat16(), torch.ones(4, device="meta").bfloat16(), "on meta"),
    ],
)
def test_what_does_not_fit_is_refused(x, bias, says):
    with pytest.raises(ValueError, match=says):
        panel_product(x, Panels.of(torch.ones(4, 8).bfloat16()), bias)


@pytest.mark.parametrize(
    "weight",
    [torch.ones(4, 8), torch.ones(4).bfloat16(), torch.ones(4, 0).half(), torch.ones(4, 8, device="meta").half()],
)
def test_what_is_no_16_bit_weight_of_a_cpu_is_not_packed(weight):
    with pytest.raises(ValueError, match="weight must be"):
        Panels.of(weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_products_of_16_bit_weights_are_these(dtype):
    assert isinstance(linear_method(exact=True, dtype=dtype, device=torch.device("cpu")), PanelLinear)


def test_code_runs_on_torchs_own_threads():
    """Beside a pool of its own, threads of one would wait at the other's cost."""
    program = (
        "import os, torch\n"
        "from specdec.panel_product import Panels, panel_product\n"
        "torch.set_num_threads(3)\n"
        "torch.ones(10**6).exp_()\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "panel_product(torch.ones(4, 512).bfloat16(), Panels.of(torch.ones(512, 512).bfloat16()), None)\n"
        "print(before, len(os.listdir('/proc/self/task')))\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = finished.stdout.split()
    assert int(before) >= 3
    assert before == after


@pytest.mark.parametrize("threads", [1, 3])
def test_all_threads_are_asked(threads, num_threads, monkeypatch):
    asked = []
    monkeypatch.setattr(MachineCode, "run", lambda self, name, job, *, num_threads: asked.append(num_threads))
    num_threads(threads)
    panel_product(torch.ones(2, 8).bfloat16(), Panels.of(torch.ones(4, 8).bfloat16()), None)
    assert asked == [threads]


@pytest.mark.skipif(sys.platform != "linux", reason="where torch has GNU's OpenMP")
def test_the_code_is_available_where_the_processor_has_what_it_needs():
    assert is_available()


def test_every_thread_takes_part_in_a_job():
    code = MachineCode(
        "define void @work(ptr %job) {\n"
        "  %counter_at = load i64, ptr %job\n"
        "  %counter = inttoptr i64 %counter_at to ptr\n"
        "  %before = atomicrmw add ptr %counter, i64 1 seq_cst\n"
        "  ret void\n"
        "}",
        "work",
    )
    counter = torch.zeros(1, dtype=torch.int64)
    for _ in range(5):
        code.run("work", (counter.data_ptr(),), num_threads=4)
    assert counter.item() == 20
