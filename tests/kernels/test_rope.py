"""rope equals its definition, in place, and touches nothing beside the heads it was given."""

import math

import pytest
import torch

from specdec.kernels.rope import rope, rope_reference

# One rounding of the result; in fp32, products fused with sums.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
NUM_POSITIONS = 50


def tables_of(head_size, dtype, device):
    frequencies = 1.0 / 1e4 ** (torch.arange(0, head_size, 2) / head_size)
    angles = torch.arange(NUM_POSITIONS)[:, None, None] * frequencies
    cos, sin = torch.cat([angles.cos()] * 2, dim=-1), torch.cat([-angles.sin(), angles.sin()], dim=-1)
    return cos.to(device, dtype), sin.to(device, dtype)


def some(num_tokens, num_heads, head_size, dtype, device):
    """Heads that stand before others in one packed product, that product, and their tokens' positions."""
    generator = torch.Generator().manual_seed(num_heads + head_size)
    packed = torch.randn(num_tokens, num_heads + 2, head_size, generator=generator).to(device, dtype)
    positions = torch.randint(0, NUM_POSITIONS, (num_tokens,), generator=generator).to(device)
    return packed[:, :num_heads], packed, positions


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "head_size"), [(0, 2, 8), (1, 1, 2), (5, 12, 64), (3, 5, 80), (2, 40, 128), (1, 3, 256)]
)
@pytest.mark.parametrize("has_fp32_tables", [False, True])
def test_every_head_equals_the_reference(num_tokens, num_heads, head_size, has_fp32_tables, dtype, device):
    heads, packed, positions = some(num_tokens, num_heads, head_size, dtype, device)
    cos, signed_sin = tables_of(head_size, torch.float32 if has_fp32_tables else dtype, device)
    expected = packed.clone()
    rope_reference(expected[:, :num_heads], positions, cos, signed_sin)
    untouched = packed[:, num_heads:].clone()
    rope(heads, positions, cos, signed_sin)
    torch.testing.assert_close(packed, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(packed[:, num_heads:], untouched)


def test_the_reference_is_a_rotation_of_pairs_by_position_times_frequency():
    heads, _, positions = some(4, 3, 8, torch.float32, "cpu")
    before = heads.clone()
    rope_reference(heads, positions, *tables_of(8, torch.float32, "cpu"))
    for token, position in enumerate(positions.tolist()):
        for pair in range(4):
            angle = position * 1e4 ** (-2 * pair / 8)
            x, y = before[token, :, pair], before[token, :, pair + 4]
            new_x, new_y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
            torch.testing.assert_close(heads[token, :, pair], new_x, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(heads[token, :, pair + 4], new_y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_position_0_rotates_nothing(dtype, device):
    heads, packed, positions = some(3, 2, 16, dtype, device)
    before = packed.clone()
    rope(heads, torch.zeros_like(positions), *tables_of(16, dtype, device))
    assert torch.equal(packed, before)


def test_products_of_rotated_heads_depend_on_their_distance_alone(device):
    query, key = torch.randn(2, 1, 1, 32, generator=torch.Generator().manual_seed(0)).to(device).expand(2, 3, 1, 32)
    tables = tables_of(32, torch.float32, device)
    query, key = query.clone(), key.clone()
    rope(query, torch.tensor([7, 20, 49], device=device), *tables)
    rope(key, torch.tensor([2, 15, 44], device=device), *tables)
    products = (query * key).sum(dim=2).flatten()
    torch.testing.assert_close(products, products[:1].expand(3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": torch.zeros(3, 8)}, r"heads must be \[T, H, D\]"),
        ({"heads": torch.zeros(3, 2, 7)}, "with an even D"),
        ({"heads": torch.zeros(3, 2, 8, dtype=torch.float64)}, "float32, float16 or bfloat16"),
        ({"heads": torch.zeros(3, 8, 2).transpose(1, 2)}, "heads must be contiguous beyond their first axis"),
        ({"positions": torch.zeros(3, dtype=torch.int32)}, r"positions must be \[3\] int64"),
        ({"positions": torch.arange(6)[::2]}, "positions must be contiguous"),
        ({"cos": torch.zeros(5, 8)}, r"cos and signed_sin must share one \[P, 1, 8\]"),
        ({"signed_sin": torch.zeros(6, 1, 8)}, r"cos and signed_sin must share one \[P, 1, 8\]"),
        ({"signed_sin": torch.zeros(5, 1, 8, dtype=torch.float16)}, "must both be torch.float32 as heads or float32"),
        ({"cos": torch.zeros(5, 1, 16)[:, :, ::2]}, "cos must be contiguous"),
        ({"cos": torch.zeros(5, 1, 8, device="meta")}, "cos is on meta, heads on cpu"),
    ],
)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(change, message):
    good = {
        "heads": torch.zeros(3, 2, 8),
        "positions": torch.zeros(3, dtype=torch.int64),
        "cos": torch.zeros(5, 1, 8),
        "signed_sin": torch.zeros(5, 1, 8),
    }
    with pytest.raises(ValueError, match=message):
        rope(**(good | change))
