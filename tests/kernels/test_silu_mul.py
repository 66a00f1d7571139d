"""silu_mul equals its definition."""

import math

import pytest
import torch
import torch.nn.functional as F

from specdec.kernels.silu_mul import silu_mul, silu_mul_reference

# One rounding, of a product whose factors differ in the last bits of fp32.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def gate_up_of(num_tokens, size, dtype, device):
    """A view of wider rows, over all magnitudes of a gate."""
    generator = torch.Generator().manual_seed(size)
    return (8.0 * torch.randn(num_tokens, 2 * size + 5, generator=generator)).to(device, dtype)[:, : 2 * size]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("num_tokens", "size"), [(0, 4), (3, 0), (1, 1), (2, 17), (3, 1024), (2, 1536), (1, 14336)])
def test_every_element_equals_the_reference(num_tokens, size, dtype, device):
    gate_up = gate_up_of(num_tokens, size, dtype, device)
    whole = torch.full((num_tokens, size + 3), math.nan, dtype=dtype, device=device)
    expected = torch.full((num_tokens, size), math.nan, dtype=dtype, device=device)
    silu_mul(gate_up, whole[:, :size])
    silu_mul_reference(gate_up, expected)
    assert bool(expected.isfinite().all())
    torch.testing.assert_close(whole[:, :size], expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert bool(whole[:, size:].isnan().all())


def test_the_reference_is_what_the_model_computes():
    gate_up = gate_up_of(5, 300, torch.float32, "cpu")
    output = torch.full((5, 300), math.nan)
    silu_mul_reference(gate_up, output)
    gate, up = gate_up.chunk(2, dim=-1)
    assert torch.equal(output, F.silu(gate) * up)


def test_gates_of_any_size_give_numbers(device):
    gates = torch.tensor([-1e30, -200.0, -90.0, -0.0, 0.0, 90.0, 1e30], device=device)
    gate_up = torch.cat([gates, torch.ones_like(gates)])[None]
    output = torch.full((1, 7), math.nan, device=device)
    silu_mul(gate_up, output)
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 90.0, 1e30]], device=device)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate_up": torch.zeros(2, 7)}, r"gate_up must be \[T, 2 F\]"),
        ({"gate_up": torch.zeros(2, 8, dtype=torch.float64)}, "float32, float16 or bfloat16"),
        ({"gate_up": torch.zeros(8, 2).T}, "gate_up must be contiguous along the last axis"),
        ({"output": torch.zeros(2, 8)}, r"output must be \[2, 4\] torch.float32 as gate_up"),
        ({"output": torch.zeros(2, 4, dtype=torch.float16)}, r"output must be \[2, 4\] torch.float32 as gate_up"),
        ({"output": torch.zeros(2, 4, device="meta")}, "output is on meta, gate_up on cpu"),
    ],
)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        silu_mul(**({"gate_up": torch.zeros(2, 8), "output": torch.zeros(2, 4)} | change))
