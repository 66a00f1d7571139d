"""few_row_linear equals its definition."""

import math

import pytest
import torch
import torch.nn.functional as F

from specdec.kernels.few_row_linear import MAX_ROWS, few_row_linear, few_row_linear_reference

# One rounding, of a sum of numbers of about 1 in another order.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = [(1, 1), (5, 3), (17, 576), (33, 1000), (70, 130), (6, 4096)]
"""Outputs and inputs."""


def numbers(size, dtype, device, seed):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize("is_gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
@pytest.mark.parametrize("num_rows", [1, 2, 16])
def test_every_element_equals_the_reference(num_rows, num_outputs, num_inputs, dtype, is_gated, device, monkeypatch):
    # As if 70 were many already, and with their gates very many; and 4,096 inputs, too.
    monkeypatch.setattr("specdec.kernels.few_row_linear._MANY_OUTPUTS", 64)
    monkeypatch.setattr("specdec.kernels.few_row_linear._VERY_MANY_OUTPUTS", 130)
    monkeypatch.setattr("specdec.kernels.few_row_linear._MANY_INPUTS", 4000)
    num_weights = num_outputs * (2 if is_gated else 1)
    x = numbers((num_rows, num_inputs + 3), dtype, device, 1)[:, :num_inputs]
    weight = numbers((num_weights, num_inputs), dtype, device, 2) / math.sqrt(num_inputs)
    bias = numbers((num_weights,), dtype, device, 3) if num_rows != 2 else None
    whole = torch.full((num_rows, num_outputs + 3), math.nan, dtype=dtype, device=device)
    expected = torch.full((num_rows, num_outputs), math.nan, dtype=dtype, device=device)
    few_row_linear(x, weight, bias, whole[:, :num_outputs], is_gated=is_gated)
    few_row_linear_reference(x, weight, bias, expected, is_gated=is_gated)
    assert bool(expected.isfinite().all())
    torch.testing.assert_close(whole[:, :num_outputs], expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])
    assert bool(whole[:, num_outputs:].isnan().all())


def test_the_reference_is_what_the_model_computes():
    x, weight, bias = (numbers(size, torch.float32, "cpu", i) for i, size in enumerate([(5, 30), (8, 30), (8,)]))
    plain, gated = torch.full((5, 8), math.nan), torch.full((5, 4), math.nan)
    few_row_linear_reference(x, weight, bias, plain)
    few_row_linear_reference(x, weight, bias, gated, is_gated=True)
    gate, up = F.linear(x, weight, bias).chunk(2, dim=-1)
    torch.testing.assert_close(plain, F.linear(x, weight, bias))
    torch.testing.assert_close(gated, F.silu(gate) * up)


@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_nothing_is_written_where_there_are_no_outputs_or_rows(num_rows, device):
    x, weight, output = (torch.ones(size, device=device) for size in [(num_rows, 4), (0, 4), (num_rows, 0)])
    few_row_linear(x, weight, None, output)


@pytest.mark.parametrize("num_rows", [1, 2])
def test_gates_of_any_size_give_numbers(num_rows, device):
    gates = torch.tensor([-1e30, -200.0, -90.0, -0.0, 0.0, 90.0, 1e30], device=device)
    weight = torch.cat([gates, torch.ones_like(gates)])[:, None].contiguous()
    output = torch.full((num_rows, 7), math.nan, device=device)
    few_row_linear(torch.ones(num_rows, 1, device=device), weight, None, output, is_gated=True)
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 90.0, 1e30]], device=device).expand(num_rows, 7)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-30)


ARGUMENTS = {"x": torch.zeros(2, 8), "weight": torch.zeros(6, 8), "bias": torch.zeros(6), "output": torch.zeros(2, 6)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(MAX_ROWS + 1, 8)}, "of up to 16 rows; it is"),
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, "float32, float16 or bfloat16"),
        ({"x": torch.zeros(8, 2).T}, "x must be contiguous along the last axis"),
        ({"weight": torch.zeros(6, 9)}, r"weight must be \[O, 8\]; it is \[6, 9\]"),
        ({"weight": torch.zeros(8, 6).T}, "weight must be contiguous"),
        ({"weight": torch.zeros(6, 8, dtype=torch.float16)}, r"weight must be \[6, 8\] torch.float32 as x"),
        ({"bias": torch.zeros(5)}, r"bias must be \[6\] torch.float32 as x"),
        ({"output": torch.zeros(2, 5)}, r"output must be \[2, 6\] torch.float32 as x"),
        ({"output": torch.zeros(2, 6, device="meta")}, "output is on meta, x on cpu"),
        ({"is_gated": True}, r"output must be \[2, 3\] torch.float32 as x"),
        ({"is_gated": True, "weight": torch.zeros(5, 8)}, r"weight must be \[O, 8\], with an even number of outputs"),
    ],
)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        few_row_linear(**(ARGUMENTS | change))
