"""FewRowLinear: the products of a few rows by the kernel, of more by the library."""

import pytest
import torch
import torch.nn.functional as F

from specdec import linear
from specdec.kernels.few_row_linear import MAX_ROWS
from specdec.kernels.silu_mul import silu_mul
from specdec.linear import FewRowLinear, Linear, PlainLinear, linear_method

TOLERANCE = 2e-2
"""Of numbers of about 1 that were rounded to bfloat16 twice."""


def filled(method, num_outputs, num_inputs, device="cpu", *, bias=False):
    generator = torch.Generator().manual_seed(num_outputs)
    made = Linear(num_inputs, num_outputs, bias=bias, method=method, dtype=torch.bfloat16, device=torch.device(device))
    made.weight.copy_(torch.randn(num_outputs, num_inputs, generator=generator) / num_inputs**0.5)
    if bias:
        made.bias.copy_(torch.randn(num_outputs, generator=generator))
    made.finish_loading()
    return made


def rows_of(num_rows, num_inputs, device="cpu"):
    return torch.randn(num_rows, num_inputs, generator=torch.Generator().manual_seed(7)).to(device, torch.bfloat16)


def kernel_silu_mul(gate_up):
    output = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=gate_up.dtype, device=gate_up.device)
    silu_mul(gate_up, output)
    return output


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, MAX_ROWS, MAX_ROWS + 1, 70])
def test_products_are_the_library_s_but_for_rounding(num_rows, bias, device):
    x = rows_of(num_rows, 96, device)
    ours, library_s = (filled(method(), 40, 96, device, bias=bias) for method in (FewRowLinear, PlainLinear))
    torch.testing.assert_close(ours(x), library_s(x), rtol=TOLERANCE, atol=TOLERANCE)
    gated, expected = (each.gated(x, kernel_silu_mul) for each in (ours, library_s))
    assert gated.shape == (num_rows, 20)
    torch.testing.assert_close(gated, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("num_rows", "num_inputs", "num_outputs", "is_ours"),
    [(1, 64, 8, True), (MAX_ROWS, 64, 64, True), (MAX_ROWS + 1, 64, 64, False), (2, 65, 32, False), (2, 64, 32, True)],
)
def test_the_kernel_has_the_rows_that_it_is_faster_for(num_rows, num_inputs, num_outputs, is_ours, monkeypatch):
    asked = []
    monkeypatch.setattr(linear, "few_row_linear", lambda *arguments, **_: asked.append(arguments))
    filled(FewRowLinear(), num_outputs, num_inputs)(rows_of(num_rows, num_inputs))
    assert bool(asked) is is_ours


def test_a_gated_product_of_many_rows_is_the_library_s_with_the_activation_behind_it(monkeypatch):
    monkeypatch.setattr(linear, "few_row_linear", None)
    made, x = filled(FewRowLinear(), 8, 16), rows_of(MAX_ROWS + 1, 16)
    gate, up = made(x).chunk(2, dim=-1)
    assert torch.equal(
        made.gated(x, lambda each: F.silu(each.chunk(2, -1)[0]) * each.chunk(2, -1)[1]), F.silu(gate) * up
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gpu_it_was_measured_on_has_it_for_numbers_of_16_bits(dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    is_ours = torch.cuda.get_device_capability(device) == (9, 0) and dtype.itemsize == 2
    assert isinstance(linear_method(exact=False, dtype=dtype, device=device), FewRowLinear if is_ours else PlainLinear)
    assert not isinstance(linear_method(exact=True, dtype=dtype, device=device), FewRowLinear)
