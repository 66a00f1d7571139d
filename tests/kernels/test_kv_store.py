"""kv_store equals its definition, and writes nothing beside the slots it was given."""

import pytest
import torch

from specdec.kernels.kv_store import kv_store, kv_store_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
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


def test_a_written_slot_is_overwritten(device):
    key_cache, value_cache, arena = strided_caches(1, 8, torch.float32, device)
    slots = torch.tensor([9], device=device)
    for number in (1.0, 2.0):
        token = torch.full((1, 1, 8), number, device=device)
        kv_store(token, -token, key_cache, value_cache, slots)
    assert torch.equal(key_cache[2, 1, 0], torch.full((8,), 2.0, device=device))
    assert torch.equal(value_cache[2, 1, 0], torch.full((8,), -2.0, device=device))
    assert int((~arena.isnan()).sum()) == 16


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_addresses_beyond_31_bits_are_right(device):
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
    ],
)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(name, tensor, message):
    with pytest.raises(ValueError, match=message):
        kv_store(**replaced(name, tensor))
