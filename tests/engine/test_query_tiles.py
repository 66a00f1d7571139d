"""QueryTiles: as exact as torch's own kernel, whatever the sizes, and torch's settings are as before."""

import pytest
import torch
import torch.nn.functional as F

from specdec.query_tiles import QueryTiles, _products_in_bfloat16

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="held against the kernel of an x86 alone"
)


def reference(query, keys, values, first_position):
    """In float64."""
    num_queries, num_query_heads, head_size = query.shape
    keys, values = (x.double().repeat_interleave(num_query_heads // x.shape[1], dim=1) for x in (keys, values))
    scores = torch.einsum("qhd,lhd->qhl", query.double(), keys) * head_size**-0.5
    positions = torch.arange(first_position, first_position + num_queries)
    later = torch.arange(keys.shape[0]) > positions[:, None]
    return torch.einsum("qhl,lhd->qhd", scores.masked_fill(later[:, None], -torch.inf).softmax(-1), values)


def fused(query, keys, values, first_position):
    num_queries, num_query_heads, _ = query.shape
    keys, values = (
        x.repeat_interleave(num_query_heads // x.shape[1], dim=1).transpose(0, 1)[None] for x in (keys, values)
    )
    allowed = torch.arange(keys.shape[2]) <= torch.arange(first_position, first_position + num_queries)[:, None]
    attended = F.scaled_dot_product_attention(query.transpose(0, 1)[None], keys, values, attn_mask=allowed)
    return attended[0].transpose(0, 1)


def random_inputs(num_queries, num_keys, heads, kv_heads, head_size):
    generator = torch.Generator().manual_seed(num_queries + num_keys)
    # Spread scores: a few keys have nearly all the weight, as with models.
    query = 2 * torch.randn(num_queries, heads, head_size, generator=generator)
    keys = 2 * torch.randn(num_keys, kv_heads, head_size, generator=generator)
    values = torch.randn(num_keys, kv_heads, head_size, generator=generator)
    return query.bfloat16(), keys.bfloat16(), values.bfloat16()


@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), [(4, 4, 16), (9, 3, 64), (8, 2, 80)])
@pytest.mark.parametrize(
    ("num_queries", "first_position", "num_spare"), [(41, 0, 7), (96, 0, 0), (97, 31, 1), (300, 0, 4), (64, 900, 60)]
)
def test_it_is_as_exact_as_the_kernel(heads, kv_heads, head_size, num_queries, first_position, num_spare):
    num_keys = first_position + num_queries
    query, keys, values = random_inputs(num_queries, num_keys + num_spare, heads, kv_heads, head_size)
    # What lies behind the last query's own key is anything.
    keys[num_keys:] = values[num_keys:] = float("nan")
    tiles = QueryTiles(num_queries=num_queries, first_position=first_position, num_groups=heads // kv_heads)
    attended = tiles.attend(query, keys, values)
    keys, values = keys[:num_keys], values[:num_keys]
    exact = reference(query, keys, values, first_position)
    error = (attended.double() - exact).abs()
    kernels_error = (fused(query, keys, values, first_position).double() - exact).abs()
    assert error.mean() < 1.1 * kernels_error.mean()
    assert error.max() < 2 * kernels_error.max()


def test_products_elsewhere_stay_as_they_were():
    query, keys, values = random_inputs(50, 50, 4, 4, 16)
    tiles = QueryTiles(num_queries=50, first_position=0, num_groups=1)
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    tiles.attend(query, keys, values)
    assert matmul.fp32_precision == before
    with pytest.raises(RuntimeError):
        tiles.attend(query, keys[:20], values)
    assert matmul.fp32_precision == before
    with _products_in_bfloat16():
        assert matmul.fp32_precision == "bf16"
    assert matmul.fp32_precision == before
    one, other = torch.randn(300, 300), torch.randn(300, 300)
    assert torch.allclose(one @ other, (one.double() @ other.double()).float(), atol=1e-3)


@pytest.mark.parametrize(("num_queries", "first_position"), [(41, 0), (512, 0), (512, 3000), (200, 100_000)])
def test_scores_take_a_bounded_place(num_queries, first_position):
    tiles = QueryTiles(num_queries=num_queries, first_position=first_position, num_groups=3)._tiles
    assert [tile.start for tile in tiles] == [0, *(tile.stop for tile in tiles[:-1])]
    assert tiles[-1].stop == num_queries
    for tile in tiles:
        assert tile.num_keys == first_position + tile.stop
        assert tile.stop - tile.start <= max(16, 2**16 // tile.num_keys)
