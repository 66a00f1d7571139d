"""TritonAttention: the same answers as the CPU's backend, in the kernels' CPU path and in Triton's interpreter.

tests/kernels/test_interpreter.py runs this file a second time, with TRITON_INTERPRET set.
"""

import pytest
import torch

from specdec.attention import Span, TorchAttention
from specdec.kv_cache import KVShape, allocate_arena
from specdec.triton_attention import TritonAttention

CPU = torch.device("cpu")
NUM_BLOCKS = 40


def arena(shape, block_size, device=CPU):
    """With the layers of another model beside it, and huge values where nothing was written."""
    other = KVShape(2, 1, 24, torch.float16)
    cache = allocate_arena([other, shape], num_blocks=NUM_BLOCKS, block_size=block_size, device=device)[1]
    huge = min(1e4, torch.finfo(shape.dtype).max)
    for keys, values in cache.layers:
        # Copied, as nothing fills fp8.
        keys.copy_(torch.full(keys.shape, huge, device=device))
        values.copy_(torch.full(values.shape, huge, device=device))
    return cache


def spans_of(batch, block_size, generator):
    """Spans over blocks in random order, (start position, new tokens) each."""
    free = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
    spans = []
    for start, count in batch:
        num_blocks = -(-(start + count) // block_size)
        table, free = free[:num_blocks], free[num_blocks:]
        spans.append(Span([0] * count, start, table, 0))
    return spans


def outputs(backend, steps, *, heads, kv_heads, head_size, block_size, dtype, num_layers=2):
    """Of several steps one after the other on one arena; what a step adds is the same for every backend."""
    cache = arena(KVShape(num_layers, kv_heads, head_size, dtype), block_size)
    generator = torch.Generator().manual_seed(7)
    results = []
    for spans in steps:
        num_tokens = sum(len(span.token_ids) for span in spans)
        # Views of one product, as the model passes them on.
        qkv = torch.randn(num_tokens, heads + 2 * kv_heads, head_size, generator=generator).to(dtype)
        plan = backend.plan(spans, block_size=block_size, num_groups=heads // kv_heads, dtype=dtype)
        for layer in cache.layers:
            query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
            results.append(backend.forward(query, key, value, layer, plan))
    return results


def prompts_and_drafts(block_size, generator):
    """Two prompts, one in chunks, then decoding beside a draft, then a new prompt beside both."""
    first, second, third = spans_of([(0, 40), (0, 33), (0, 5)], block_size, generator)

    def part(whole, start, end):
        return Span([0] * (end - start), start, whole.block_table, 0)

    return [
        [part(first, 0, 20), part(second, 0, 7)],
        [part(second, 7, 27), part(first, 20, 30)],
        [part(first, 30, 31), part(second, 27, 32)],
        [part(second, 32, 33), part(third, 0, 5), part(first, 31, 40)],
    ]


@pytest.mark.parametrize(
    ("block_size", "heads", "kv_heads", "head_size", "row_invariant"),
    [(3, 9, 3, 64, False), (16, 4, 4, 16, False), (5, 4, 2, 16, True)],
)
def test_it_attends_as_the_cpus_backend_does(block_size, heads, kv_heads, head_size, row_invariant):
    steps = prompts_and_drafts(block_size, torch.Generator().manual_seed(1))
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_size": head_size, "block_size": block_size}
    # One tiling for all takes the interpreter four times as long.
    sizes["num_layers"] = 1 if row_invariant else 2
    ours = outputs(TritonAttention(CPU, row_invariant=row_invariant), steps, dtype=torch.float32, **sizes)
    theirs = outputs(TorchAttention(), steps, dtype=torch.float32, **sizes)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("row_invariant", [False, True])
def test_a_cache_of_fp8_attends_to_rounded_keys_and_values(row_invariant):
    heads, kv_heads, head_size, block_size = 2 if row_invariant else 4, 2, 16, 5
    steps = prompts_and_drafts(block_size, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(7)
    cache = arena(KVShape(1, kv_heads, head_size, torch.float8_e4m3fn), block_size)
    written = arena(KVShape(1, kv_heads, head_size, torch.float32), block_size)
    scales = torch.tensor([0.5, 3.0]), torch.tensor([0.1, 1.7])
    ours, theirs = TritonAttention(CPU, row_invariant=row_invariant), TorchAttention()
    for spans in steps:
        num_tokens = sum(len(span.token_ids) for span in spans)
        qkv = torch.randn(num_tokens, heads + 2 * kv_heads, head_size, generator=generator)
        query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
        plans = [
            each.plan(spans, block_size=block_size, num_groups=heads // kv_heads, dtype=torch.float32)
            for each in (ours, theirs)
        ]
        own = ours.forward(query, key, value, cache.layers[0], plans[0], *scales)
        rounded = []
        for part, scale in zip((key, value), scales, strict=True):
            rounded.append((part / scale[:, None]).to(torch.float8_e4m3fn).float() * scale[:, None])
            # The bound of the format: 3 digits after the first, and the least step next to 0.
            bound = torch.maximum(part.abs() * 2.0**-4, 2.0**-10 * scale[:, None].expand(part.shape))
            assert bool(((rounded[-1] - part).abs() <= bound).all())
        other = theirs.forward(query, *rounded, written.layers[0], plans[1])
        torch.testing.assert_close(own, other, atol=2e-5, rtol=1e-4)


@pytest.mark.gpu
def test_a_row_invariant_query_has_the_same_bits_in_any_step():
    """Not so in the interpreter: numpy's products depend on the row of the tile."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    first, second = spans_of([(0, 37), (0, 30)], 4, torch.Generator().manual_seed(2))
    cache = arena(KVShape(1, 2, 16, torch.bfloat16), 4, device)
    generator = torch.Generator().manual_seed(3)
    rows = {
        id(each): torch.randn(len(each.token_ids), 10, 16, generator=generator).to(device, torch.bfloat16)
        for each in (first, second)
    }
    backend = TritonAttention(device, row_invariant=True)

    def step(*parts):
        """(sequence, start, end) each; what the first one's queries get."""
        spans = [Span([0] * (end - start), start, each.block_table, 0) for each, start, end in parts]
        qkv = torch.cat([rows[id(each)][start:end] for each, start, end in parts])
        plan = backend.plan(spans, block_size=4, num_groups=3, dtype=torch.bfloat16)
        query, key, value = qkv.split([6, 2, 2], dim=1)
        return backend.forward(query, key, value, cache.layers[0], plan)[: parts[0][2] - parts[0][1]]

    whole = step((first, 0, 37))
    in_chunks = torch.cat(
        [
            step((first, 0, 5), (second, 0, 30)),
            step((first, 5, 6)),
            step((first, 6, 30), (second, 29, 30)),
            step((first, 30, 37)),
        ]
    )
    assert torch.equal(whole, in_chunks)


def test_a_plan_of_nothing_is_empty():
    plan = TritonAttention(CPU).plan([], block_size=16, num_groups=3, dtype=torch.float32)
    assert plan.slot_mapping.shape == (0,)
    assert plan.query_starts.tolist() == [0]
    assert plan.context_lens.shape == (0,)
