"""kv_store equals its definition, and writes nothing beside the slots it was given."""

import math

import pytest
import torch

from specdec.kernels.kv_store import kv_store, kv_store_reference
from specdec.kernels.paged_attention import paged_attention, paged_attention_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FP8_DTYPES = [torch.float8_e4m3fn, torch.float8_e5m2]
NUM_BLOCKS, BLOCK_SIZE = 7, 4


def strided_caches(num_heads, head_size, dtype, device):
    """Two layers' key and value caches in one NaN-poisoned arena; the caches of the second, and the arena."""
    cache_size = BLOCK_SIZE * num_heads * head_size
    arena = torch.full((NUM_BLOCKS, 4 * cache_size + 5), float("nan"), dtype=dtype, device=device)
    shape = (NUM_BLOCKS, BLOCK_SIZE, num_heads, head_size)
    key_cache = arena[:, 2 * cache_size : 3 * cache_size].unflatten(1, shape[1:])
    value_cache = arena[:, 3 * cache_size : 4 * cache_size].unflatten(1, shape[1:])
    assert key_cache.data_ptr() != arena.data_ptr()
    return key_cache, value_cache, arena


def projections(num_tokens, num_heads, head_size, dtype, device):
    """key and value as views of one packed product, as the model makes them."""
    generator = torch.Generator().manual_seed(num_tokens)
    size = num_heads * head_size
    packed = torch.randn(num_tokens, 3 + 2 * size, generator=generator).to(device, dtype)
    return packed[:, 3 : 3 + size].unflatten(1, (num_heads, head_size)), packed[:, 3 + size :].unflatten(
        1, (num_heads, head_size)
    )


def some_slots(num_tokens, device):
    generator = torch.Generator().manual_seed(1000 + num_tokens)
    return torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=generator)[:num_tokens].to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "head_size"), [(1, 1), (3, 64), (1, 17), (2, 127), (8, 128)])
@pytest.mark.parametrize("num_tokens", [0, 1, 5, NUM_BLOCKS * BLOCK_SIZE])
def test_exactly_the_named_slots_are_written(num_tokens, num_heads, head_size, dtype, device):
    key, value = projections(num_tokens, num_heads, head_size, dtype, device)
    slots = some_slots(num_tokens, device)
    key_cache, value_cache, arena = strided_caches(num_heads, head_size, dtype, device)

    kv_store(key, value, key_cache, value_cache, slots)

    num_written = 2 * num_tokens * num_heads * head_size
    assert int((~arena.isnan()).sum()) == num_written
    for token, slot in enumerate(slots.tolist()):
        assert torch.equal(key_cache[slot // BLOCK_SIZE, slot % BLOCK_SIZE], key[token])
        assert torch.equal(value_cache[slot // BLOCK_SIZE, slot % BLOCK_SIZE], value[token])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_wrapper_equals_the_reference(dtype, device):
    key, value = projections(19, 3, 64, dtype, device)
    slots = some_slots(19, device)
    key_cache, value_cache, arena = strided_caches(3, 64, dtype, device)
    key_reference, value_reference, arena_reference = strided_caches(3, 64, dtype, device)

    kv_store(key, value, key_cache, value_cache, slots)
    kv_store_reference(key, value, key_reference, value_reference, slots)

    torch.testing.assert_close(arena, arena_reference, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.float8_e4m3fn])
def test_a_token_without_a_slot_is_written_nowhere(cache_dtype, device):
    caches = [torch.zeros(NUM_BLOCKS, BLOCK_SIZE, 2, 8, dtype=cache_dtype, device=device) for _ in range(2)]
    scale = None if cache_dtype is torch.float32 else torch.ones(2, device=device)
    token = torch.ones(5, 2, 8, device=device)
    slots = torch.tensor([-1, 6, -1, 17, -9], device=device)
    kv_store(token, token, *caches, slots, key_scale=scale, value_scale=scale)
    for cache in caches:
        written = cache.float().flatten(0, 1).sum(dim=(1, 2)).nonzero().flatten()
        assert written.tolist() == [6, 17]
    kv_store(token, token, *caches, torch.full_like(slots, -1), key_scale=scale, value_scale=scale)
    assert float(sum(cache.float().sum() for cache in caches)) == 4 * 16


def test_a_written_slot_is_overwritten(device):
    key_cache, value_cache, arena = strided_caches(1, 8, torch.float32, device)
    slots = torch.tensor([9], device=device)
    for number in (1.0, 2.0):
        token = torch.full((1, 1, 8), number, device=device)
        kv_store(token, -token, key_cache, value_cache, slots)
    assert torch.equal(key_cache[2, 1, 0], torch.full((8,), 2.0, device=device))
    assert torch.equal(value_cache[2, 1, 0], torch.full((8,), -2.0, device=device))
    assert int((~arena.isnan()).sum()) == 16


def test_keys_and_values_need_not_lie_alike(device):
    """Neither where they come from nor in the caches."""
    generator = torch.Generator().manual_seed(5)
    slots = some_slots(5, device)
    wide = [torch.randn(5, 16 + more, generator=generator).to(device) for more in (3, 9)]
    arenas = [torch.full((NUM_BLOCKS, BLOCK_SIZE * 16 + more), math.nan, device=device) for more in (10, 6)]
    key, value = (each[:, :16].unflatten(1, (2, 8)) for each in wide)
    caches = [arena[:, : BLOCK_SIZE * 16].unflatten(1, (BLOCK_SIZE, 2, 8)) for arena in arenas]
    kv_store(key, value, *caches, slots)
    for numbers, cache, arena in zip((key, value), caches, arenas, strict=True):
        assert torch.equal(cache[slots // BLOCK_SIZE, slots % BLOCK_SIZE], numbers)
        assert int((~arena.isnan()).sum()) == numbers.numel()


def every_half():
    """Every float16, infinities included, and one NaN."""
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    return torch.cat([halves[~halves.isnan()], torch.tensor([math.nan], dtype=torch.float16)])


def near_ties(cache_dtype):
    """Each two neighbours of an fp8 format, what is halfway between them, and the fp32 numbers beside all these."""
    finite = torch.arange(256, dtype=torch.uint8).view(cache_dtype).float()
    finite = finite[finite.isfinite()].sort().values
    numbers = torch.cat([finite, (finite[1:] + finite[:-1]) / 2.0])
    inward = torch.nextafter(numbers, torch.tensor(0.0))
    return torch.cat([numbers, inward, torch.nextafter(numbers, torch.copysign(torch.tensor(math.inf), numbers))])


def stored_in_fp8(numbers, scale, cache_dtype, device):
    """What a cache holds of them, keys and values alike: one token of one head each 1024 numbers."""
    padded = torch.nn.functional.pad(numbers, (0, -len(numbers) % 1024)).view(-1, 1, 1024).to(device)
    num_slots = len(padded) + 5
    caches = [torch.full((num_slots, 1, 1, 1024), math.nan).to(cache_dtype).to(device) for _ in range(2)]
    slots = torch.arange(len(padded), device=device) + 5
    scales = torch.tensor([scale], device=device)
    kv_store(padded, padded, *caches, slots, key_scale=scales, value_scale=scales)
    for cache in caches:
        assert bool(cache[:5].float().isnan().all())
    assert torch.equal(caches[0].view(torch.uint8), caches[1].view(torch.uint8))
    return caches[0][5:].flatten()[: len(numbers)].cpu()


@pytest.mark.parametrize("scale", [1.0, 0.37, 3.0e-5])
@pytest.mark.parametrize("cache_dtype", FP8_DTYPES)
@pytest.mark.parametrize("make", ["halves", "ties"])
def test_every_number_is_rounded_to_the_nearest_of_fp8(make, cache_dtype, scale, device):
    numbers = every_half() if make == "halves" else near_ties(cache_dtype) * scale
    stored = stored_in_fp8(numbers, scale, cache_dtype, device)
    largest = torch.finfo(cache_dtype).max
    expected = (numbers.float() / torch.tensor(scale)).clamp(-largest, largest).to(cache_dtype)
    is_nan = numbers.isnan()
    assert torch.equal(stored[~is_nan].view(torch.uint8), expected[~is_nan].view(torch.uint8))
    assert bool(stored[is_nan].float().isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache_dtype", FP8_DTYPES)
def test_scales_are_those_of_the_heads(cache_dtype, dtype, device):
    key, value = projections(19, 3, 64, dtype, device)
    slots = some_slots(19, device)
    key_scale, value_scale = torch.tensor([[0.01, 1.0, 7.0], [0.3, 20.0, 0.005]], device=device)
    layout = strided_caches(3, 64, torch.float32, device)
    # The same layout in bytes, poisoned with the NaN of the format.
    arena, reference = layout[2].to(cache_dtype), layout[2].to(cache_dtype)

    def caches_in(memory):
        return [memory.as_strided(each.shape, each.stride(), each.storage_offset()) for each in layout[:2]]

    key_cache, value_cache = caches_in(arena)
    scales = {"key_scale": key_scale, "value_scale": value_scale}
    kv_store(key, value, key_cache, value_cache, slots, **scales)
    kv_store_reference(key, value, *caches_in(reference), slots, **scales)
    assert torch.equal(arena.view(torch.uint8), reference.view(torch.uint8))
    block_ids, offsets = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    relative = 2.0**-4 if cache_dtype == torch.float8_e4m3fn else 2.0**-3
    for cache, scale, numbers in ((key_cache, key_scale, key), (value_cache, value_scale, value)):
        restored = cache.float()[block_ids, offsets] * scale[:, None]
        largest = torch.finfo(cache_dtype).max * scale[:, None]
        within = numbers.float().clamp(-largest, largest)
        # Half a unit: of the number where it is normal, of the least normal one below.
        unit = torch.finfo(cache_dtype).smallest_normal * scale[:, None]
        assert bool(((restored - within).abs() <= relative * torch.maximum(within.abs(), unit) * 1.001).all())


def test_attention_reads_what_was_stored(device):
    """A step's keys and values through a cache of e4m3, within what its 3 bits of mantissa lose, and no more."""
    generator = torch.Generator().manual_seed(1)
    num_tokens, num_heads, head_size = 2 * BLOCK_SIZE + 3, 2, 64
    query, key, value = torch.randn(3, num_tokens, num_heads, head_size, generator=generator).to(device, torch.float16)
    block_tables = torch.tensor([[4, 1, 6]], dtype=torch.int32, device=device)
    positions = torch.arange(num_tokens, device=device)
    slots = block_tables[0].long()[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    key_scale = key.float().abs().amax(dim=(0, 2)) / 448.0
    value_scale = value.float().abs().amax(dim=(0, 2)) / 448.0
    shape = (NUM_BLOCKS, BLOCK_SIZE, num_heads, head_size)
    exact = [torch.full(shape, math.nan, dtype=torch.float16, device=device) for _ in range(2)]
    small = [torch.full(shape, math.nan).to(torch.float8_e4m3fn).to(device) for _ in range(2)]
    kv_store(key, value, *exact, slots)
    kv_store(key, value, *small, slots, key_scale=key_scale, value_scale=value_scale)
    query_starts = torch.tensor([0, num_tokens], dtype=torch.int32, device=device)
    context_lens = torch.tensor([num_tokens], dtype=torch.int32, device=device)
    expected, attended = (torch.full_like(query, math.nan) for _ in range(2))
    scale = head_size**-0.5
    paged_attention_reference(query, *exact, block_tables, query_starts, context_lens, expected, scale=scale)
    paged_attention(
        query,
        *small,
        block_tables,
        query_starts,
        context_lens,
        attended,
        max_num_queries=num_tokens,
        max_context_len=num_tokens,
        scale=scale,
        key_scale=key_scale,
        value_scale=value_scale,
    )
    difference = (attended - expected).float().abs()
    assert float(difference.max()) < 0.25
    assert float(difference.mean()) < 0.03


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_addresses_beyond_31_bits_are_right(device, large_memory):
    num_blocks, block_stride = 40, 2**27
    arena = torch.zeros(num_blocks * block_stride, dtype=torch.float16, device=device)
    cache = arena.as_strided((num_blocks, 4, 1, 8), (block_stride, 8, 8, 1))
    token = torch.ones(1, 1, 8, dtype=torch.float16, device=device)
    kv_store(token, token, cache, cache, torch.tensor([num_blocks * 4 - 1], device=device))
    assert torch.equal(cache[num_blocks - 1, 3, 0], token[0, 0])
    assert int(torch.count_nonzero(arena)) == 8


def replaced(name, tensor):
    key, value = projections(5, 2, 8, torch.float32, "cpu")
    key_cache, value_cache, _ = strided_caches(2, 8, torch.float32, "cpu")
    slots = some_slots(5, "cpu")
    arguments = {
        "key": key,
        "value": value,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "slot_mapping": slots,
    }
    return arguments | {name: tensor}


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("key", torch.zeros(5, 16), r"key and value must share one \[T, H, D\]"),
        ("value", torch.zeros(4, 2, 8), r"key and value must share one \[T, H, D\]"),
        ("value", torch.zeros(5, 2, 8, dtype=torch.float16), "value is torch.float16, key is torch.float32"),
        ("value_cache", torch.zeros(7, 4, 2, 8, dtype=torch.float64), "value_cache is torch.float64"),
        ("key_cache", torch.zeros(7, 4, 8, 2), r"the caches must share one \[num_blocks, block_size, 2, 8\]"),
        (
            "key_cache",
            torch.zeros(7, 2, 4, 8).transpose(1, 2),
            "key_cache must be contiguous beyond its first axis",
        ),
        (
            "key",
            torch.zeros(2, 5, 16)[:, :, ::2].transpose(0, 1),
            "key must be contiguous beyond its first axis",
        ),
        ("slot_mapping", torch.zeros(5, dtype=torch.int32), r"slot_mapping must be \[5\] int64"),
        ("slot_mapping", torch.zeros(6, dtype=torch.int64), r"slot_mapping must be \[5\] int64"),
        ("slot_mapping", torch.arange(10)[::2], "slot_mapping must be contiguous"),
        ("value", torch.zeros(5, 2, 8, device="meta"), "value is on meta, key on cpu"),
        ("key_scale", torch.ones(2), "key_scale goes with caches of fp8, and they are torch.float32"),
    ],
)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(name, tensor, message):
    with pytest.raises(ValueError, match=message):
        kv_store(**replaced(name, tensor))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_scale": None}, "value_scale goes with caches of fp8, and they are torch.float8_e4m3fn"),
        ({"key_scale": torch.ones(3)}, r"key_scale must be \[2\] float32"),
        ({"key_scale": torch.ones(2, dtype=torch.float64)}, r"key_scale must be \[2\] float32"),
        ({"key_scale": torch.ones(2, device="meta")}, "key_scale is on meta, key on cpu"),
        ({"value_cache": torch.zeros(7, 4, 2, 8)}, "value_cache is torch.float32, key is torch.float32"),
        (
            {"key": torch.zeros(5, 2, 8).double(), "value": torch.zeros(5, 2, 8).double()},
            "key must be float32, float16 or bfloat16 where the caches are fp8",
        ),
    ],
)
def test_other_scales_than_the_caches_need_are_refused(change, message):
    good = replaced("key_scale", torch.ones(2)) | {
        "value_scale": torch.ones(2),
        "key_cache": torch.zeros(7, 4, 2, 8).to(torch.float8_e4m3fn),
        "value_cache": torch.zeros(7, 4, 2, 8).to(torch.float8_e4m3fn),
    }
    with pytest.raises(ValueError, match=message):
        kv_store(**(good | change))
