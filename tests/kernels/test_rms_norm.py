"""rms_norm and add_rms_norm equal their definition; what they add to is what they norm."""

import math

import pytest
import torch
import torch.nn.functional as F

from specdec.kernels.dispatch import INTERPRETED
from specdec.kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference

# Half a unit in the last place is what one rounding costs; a sum in another order moves what is near its edge.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
EPS = 1e-5


def rows_of(num_tokens, hidden_size, dtype, device, seed=0):
    """A view of wider rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, hidden_size + 7, generator=generator).to(device, dtype)[:, :hidden_size]


def weight_of(hidden_size, dtype, device):
    return rows_of(1, hidden_size, dtype, device, seed=9)[0].clone()


def poisoned(rows):
    return torch.full((rows.shape[0], rows.shape[1] + 3), math.nan, dtype=rows.dtype, device=rows.device)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_the_reference_is_torch_s_own(dtype):
    x, weight = rows_of(5, 576, dtype, "cpu"), weight_of(576, dtype, "cpu")
    output = torch.full_like(x, math.nan)
    rms_norm_reference(x, weight, output, eps=EPS)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(output, F.rms_norm(x, (576,), weight, EPS), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("num_tokens", "hidden_size"), [(0, 8), (1, 1), (3, 17), (2, 127), (5, 576), (1, 8192)])
def test_every_row_equals_the_reference(num_tokens, hidden_size, dtype, device):
    x, weight = rows_of(num_tokens, hidden_size, dtype, device), weight_of(hidden_size, dtype, device)
    whole = poisoned(x)
    output, expected = whole[:, :hidden_size], torch.full_like(x, math.nan)
    rms_norm(x, weight, output, eps=EPS)
    rms_norm_reference(x, weight, expected, eps=EPS)
    assert bool(expected.isfinite().all())
    torch.testing.assert_close(output, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert bool(whole[:, hidden_size:].isnan().all())


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("num_tokens", "hidden_size"), [(0, 8), (1, 1), (3, 17), (5, 576)])
def test_the_sum_is_kept_bit_for_bit_and_normed(num_tokens, hidden_size, dtype, device):
    x, weight = rows_of(num_tokens, hidden_size, dtype, device), weight_of(hidden_size, dtype, device)
    residual = rows_of(num_tokens, hidden_size, dtype, device, seed=1)
    expected_residual, expected = residual.clone(), torch.full_like(x, math.nan)
    whole = poisoned(x)
    output = whole[:, :hidden_size]
    total = x + residual
    add_rms_norm(x, residual, weight, output, eps=EPS)
    add_rms_norm_reference(x, expected_residual, weight, expected, eps=EPS)
    # The interpreter cuts what it rounds to bfloat16, and may be a unit in the last place below.
    tolerance = 8e-3 if INTERPRETED and dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(residual, total, rtol=tolerance, atol=0.0)
    assert torch.equal(expected_residual, total)
    own = TOLERANCE[dtype] + tolerance
    torch.testing.assert_close(output, expected, rtol=own, atol=own)
    assert bool(whole[:, hidden_size:].isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_output_may_be_the_input(dtype, device):
    x, weight = rows_of(3, 100, dtype, device), weight_of(100, dtype, device)
    expected, residual = torch.empty_like(x), rows_of(3, 100, dtype, device, seed=1)
    rms_norm(x, weight, expected, eps=EPS)
    in_place = x.clone()
    rms_norm(in_place, weight, in_place, eps=EPS)
    assert torch.equal(in_place, expected)
    add_rms_norm(x, residual.clone(), weight, expected, eps=EPS)
    in_place = x.clone()
    add_rms_norm(in_place, residual, weight, in_place, eps=EPS)
    assert torch.equal(in_place, expected)


def test_what_is_normed_is_the_sum_as_it_is_kept(device):
    """And not before it is rounded, which many of the norms would show."""
    x, weight = rows_of(3, 576, torch.float16, device), weight_of(576, torch.float16, device)
    residual = rows_of(3, 576, torch.float16, device, seed=1)
    output, expected = (torch.full((3, 576), math.nan, dtype=torch.float16, device=device) for _ in range(2))
    add_rms_norm(x, residual, weight, output, eps=EPS)
    rms_norm(residual, weight, expected, eps=EPS)
    # A device is free to sum in another order where there are other loads.
    assert float((output != expected).float().mean()) < 0.01


def test_squares_beyond_half_precision_are_summed_in_fp32(device):
    x = torch.full((1, 64), 60000.0, dtype=torch.float16, device=device)
    output = torch.full_like(x, math.nan)
    rms_norm(x, torch.ones_like(x[0]), output, eps=EPS)
    assert torch.equal(output, torch.ones_like(x))


def test_a_row_of_zeros_stays_one(device):
    x = torch.zeros(2, 20, device=device)
    output = torch.full_like(x, math.nan)
    rms_norm(x, torch.ones_like(x[0]), output, eps=EPS)
    assert torch.equal(output, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, r"x must be \[T, E\]"),
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, "float32, float16 or bfloat16"),
        ({"x": torch.zeros(8, 2).T}, "x must be contiguous along the last axis"),
        ({"weight": torch.zeros(9)}, r"weight must be \[8\] torch.float32 as x; it is \[9\]"),
        ({"weight": torch.zeros(8, device="meta")}, "weight is on meta, x on cpu"),
        ({"residual": torch.zeros(2, 8, dtype=torch.float16)}, r"residual must be \[2, 8\] torch.float32"),
        ({"output": torch.zeros(3, 8)}, r"output must be \[2, 8\] torch.float32"),
        ({"output": torch.zeros(8, 2).T}, "output must be contiguous along the last axis"),
    ],
)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(change, message):
    good = {name: torch.zeros(2, 8) for name in ("x", "residual", "output")} | {"weight": torch.zeros(8)}
    with pytest.raises(ValueError, match=message):
        add_rms_norm(**(good | change), eps=EPS)
