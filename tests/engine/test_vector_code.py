"""What kernels do with registers: exponentials, held against double precision, and sums."""

import pytest
import torch

from specdec.machine_code import MachineCode
from specdec.vector_code import DECLARATIONS, Vectors, constant, for_each, joined, slots

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="the code needs AVX2"
)

# Registers of either size; where there are none so large, two take their place.
all_lanes = pytest.mark.parametrize("lanes", [8, 16])


def each(vectors, function, result):
    """Code that turns each register's worth of a job's numbers, `%x`, into `%y`."""
    body = f"""
  %first = mul i64 %i, {vectors.lanes}
  %at = getelementptr float, ptr %numbers, i64 %first
  %x = load {vectors}, ptr %at, align 4
{result}
  store {vectors} %y, ptr %at, align 4"""
    return f"""
{DECLARATIONS}
{function}
define void @each(ptr %job) {{
{slots("i")}
  %address = load i64, ptr %job
  %numbers = inttoptr i64 %address to ptr
  %count_at = getelementptr i64, ptr %job, i64 1
  %count = load i64, ptr %count_at
{for_each("i", "0", "%count", body)}
  ret void
}}
"""


def exponentials(numbers, lanes):
    vectors = Vectors(lanes)
    text = each(vectors, vectors.exponential_function(), f"  %y = call {vectors} @exponentials({vectors} %x)")
    result = numbers.clone()
    MachineCode(text, "each").run("each", (result.data_ptr(), result.shape[0] // lanes), num_threads=1)
    return result


@all_lanes
def test_exponentials_are_good_to_two_units_in_the_last_place(lanes):
    numbers = torch.cat([torch.linspace(-87.0, 0.0, 2**20), -torch.logspace(-40, 1, 2**12), torch.zeros(16)])
    exact = numbers.double().exp()
    step = 2.0 ** (exact.log2().floor() - 23)
    assert float(((exponentials(numbers, lanes).double() - exact).abs() / step).max()) <= 2.0
    assert bool((exponentials(torch.zeros(16), lanes) == 1.0).all())


@all_lanes
def test_what_is_less_than_can_be_told_from_nothing_is_nothing(lanes):
    numbers = torch.tensor([-87.01, -88.0, -100.0, -1e10, -torch.inf, -3e38, -104.0, -90.0]).repeat(2)
    assert bool((exponentials(numbers, lanes) == 0.0).all())


@all_lanes
def test_what_is_no_number_stays_none(lanes):
    assert bool(exponentials(torch.full((16,), torch.nan), lanes).isnan().all())


@all_lanes
def test_a_register_of_sums_has_each_vectors_in_its_place(lanes):
    vectors = Vectors(lanes)
    # Vector k is x + k, so that its sum says whose it is, and x's numbers are each other's doubles, so that it says
    # whether all were added once.
    shifted = [
        f"  %vector_{k} = fadd {vectors} %x, splat (float {constant(float(k * 2**lanes))})" for k in range(lanes)
    ]
    sums = vectors.sums_of("y", [f"vector_{k}" for k in range(lanes)])
    numbers = 2.0 ** torch.arange(lanes)
    expected = numbers.sum() + lanes * 2.0**lanes * torch.arange(lanes)
    MachineCode(each(vectors, "", joined([*shifted, *sums])), "each").run(
        "each", (numbers.data_ptr(), 1), num_threads=1
    )
    assert torch.equal(numbers, expected)


@all_lanes
@pytest.mark.parametrize("place", range(16))
def test_a_sum_and_a_largest_number_are_those_of_all_places(lanes, place):
    vectors = Vectors(lanes)
    lines = [
        *vectors.sum_of("total", "x"),
        *vectors.largest_of("largest", "x"),
        "  %both = fadd float %total, %largest",
        *vectors.broadcast("y", "both"),
    ]
    numbers = -(2.0 ** torch.arange(lanes))
    numbers[place % lanes] = 2.0**lanes
    expected = numbers.sum() + 2.0**lanes
    MachineCode(each(vectors, "", joined(lines)), "each").run("each", (numbers.data_ptr(), 1), num_threads=1)
    assert torch.equal(numbers, expected.expand(lanes))
