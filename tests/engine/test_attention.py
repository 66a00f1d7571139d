"""The library's backends against attention written out, and row-invariant products bit for bit."""

import math

import pytest
import torch

from specdec import backend as backend_module
from specdec import linear
from specdec.attention import RowInvariantAttention, Span, TorchAttention
from specdec.backend import CpuBackend
from specdec.config import EngineConfig
from specdec.engine import Engine
from specdec.kv_cache import KVShape, allocate_arena
from specdec.linear import (
    INVARIANT_TILE_ROWS,
    PackedLinear,
    PanelLinear,
    PlainLinear,
    RowInvariantLinear,
    linear_method,
)
from specdec.models.layer_ops import TorchOps
from specdec.processor import has_products_of
from specdec.query_tiles import QueryTiles
from specdec.request import SamplingParams
from specdec.row_attention import RowAttention
from specdec.vector_ops import VectorOps

NUM_BLOCKS = 64
HUGE = 1e4


def arena(shape, block_size):
    """A pool of huge values, so that a slot read by mistake shows."""
    other = KVShape(2, 1, 24, torch.float16)
    cache = allocate_arena([shape, other], num_blocks=NUM_BLOCKS, block_size=block_size, device=torch.device("cpu"))[0]
    for keys, values in cache.layers:
        keys.fill_(HUGE)
        values.fill_(HUGE)
    return cache


def reference(query, keys, values):
    """One query [H_q, D] over its context [L, H, D], in float64."""
    groups = query.shape[0] // keys.shape[1]
    keys, values = (x.double().repeat_interleave(groups, dim=1) for x in (keys, values))
    scores = torch.einsum("hd,lhd->hl", query.double(), keys) / math.sqrt(query.shape[-1])
    return torch.einsum("hl,lhd->hd", scores.softmax(-1), values)


# (start position, new tokens) of each sequence: prefill, chunks, decoding and verification, ragged.
BATCHES = [
    [(0, 1)],
    [(0, 17)],
    [(0, 40), (150, 1), (3, 5)],
    [(31, 4), (32, 4), (200, 4), (0, 2)],
    [(130, 20), (7, 1), (127, 3)],
    [(9, 33), (2, 40)],
    [(60, 41), (0, 41)],
]


@pytest.mark.parametrize("backend", [TorchAttention, RowInvariantAttention])
@pytest.mark.parametrize("block_size", [1, 5, 16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), [(4, 4, 16), (9, 3, 64), (8, 2, 80)])
@pytest.mark.parametrize("batch", BATCHES)
def test_every_query_attends_to_its_own_past_alone(backend, block_size, heads, kv_heads, head_size, batch):
    if sum(-(-(start + count) // block_size) for start, count in batch) > NUM_BLOCKS:
        batch = [(start % 15, count) for start, count in batch][:2]
        if sum(-(-(start + count) // block_size) for start, count in batch) > NUM_BLOCKS:
            batch = [(3, 20)]
    generator = torch.Generator().manual_seed(0)
    cache = arena(KVShape(2, kv_heads, head_size, torch.float32), block_size)
    free = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
    spans, contexts = [], []
    layer = cache.layers[1]
    for start, count in batch:
        num_blocks = -(-(start + count) // block_size)
        table, free = free[:num_blocks], free[num_blocks:]
        spans.append(Span([0] * count, start, table, 0))
        past = torch.randn(2, start + count, kv_heads, head_size, generator=generator)
        for position in range(start):
            for part in (0, 1):
                layer[part][table[position // block_size], position % block_size] = past[part, position]
        contexts.append(past)
    query = torch.randn(sum(count for _, count in batch), heads, head_size, generator=generator)
    key = torch.cat([past[0, start:] for past, (start, _) in zip(contexts, batch, strict=True)])
    value = torch.cat([past[1, start:] for past, (start, _) in zip(contexts, batch, strict=True)])
    attention = backend()
    plan = attention.plan(spans, block_size=block_size, num_groups=heads // kv_heads, dtype=torch.float32)
    output = attention.forward(query, key, value, layer, plan)
    row = 0
    for past, (start, count) in zip(contexts, batch, strict=True):
        for position in range(start, start + count):
            expected = reference(query[row], past[0, : position + 1], past[1, : position + 1])
            # fp32 sums of at most 220 terms of order one.
            torch.testing.assert_close(output[row].double(), expected, atol=2e-5, rtol=1e-4)
            row += 1
    assert bool((cache.layers[0][0] == HUGE).all()), "another layer was written"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_of_an_invariant_product_is_the_same_in_any_batch(dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator).to(dtype)
    rows = torch.randn(3 * INVARIANT_TILE_ROWS + 5, 64, generator=generator).to(dtype)
    method = RowInvariantLinear()
    whole = method.apply(rows, weight, None)
    for start, end in ((0, 1), (3, 20), (17, 18), (5, 53)):
        assert torch.equal(method.apply(rows[start:end], weight, None), whole[start:end])
    torch.testing.assert_close(whole, PlainLinear().apply(rows, weight, None), atol=2e-2, rtol=2e-2)


def test_a_packed_product_is_the_plain_one_up_to_rounding():
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    if not PackedLinear.supports(weight):
        pytest.skip("this processor has no packed bfloat16 product; the engine then uses the plain one")
    method = PackedLinear()
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    bias = torch.ones(96).bfloat16()
    packed = method.apply(x, method.prepare(weight), bias)
    # Two roundings of sums near 8: an ulp of bfloat16 there is 1/16.
    torch.testing.assert_close(packed, PlainLinear().apply(x, weight, bias), atol=0.13, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 96), (577, 33), (576, 960)])
def test_exact_products_of_this_host_do_not_depend_on_the_rows_beside(dtype, num_inputs, num_outputs):
    method = linear_method(exact=True, dtype=dtype, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    weight = method.prepare(torch.randn(num_outputs, num_inputs, generator=generator).to(dtype))
    rows = torch.randn(130, num_inputs, generator=generator).to(dtype)

    def product(rows):
        filled = rows.new_zeros(method.padded_rows(rows.shape[0]), num_inputs)
        filled[: rows.shape[0]] = rows
        return method.apply(filled, weight, None)[: rows.shape[0]]

    whole = product(rows)
    for start, end in ((0, 1), (3, 20), (17, 18), (5, 53), (2, 9), (0, 129)):
        assert torch.equal(product(rows[start:end]), whole[start:end])


@pytest.mark.parametrize("backend", [TorchAttention, RowInvariantAttention])
def test_long_bfloat16_spans_are_attended_as_well(backend, monkeypatch):
    """Tile after tile, as an engine does it where oneDNN multiplies 16 bits."""
    monkeypatch.setattr(QueryTiles, "supports", staticmethod(lambda dtype: dtype is torch.bfloat16))
    generator = torch.Generator().manual_seed(3)
    cache = arena(KVShape(2, 3, 64, torch.bfloat16), 16)
    lengths = [130, 41, 1]
    tables = torch.randperm(NUM_BLOCKS, generator=generator).split(10)
    spans = [Span([0] * length, 0, table.tolist(), 0) for length, table in zip(lengths, tables, strict=False)]
    rows = [torch.randn(sum(lengths), n, 64, generator=generator).bfloat16() for n in (9, 3, 3)]
    attention = backend()
    plan = attention.plan(spans, block_size=16, num_groups=3, dtype=torch.bfloat16)
    output = attention.forward(*rows, cache.layers[1], plan)
    start = 0
    for length in lengths:
        query, key, value = (part[start : start + length] for part in rows)
        for row in range(length):
            expected = reference(query[row], key[: row + 1], value[: row + 1])
            # A rounding of the result and one of each weight.
            torch.testing.assert_close(output[start + row].double(), expected, atol=2e-2, rtol=2e-2)
        start += length


@pytest.mark.parametrize("exact", [False, True])
def test_an_engine_without_our_kernels_gives_the_same_answers(tiny_model_folder, exact, monkeypatch):
    """Of a model in fp32; with `exact`, the check at start holds the library's forms to it."""
    config = EngineConfig(model=str(tiny_model_folder), exact=exact, max_model_len=128, num_compile_workers=0)
    params = SamplingParams(max_tokens=30, ignore_eos=True, temperature=0.0)
    prompts = ["hello there", "and another, rather longer than the first", "a"]

    def answers():
        engine = Engine(config)
        kind = type(engine.runner.attention), type(engine.runner.model._ops)
        return kind, [output.choices[0].token_ids for output in engine.generate(prompts, params)]

    usual, expected = answers()
    monkeypatch.setattr(RowAttention, "runs_here", staticmethod(lambda: False))
    monkeypatch.setattr(VectorOps, "runs_here", staticmethod(lambda: False))
    kind, given = answers()
    assert kind == (RowInvariantAttention if exact else TorchAttention, TorchOps)
    assert given == expected
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert usual[1] is VectorOps
        if exact or not has_products_of(torch.bfloat16):
            assert usual[0] is RowAttention


@pytest.mark.parametrize(
    ("has_rows", "multiplies_itself", "exact", "attention"),
    [
        # AVX2, or AVX-512 without bfloat16; with it; no x86.
        (True, False, False, RowAttention),
        (True, False, True, RowAttention),
        (True, True, False, TorchAttention),
        (True, True, True, RowAttention),
        (False, False, False, TorchAttention),
        (False, False, True, RowInvariantAttention),
    ],
)
def test_a_cpu_attends_by_rows_unless_it_multiplies_bfloat16(
    has_rows, multiplies_itself, exact, attention, monkeypatch
):
    monkeypatch.setattr(backend_module, "has_products_of", lambda dtype: multiplies_itself)
    monkeypatch.setattr(RowAttention, "runs_here", staticmethod(lambda: has_rows))
    assert type(CpuBackend(torch.device("cpu")).attention(exact=exact)) is attention


@pytest.mark.parametrize(
    ("dtype", "has_panels", "has_packed", "multiplied", "exact", "method"),
    [
        # AVX2, or AVX-512 without instructions for either.
        (torch.bfloat16, True, True, set(), False, PanelLinear),
        (torch.bfloat16, True, True, set(), True, PanelLinear),
        (torch.float16, True, False, set(), False, PanelLinear),
        # AVX-512 with bfloat16's, and with float16's.
        (torch.bfloat16, True, True, {torch.bfloat16}, False, PackedLinear),
        (torch.bfloat16, True, True, {torch.bfloat16}, True, PanelLinear),
        (torch.float16, True, False, {torch.bfloat16}, False, PanelLinear),
        (torch.float16, True, False, {torch.bfloat16, torch.float16}, False, PlainLinear),
        (torch.float16, True, False, {torch.bfloat16, torch.float16}, True, PanelLinear),
        # An x86 without what makes the code, ARM with bfloat16, and any other.
        (torch.bfloat16, False, True, set(), False, PackedLinear),
        (torch.bfloat16, False, False, set(), False, PlainLinear),
        (torch.bfloat16, False, False, set(), True, RowInvariantLinear),
        (torch.float32, False, False, {torch.float32}, False, PlainLinear),
    ],
)
def test_a_cpu_multiplies_by_what_is_fastest_there(
    dtype, has_panels, has_packed, multiplied, exact, method, monkeypatch
):
    monkeypatch.setattr(linear, "has_products_of", lambda asked: asked in multiplied)
    monkeypatch.setattr(PackedLinear, "supports", staticmethod(lambda _: has_packed))
    monkeypatch.setattr(PanelLinear, "supports", staticmethod(lambda _: has_panels))
    assert type(linear_method(exact=exact, dtype=dtype, device=torch.device("cpu"))) is method
