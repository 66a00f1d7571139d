"""paged_attention equals its definition, in place, whatever stands around what it may read."""

import copy
import math

import pytest
import torch

from specdec.kernels import paged_attention as paged_attention_module
from specdec.kernels.attention_tiling import AttentionTiling, check_tiling, choose_tiling
from specdec.kernels.dispatch import INTERPRETED, runs_in_triton
from specdec.kernels.paged_attention import paged_attention, paged_attention_reference

# What a product of up to 4,000 terms of unit size loses: rounding of the sums in fp32; of the output, and of the
# weights before they are multiplied with the values, in the others.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SMALL = AttentionTiling(tile_rows=16, tile_keys=16)


class Step:
    """One step's tensors: sequences of (queries, context) in NaN-poisoned arenas, blocks in random order."""

    def __init__(
        self,
        sequences,
        *,
        num_heads=4,
        num_kv_heads=2,
        head_size=64,
        block_size=16,
        dtype=torch.float32,
        cache_dtype=None,
        device="cpu",
        seed=0,
        num_spare_rows=0,
    ):
        generator = torch.Generator().manual_seed(seed)
        self.max_num_queries = max((queries for queries, _ in sequences), default=0)
        self.max_context_len = max((context for _, context in sequences), default=0)
        num_blocks = [math.ceil(context / block_size) for _, context in sequences]
        order = torch.randperm(sum(num_blocks) + 2, generator=generator).int()
        # Ids of no block where a table has no entry: reading by them would fail.
        self.block_tables = torch.full((len(sequences), max(num_blocks, default=0) + 1), 2**30, dtype=torch.int32)
        for row, used, start in zip(self.block_tables, num_blocks, running_sum(num_blocks), strict=False):
            row[:used] = order[start : start + used]
        starts = running_sum([queries for queries, _ in sequences])
        num_rows = starts[-1] + num_spare_rows
        packed = torch.randn(num_rows, num_heads + 3, head_size, generator=generator).to(device, dtype)
        packed[:, num_heads:] = math.nan
        self.query = packed[:, :num_heads]
        # Other layers' and models' parts lie before and after those of each block, of keys and values not as many.
        cache_size = block_size * num_kv_heads * head_size
        arenas = [torch.full((len(order), cache_size + more), math.nan) for more in (24, cache_size + 40)]
        caches = [
            arena[:, 16 : 16 + cache_size].view(len(order), block_size, num_kv_heads, head_size) for arena in arenas
        ]
        for (_, context), row in zip(sequences, self.block_tables, strict=True):
            for position in range(context):
                for cache in caches:
                    cache[row[position // block_size], position % block_size] = torch.randn(
                        num_kv_heads, head_size, generator=generator
                    )
        self.caches = [
            arena.to(device, cache_dtype or dtype).as_strided(cache.shape, cache.stride(), cache.storage_offset())
            for arena, cache in zip(arenas, caches, strict=True)
        ]
        self.block_tables = self.block_tables.to(device)
        self.query_starts = torch.tensor(starts, dtype=torch.int32, device=device)
        self.context_lens = torch.tensor([context for _, context in sequences], dtype=torch.int32, device=device)
        self.num_queries = starts[-1]

    def tensors(self, output):
        return self.query, *self.caches, self.block_tables, self.query_starts, self.context_lens, output

    def poisoned(self):
        """With one head more than there are."""
        rows = torch.full((self.query.shape[0], self.query.shape[1] + 1, self.query.shape[2]), math.nan)
        return rows.to(self.query)

    def attend(self, tiling=SMALL, **options):
        whole = self.poisoned()
        output = whole[:, :-1]
        paged_attention(
            *self.tensors(output),
            max_num_queries=self.max_num_queries,
            max_context_len=self.max_context_len,
            scale=self.scale,
            tiling=tiling,
            **options,
        )
        assert bool(whole[:, -1].isnan().all()), "what is behind the heads stays as it is"
        return output

    def expected(self, **options):
        output = self.poisoned()[:, :-1]
        paged_attention_reference(*self.tensors(output), scale=self.scale, **options)
        return output

    @property
    def scale(self):
        return self.query.shape[2] ** -0.5

    def check(self, tiling=SMALL, **options):
        output, expected = self.attend(tiling, **options), self.expected(**options)
        assert bool(expected[: self.num_queries].isfinite().all())
        tolerance = TOLERANCE[self.query.dtype]
        torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def running_sum(numbers):
    sums = [0]
    for number in numbers:
        sums.append(sums[-1] + number)
    return sums


MIXED = [(1, 1), (5, 5), (0, 7), (1, 40), (4, 37), (0, 0), (19, 50)]
"""First tokens, a prompt, a sequence without a query, decoding, verification, an empty one, a chunk of a prompt."""

FEW = {"sequences": [(1, 40), (0, 7), (10, 21), (1, 1)], "num_heads": 2, "num_kv_heads": 1, "head_size": 16}


@pytest.mark.parametrize(("queries", "context"), [(1, 1), (1, 9), (3, 3), (3, 11)])
@pytest.mark.parametrize("window", [None, 4])
def test_the_reference_is_the_definition(queries, context, window):
    step = Step([(2, 5), (queries, context)], head_size=4, block_size=3)
    keys, values = step.caches
    bias = torch.randn(step.query.shape[0], queries + 2, generator=torch.Generator().manual_seed(1))
    output = step.expected(window=window, soft_cap=2.0, bias=bias)
    for i in range(queries):
        position = context - queries + i
        first_key = 0 if window is None else max(0, position - window + 1)
        for head in range(4):
            scores, seen = [], []
            for j in range(first_key, position + 1):
                slot = int(step.block_tables[1, j // 3]), j % 3, head // 2
                score = 2.0 * math.tanh(float(step.query[2 + i, head].double() @ keys[slot].double()) * 0.5 / 2.0)
                scores.append(score + (float(bias[2 + i, j - (context - queries)]) if j >= context - queries else 0.0))
                seen.append(values[slot].double())
            weights = [math.exp(score) for score in scores]
            attended = sum(w * v for w, v in zip(weights, seen, strict=True)) / sum(weights)
            torch.testing.assert_close(output[2 + i, head].double(), attended, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("split_keys", [None, 32])
def test_prompts_decoding_and_verification_go_together(split_keys, dtype, device):
    Step(MIXED, dtype=dtype, device=device).check(AttentionTiling(16, 16, split_keys))


@pytest.mark.parametrize("head_size", [1, 16, 64, 80, 96, 128, 256])
def test_every_head_size(head_size, device):
    Step([(1, 21), (3, 19)], num_heads=2, num_kv_heads=1, head_size=head_size, device=device).check(
        AttentionTiling(16, 16, 16)
    )


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (3, 1), (9, 3), (8, 8), (17, 1)])
def test_every_grouping_of_heads(num_heads, num_kv_heads, device):
    tiling = AttentionTiling(32 if num_heads == 17 else 16, 16)
    Step([(7, 20), (1, 18)], num_heads=num_heads, num_kv_heads=num_kv_heads, head_size=16, device=device).check(tiling)


@pytest.mark.parametrize("block_size", [1, 3, 16, 24, 100])
def test_every_block_size(block_size, device):
    step = Step([(3, 70), (1, 101)], num_kv_heads=1, block_size=block_size, head_size=16, device=device)
    step.check(AttentionTiling(16, 32, 64))


@pytest.fixture
def poisoned_scratch(monkeypatch, device):
    """What is not written before it is read is NaN; `device`, which asks for no memory of ours, comes first."""

    def poisoned(*shape, dtype, device):
        return torch.full(shape, math.nan, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "empty", poisoned)


# One of 8 before position 39 begins where a split does.
@pytest.mark.parametrize("split_keys", [None, 16])
@pytest.mark.parametrize("window", [1, 8, 33])
@pytest.mark.usefixtures("poisoned_scratch")
def test_a_window_hides_what_is_further_back(window, split_keys, device):
    Step(**FEW, device=device).check(AttentionTiling(16, 16, split_keys), window=window)


# One of 9 before position 88 begins where a block does, and blocks of 4 are less than a tile.
@pytest.mark.parametrize(("window", "block_size"), [(1, 16), (9, 16), (20, 4)])
def test_blocks_before_the_window_are_not_read(window, block_size, device):
    step = Step([(2, 90)], head_size=16, block_size=block_size, device=device)
    expected = step.expected(window=window)
    step.block_tables[:, : (88 - window + 1) // block_size] = 2**30
    torch.testing.assert_close(step.attend(window=window), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("split_keys", [None, 16])
@pytest.mark.parametrize("soft_cap", [0.01, 30.0])
def test_scores_are_capped(soft_cap, split_keys, device):
    Step(**FEW, device=device).check(AttentionTiling(16, 16, split_keys), soft_cap=soft_cap)


@pytest.mark.parametrize("split_keys", [None, 16])
def test_a_tree_of_drafts_hides_what_is_no_ancestor(split_keys, device):
    parents = [None, 0, 0, 1, 1, 2, 5]
    step = Step([(7, 30), (2, 17), (7, 7)], num_heads=2, num_kv_heads=1, head_size=16, device=device)
    bias = torch.zeros(step.query.shape[0], 9, device=device)
    for first in (0, 9):
        for node in range(7):
            bias[first + node] = -math.inf
            ancestor = node
            while ancestor is not None:
                bias[first + node, ancestor] = 0.25 * ancestor
                ancestor = parents[ancestor]
    step.check(AttentionTiling(16, 16, split_keys), bias=bias)
    step.check(AttentionTiling(16, 16, split_keys), bias=bias[:, :7], soft_cap=3.0)


@pytest.mark.parametrize("split_keys", [None, 16])
def test_a_path_of_a_tree_attends_as_if_it_were_alone(split_keys, device):
    tree, path = Step([(4, 24)], head_size=16, device=device), Step([(3, 23)], head_size=16, device=device)
    chosen = [0, 1, 3]
    for tree_cache, path_cache in zip(tree.caches, path.caches, strict=True):
        for position in range(23):
            source = position if position < 20 else 20 + chosen[position - 20]
            path_cache[path.block_tables[0, position // 16], position % 16] = tree_cache[
                tree.block_tables[0, source // 16], source % 16
            ]
    path.query = tree.query[chosen]
    bias = torch.zeros(4, 4, device=device)
    bias[3, 2] = -math.inf
    tiling = AttentionTiling(16, 16, split_keys)
    torch.testing.assert_close(tree.attend(tiling, bias=bias)[chosen], path.attend(tiling), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("split_keys", [None, 16])
def test_a_query_that_sees_nothing_gets_zeros(split_keys, device):
    step = Step([(3, 3), (1, 20)], head_size=16, device=device)
    bias = torch.zeros(4, 3, device=device)
    bias[1] = -math.inf
    output = step.attend(AttentionTiling(16, 16, split_keys), bias=bias)
    assert torch.equal(output[1], torch.zeros_like(output[1]))
    step.check(AttentionTiling(16, 16, split_keys), bias=bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_long_contexts_are_split(dtype, device):
    step = Step([(1, 4000), (2, 1030), (1, 2)], num_heads=2, num_kv_heads=1, block_size=48, dtype=dtype, device=device)
    step.check(AttentionTiling(16, 128, 1024))


@pytest.mark.parametrize("max_splits", [1, 2, 5])
@pytest.mark.parametrize("window", [None, 30])
def test_a_context_is_cut_into_so_many_splits_at_most(max_splits, window, device):
    tiling = AttentionTiling(16, 16, 16, max_splits)
    sequences = [(1, 97), (5, 40), (20, 33), (0, 0), (1, 3)]
    num_kv_heads = 2 if max_splits == 2 else 1
    step = Step(sequences, num_heads=2 * num_kv_heads, num_kv_heads=num_kv_heads, head_size=16, device=device)
    step.check(tiling, window=window)
    # Of a graph that was captured for longer contexts.
    step.max_context_len, step.max_num_queries = 10_000, 1
    step.check(tiling, window=window)


@pytest.mark.parametrize("split_keys", [None, 32])
def test_rows_of_no_sequence_stay_as_they_are(split_keys, device):
    step = Step([(2, 40), (1, 9)], head_size=16, num_spare_rows=70, device=device)
    output = step.attend(AttentionTiling(16, 16, split_keys))
    assert bool(output[:3].isfinite().all())
    assert bool(output[3:].isnan().all())


@pytest.mark.parametrize("split_keys", [None, 16])
def test_a_program_writes_the_queries_of_its_own_tile(split_keys, device, monkeypatch):
    """What it wrote of the next would mostly be overwritten. 5 queries at 3 heads each leave a row of 16 free."""
    if not runs_in_triton(torch.empty(0, device=device)):
        pytest.skip("only kernels have tiles")
    kernel = paged_attention_module.paged_attention_kernel

    class FirstTile:
        def __getitem__(self, grid):
            return kernel[(1, *grid[1:])]

    step = Step([(12, 12)], num_heads=3, num_kv_heads=1, head_size=16, device=device)
    monkeypatch.setattr(paged_attention_module, "paged_attention_kernel", FirstTile())
    written = torch.full_like(step.query, math.nan, memory_format=torch.contiguous_format)
    monkeypatch.setattr(torch, "empty", lambda size, **given: torch.full((size,), math.nan, **given))
    paged_attention(
        *step.tensors(written),
        max_num_queries=12,
        max_context_len=12,
        scale=1.0,
        tiling=AttentionTiling(16, 16, split_keys),
    )
    assert bool(written[:5].isfinite().all())
    assert bool(written[5:].isnan().all())


@pytest.mark.parametrize("sequences", [[], [(0, 0)], [(0, 5), (0, 0)]])
def test_steps_without_a_query_write_nothing(sequences, device):
    step = Step(sequences, head_size=16, num_spare_rows=2, device=device)
    assert bool(step.attend().isnan().all())


def part_of(step, first, num_queries):
    """A step of the first sequence alone, whose queries are some consecutive ones of it."""
    part = copy.copy(step)
    part.query = step.query[first : first + num_queries]
    part.query_starts = torch.tensor([0, num_queries], dtype=torch.int32, device=step.query.device)
    part.block_tables = step.block_tables[:1]
    part.context_lens = torch.tensor([first + num_queries], dtype=torch.int32, device=step.query.device)
    part.max_num_queries, part.max_context_len = num_queries, first + num_queries
    return part


@pytest.mark.parametrize("window", [None, 30])
def test_what_stands_beside_and_after_a_query_leaves_its_bits_alone(window, device):
    """As a decoded token, as the first of a draft, and in a prompt between other sequences; always a tile's first."""
    tiling = AttentionTiling(16, 16, 32)
    step = Step([(42, 42), (0, 9), (3, 100)], num_heads=2, num_kv_heads=1, head_size=16, device=device)
    expected = step.attend(tiling, window=window)
    # The reference on the CPU is free to sum as it likes.
    tolerance = 0.0 if runs_in_triton(step.query) else 2e-5
    for first in (24, 40):
        for num_queries in (1, 2):
            output = part_of(step, first, num_queries).attend(tiling, window=window)
            torch.testing.assert_close(output[0], expected[first], rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"soft_cap": 2.0}, {"window": 30}], ids=str)
@pytest.mark.parametrize("cache_dtype", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_one_tiling_gives_a_query_the_same_bits_in_any_step(dtype, cache_dtype, options, device):
    """Not so in the interpreter: numpy's products depend on the row of the tile."""
    tiling = AttentionTiling(16, 16, 32)
    if cache_dtype is not None:
        options = options | {name: torch.full((2,), 0.7, device=device) for name in ("key_scale", "value_scale")}
    step = Step([(90, 90), (3, 100)], dtype=dtype, cache_dtype=cache_dtype, device=device)
    expected = step.attend(tiling, **options)
    for num_queries in (1, 5, 17):
        output = part_of(step, 90 - num_queries, num_queries).attend(tiling, **options)
        assert torch.equal(output, expected[90 - num_queries : 90])


def test_a_context_within_one_split_gives_the_bits_of_none(device):
    step = Step(**FEW, device=device)
    split, whole = step.attend(AttentionTiling(16, 16, 64)), step.attend(AttentionTiling(16, 16))
    assert torch.equal(split[: step.num_queries], whole[: step.num_queries])


@pytest.mark.parametrize("options", [{}, {"window": 7}, {"soft_cap": 2.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("split_keys", [None, 32])
def test_a_cache_of_fp8_counts_by_its_scales(split_keys, cache_dtype, dtype, options, device):
    step = Step([(1, 33), (3, 20)], dtype=dtype, cache_dtype=cache_dtype, device=device)
    key_scale, value_scale = torch.tensor([[0.5, 2.0], [3.0, 0.25]], device=device)
    step.check(AttentionTiling(16, 16, split_keys), key_scale=key_scale, value_scale=value_scale, **options)


def test_more_splits_than_are_merged_at_a_time(device):
    Step([(1, 600), (2, 40)], device=device).check(AttentionTiling(16, 16, 16))


@pytest.mark.parametrize("power", [-90, -20, 20, 90])
def test_over_a_cache_of_fp8_queries_of_any_size_count_as_their_scores_say(power, device, monkeypatch):
    scales = {name: torch.ones(2, device=device) for name in ("key_scale", "value_scale")}
    step = Step(MIXED, dtype=torch.bfloat16, cache_dtype=torch.float8_e4m3fn, device=device)
    step.check(**scales)
    expected = step.attend(**scales)
    # Both exactly: what is multiplied stays the same, but for where a power of two is kept.
    step.query *= 2.0**power
    monkeypatch.setattr(Step, "scale", step.scale * 2.0**-power)
    assert torch.equal(step.attend(**scales)[: step.num_queries], expected[: step.num_queries])


def test_over_a_cache_of_fp8_queries_of_nothing_attend_to_all_alike(device):
    scales = {name: torch.ones(2, device=device) for name in ("key_scale", "value_scale")}
    step = Step(MIXED, dtype=torch.bfloat16, cache_dtype=torch.float8_e4m3fn, device=device)
    step.query[:] = 0.0
    step.check(**scales)


@pytest.mark.parametrize("head_size", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_chosen_tilings_are_right(dtype, head_size, device):
    if INTERPRETED and head_size != 80:
        return
    step = Step(MIXED, head_size=head_size, dtype=dtype, device=device)
    step.check(None)


@pytest.mark.parametrize(
    ("num_sequences", "num_kv_heads", "num_splits"), [(1, 8, 32), (4, 8, 16), (16, 8, 4), (64, 8, None), (1, 1, 256)]
)
def test_few_contexts_are_split_among_the_processors_as_far_as_merging_pays(
    num_sequences, num_kv_heads, num_splits, monkeypatch
):
    monkeypatch.setattr("specdec.kernels.attention_tiling._num_processors", lambda _: 132)
    tiling = choose_tiling(
        torch.zeros(num_sequences, 4 * num_kv_heads, 128, dtype=torch.bfloat16),
        num_kv_heads=num_kv_heads,
        num_sequences=num_sequences,
        max_num_queries=1,
        max_context_len=100_000,
    )
    assert tiling.max_splits == num_splits


@pytest.mark.parametrize("cache_dtype", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("num_queries", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tilings_of_decoding_and_of_drafts_are_right_where_contexts_are_split(
    dtype, num_queries, cache_dtype, device, monkeypatch
):
    """As on a GPU of many processors; 4 heads share a key, so that 5 queries are a tile of 32 rows."""
    monkeypatch.setattr("specdec.kernels.attention_tiling._num_processors", lambda _: 132)
    scales = {name: torch.ones(1, device=device) for name in ("key_scale", "value_scale")} if cache_dtype else {}
    step = Step(
        [(num_queries, 300), (num_queries, 10)],
        num_heads=4,
        num_kv_heads=1,
        dtype=dtype,
        cache_dtype=cache_dtype,
        head_size=64,
        device=device,
    )
    step.check(None, **scales)


@pytest.mark.parametrize("is_fp8", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("num_processors", [1, 132])
@pytest.mark.parametrize("max_num_queries", [1, 5, 512])
@pytest.mark.parametrize("head_size", [1, 80, 256])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(9, 3), (32, 8), (71, 1)])
def test_a_chosen_tiling_is_one(
    num_heads, num_kv_heads, head_size, max_num_queries, num_processors, dtype, is_fp8, monkeypatch
):
    monkeypatch.setattr("specdec.kernels.attention_tiling._num_processors", lambda _: num_processors)
    tiling = choose_tiling(
        torch.zeros(max_num_queries, num_heads, head_size, dtype=dtype),
        num_kv_heads=num_kv_heads,
        num_sequences=1,
        max_num_queries=max_num_queries,
        max_context_len=4000,
        is_fp8=is_fp8,
    )
    if max_num_queries == 1 and num_processors > 1:
        assert tiling.split_keys is not None, "one token alone would leave the others without work"
    check_tiling(tiling, num_heads // num_kv_heads)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_addresses_beyond_31_bits_are_right(device, large_memory):
    num_blocks, block_stride = 40, 2**27
    arena = torch.zeros(num_blocks * block_stride, dtype=torch.float16, device=device)
    cache = arena.as_strided((num_blocks, 16, 1, 64), (block_stride, 64, 64, 1))
    cache[num_blocks - 1] = 1.0
    tables = torch.tensor([[num_blocks - 1]], dtype=torch.int32, device=device)
    query = torch.ones(1, 1, 64, dtype=torch.float16, device=device)
    output = torch.full_like(query, math.nan)
    starts = torch.tensor([0, 1], dtype=torch.int32, device=device)
    paged_attention(
        query, cache, cache, tables, starts, starts[1:] * 16, output, max_num_queries=1, max_context_len=16, scale=0.1
    )
    assert torch.equal(output, query)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(3, 64)}, r"query must be \[T, H_q, D\]"),
        ({"query": torch.zeros(3, 4, 8, dtype=torch.float64)}, "float32, float16 or bfloat16"),
        ({"query": torch.zeros(3, 4, 257)}, "D up to 256"),
        ({"query": torch.zeros(3, 8, 4).transpose(1, 2)}, "query must be contiguous beyond its first axis"),
        ({"output": torch.zeros(3, 4, 8, dtype=torch.float16)}, r"output must be \[3, 4, 8\] torch.float32 as query"),
        ({"value_cache": torch.zeros(5, 16, 2, 4)}, r"the caches must share one \[num_blocks, block_size, H, 8\]"),
        (
            {"key_cache": torch.zeros(5, 16, 3, 8), "value_cache": torch.zeros(5, 16, 3, 8)},
            "4 query heads are no multiple of 3 KV heads",
        ),
        ({"value_cache": torch.zeros(5, 16, 2, 8, dtype=torch.float16)}, "the caches must both be torch.float32"),
        (
            {"key_cache": torch.zeros(5, 2, 16, 8).transpose(1, 2)},
            "key_cache must be contiguous beyond its first axis",
        ),
        ({"block_tables": torch.zeros(1, 3, dtype=torch.int64)}, r"block_tables is \[1, 3\] torch.int64"),
        ({"block_tables": torch.zeros(3, 1, dtype=torch.int32)}, r"block_tables is \[3, 1\]"),
        ({"block_tables": torch.zeros(1, 6, dtype=torch.int32)[:, ::2]}, "block_tables must be contiguous"),
        ({"query_starts": torch.zeros(1, dtype=torch.int32)}, r"query_starts is \[1\]"),
        ({"context_lens": torch.zeros(1, 1, dtype=torch.int32)}, r"must be \[B, M\], \[B \+ 1\] and \[B\] int32"),
        ({"context_lens": torch.zeros(1, dtype=torch.int32, device="meta")}, "context_lens is on meta, query on cpu"),
        ({"window": 0}, "window is 0; it must be 1 or more"),
        ({"scale": 0.0}, "scale is 0.0; it must be above 0"),
        ({"soft_cap": 0.0}, "soft_cap is 0.0; it must be above 0"),
        ({"bias": torch.zeros(3, 2)}, r"bias must be \[3, 3 or more\] float32"),
        ({"bias": torch.zeros(6, 3).T}, r"bias must be \[3, 3 or more\] float32|bias must be contiguous"),
        ({"bias": torch.zeros(4, 3).T}, "bias must be contiguous"),
        ({"key_scale": torch.ones(2)}, "key_scale goes with caches of fp8"),
        (
            {
                "key_cache": torch.zeros(5, 16, 2, 8, dtype=torch.float8_e5m2),
                "value_cache": torch.zeros(5, 16, 2, 8, dtype=torch.float8_e5m2),
                "key_scale": torch.ones(2),
            },
            "value_scale goes with caches of fp8",
        ),
        ({"tiling": AttentionTiling(8, 16)}, "tile_rows is 8; it must be a power of two, 16 or more"),
        ({"tiling": AttentionTiling(16, 24)}, "tile_keys is 24; it must be a power of two"),
        ({"tiling": AttentionTiling(16, 32, 48)}, "split_keys is 48; it must be a multiple of tile_keys, 32"),
        (
            {"tiling": AttentionTiling(16, 32, None, 2)},
            "max_splits is 2; it must be 1 or more, and goes with split_keys",
        ),
        ({"tiling": AttentionTiling(16, 32, 32, 0)}, "max_splits is 0; it must be 1 or more"),
        ({"tiling": AttentionTiling(16, 32, num_stages=0)}, "num_stages is 0; it must be 1 or more"),
        ({"tiling": AttentionTiling(16, 32, num_warps=6)}, "num_warps is 6; it must be a power of two, up to 32"),
    ],
)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(change, message):
    good = {
        "query": torch.zeros(3, 4, 8),
        "key_cache": torch.zeros(5, 16, 2, 8),
        "value_cache": torch.zeros(5, 16, 2, 8),
        "block_tables": torch.zeros(1, 3, dtype=torch.int32),
        "query_starts": torch.tensor([0, 3], dtype=torch.int32),
        "context_lens": torch.tensor([3], dtype=torch.int32),
        "output": torch.zeros(3, 4, 8),
        "max_num_queries": 3,
        "max_context_len": 3,
        "scale": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        paged_attention(**(good | change))
