"""What stands for a row's logits where it is cheaper than they are is never below them."""

import math

import pytest
import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton

if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    from specdec.kernels.token_groups import raw_logits, row_of, shaped_from_above, shaped_of

    @triton.jit
    def write_shaped(logits_ptr, temperatures_ptr, shaped_ptr, above_ptr, size, SIZE: tl.constexpr):
        source = row_of(
            logits_ptr,
            temperatures_ptr,
            None,
            None,
            None,
            0,
            0,
            size,
            0,
            tl.program_id(0) * 0,
            False,
        )
        place = tl.arange(0, SIZE)
        logits = raw_logits(source, place // 32, place % 32, False)
        tl.store(shaped_ptr + place, shaped_of(source, logits))
        tl.store(above_ptr + place, shaped_from_above(source, logits))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.3, 1.9999999, 100.0, 1e-3, 1e-30, 1e-38])
@pytest.mark.parametrize("spread", [1e-3, 5.0, 1e4])
def test_products_are_above_the_quotients_that_they_stand_for(spread, temperature, device):
    if not runs_in_triton(torch.empty(0, device=device)):
        pytest.skip("only kernels have it")
    size = 2**13
    logits = spread * torch.randn(size, generator=torch.Generator().manual_seed(2))
    logits[:6] = torch.tensor([0.0, -0.0, -math.inf, math.nan, 1e-40, -1e-40])
    shaped, above = (torch.full((size,), math.nan, device=device) for _ in range(2))
    temperatures = torch.tensor([temperature], device=device)
    write_shaped[(1,)](logits.to(device), temperatures, shaped, above, size, SIZE=size, enable_fp_fusion=False)
    shaped, above = shaped.cpu(), above.cpu()
    expected = torch.where(logits.isnan(), -math.inf, logits) / torch.tensor(max(temperature, 1e-30))
    assert torch.equal(shaped, expected)
    assert bool((above >= shaped).all())
    finite = shaped.isfinite()
    assert bool((above - shaped)[finite].le(3e-6 * shaped[finite].abs() + 1e-37).all())
