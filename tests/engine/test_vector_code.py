"""Exponentials of our own for CPUs, held against double precision."""

import pytest
import torch

from specdec.machine_code import MachineCode
from specdec.vector_code import DECLARATIONS, FLOATS, exponential_function, for_each, slots

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="the code needs AVX2"
)

_BODY = f"""
  %first = shl i64 %i, 3
  %at = getelementptr float, ptr %numbers, i64 %first
  %x = load {FLOATS}, ptr %at, align 4
  %y = call {FLOATS} @exponentials({FLOATS} %x)
  store {FLOATS} %y, ptr %at, align 4"""
_TEXT = f"""
{DECLARATIONS}
{exponential_function()}
define void @each(ptr %job) {{
{slots("i")}
  %address = load i64, ptr %job
  %numbers = inttoptr i64 %address to ptr
  %count_at = getelementptr i64, ptr %job, i64 1
  %count = load i64, ptr %count_at
{for_each("i", "0", "%count", _BODY)}
  ret void
}}
"""


def exponentials(numbers):
    result = numbers.clone()
    MachineCode(_TEXT, "each").run("each", (result.data_ptr(), result.shape[0] // 8), num_threads=1)
    return result


def test_exponentials_are_good_to_two_units_in_the_last_place():
    numbers = torch.cat([torch.linspace(-87.0, 0.0, 2**20), -torch.logspace(-40, 1, 2**12), torch.zeros(8)])
    exact = numbers.double().exp()
    step = 2.0 ** (exact.log2().floor() - 23)
    assert float(((exponentials(numbers).double() - exact).abs() / step).max()) <= 2.0
    assert bool((exponentials(torch.zeros(8)) == 1.0).all())


def test_what_is_less_than_can_be_told_from_nothing_is_nothing():
    numbers = torch.tensor([-87.01, -88.0, -100.0, -1e10, -torch.inf, -3e38, -104.0, -90.0])
    assert bool((exponentials(numbers) == 0.0).all())


def test_what_is_no_number_stays_none():
    assert bool(exponentials(torch.full((8,), torch.nan)).isnan().all())
