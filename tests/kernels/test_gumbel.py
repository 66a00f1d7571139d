"""The noise that a kernel draws with has the bits of the CPU's."""

import pytest
import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton
from specdec.kernels.gumbel import gumbel, gumbel_bound_of_hash, gumbel_of_hash

if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    from specdec.kernels.gumbel import gumbel_bound_of, gumbel_of

    @triton.jit
    def write_noise(key_ptr, first_id, output_ptr, SIZE: tl.constexpr):
        place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
        token_id = first_id + place
        first, second = tl.load(key_ptr).to(tl.uint32), tl.load(key_ptr + 1).to(tl.uint32)
        tl.store(output_ptr + place, gumbel_of(first, second, token_id.to(tl.uint32)))

    @triton.jit
    def write_bounds(output_ptr, SIZE: tl.constexpr):
        place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
        tl.store(output_ptr + place, gumbel_bound_of(place.to(tl.uint32) << 9))


@pytest.mark.parametrize("key", [(0, 0), (2**32 - 1, 2**32 - 1), (0x9E3779B9, 7), (123456789, 0x80000000)])
@pytest.mark.parametrize("first_id", [0, 151936 - 2048, 2**31 - 2**16])
def test_noise_has_the_same_bits(first_id, key, device):
    token_ids = first_id + torch.arange(2**15)
    expected = gumbel(key, token_ids)
    if not runs_in_triton(torch.empty(0, device=device)):
        words = torch.tensor([key]).expand(2**15, 2).unbind(1)
        assert torch.equal(gumbel(words, token_ids), expected)
        return
    output = torch.full((2**15,), float("nan"), device=device)
    write_noise[(2**5,)](torch.tensor(key, device=device), first_id, output, SIZE=2**10, enable_fp_fusion=False)
    assert torch.equal(output.cpu().view(torch.int32), expected.view(torch.int32))


def test_the_bound_has_the_same_bits(device):
    if not runs_in_triton(torch.empty(0, device=device)):
        pytest.skip("the CPU path is the definition")
    bounds = torch.full((2**23,), float("nan"), device=device)
    write_bounds[(2**8,)](bounds, SIZE=2**15, enable_fp_fusion=False)
    expected = gumbel_bound_of_hash(torch.arange(2**23) << 9)
    assert torch.equal(bounds.cpu().view(torch.int32), expected.view(torch.int32))


def test_the_bound_is_above_the_noise_of_every_hash():
    """All 2 ** 23 values that the noise can take, its highest and lowest included."""
    hashes = torch.arange(2**23) << 9
    noise = gumbel_of_hash(hashes)
    excess = gumbel_bound_of_hash(hashes) - noise
    assert float(excess.min()) > 1e-4
    assert float(excess[noise > 4.0].max()) < 0.08
    assert float(excess[2**22 :].max()) < 0.35


def test_the_bound_does_not_depend_on_the_bits_that_the_noise_leaves_out():
    generator = torch.Generator().manual_seed(3)
    hashes = torch.randint(2**32, (10_000,), generator=generator)
    assert torch.equal(gumbel_bound_of_hash(hashes), gumbel_bound_of_hash(hashes | 0x1FF))
    assert bool((gumbel_bound_of_hash(hashes) > gumbel_of_hash(hashes)).all())


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_few_groups_can_hold_the_winner_by_the_bound(spread):
    """Of 4,748 groups of 32 tokens, in 20 rows: as many as have a bound above a sum that one of their tokens has."""
    numbers = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = spread * torch.randn(151936, generator=generator)
        hashes = torch.randint(2**32, (151936,), generator=generator)
        highest = (logits + gumbel_bound_of_hash(hashes)).view(-1, 32).amax(dim=1)
        sums = (logits + gumbel_of_hash(hashes)).view(-1, 32)
        numbers.append(int((highest >= sums[highest.argmax()].max()).sum()))
    assert max(numbers) <= 4
    assert sum(numbers) < 30
