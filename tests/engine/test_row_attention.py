"""Attention row by row: right for any sizes and dtypes, and the same bits whatever the batch, threads and callers."""

import math
import threading

import pytest
import torch
from guarded_scratch import GuardedScratch

from specdec import row_attention
from specdec.attention import Span
from specdec.attention_code import MAX_ITEM_ROWS
from specdec.kv_cache import KVShape, allocate_arena
from specdec.machine_code import MachineCode, Scratch
from specdec.row_attention import RowAttention, row_attention_reference

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="the kernel needs AVX2"
)

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def guarded(monkeypatch):
    """Scratch memory as large as was asked for, and no larger."""
    scratch = GuardedScratch()
    monkeypatch.setattr(row_attention, "_scratch", scratch)
    yield
    scratch.check()


@pytest.fixture(autouse=True, params=[8, 16])
def lanes(request, monkeypatch):
    """Registers of either size; where there are none so large, two take their place."""
    monkeypatch.setattr(row_attention, "max_lanes", lambda: request.param)


class Sequence:
    """Tokens with their queries, keys and values, and the blocks that they go to."""

    def __init__(self, length, heads, kv_heads, head_size, dtype, seed, *, spread=1.0):
        generator = torch.Generator().manual_seed(seed)

        def numbers(*shape):
            return (spread * torch.randn(shape, generator=generator)).to(dtype)

        self.query, self.key, self.value = (numbers(length, n, head_size) for n in (heads, kv_heads, kv_heads))
        self.length = length


class Pool:
    """Blocks of NaN, so that whatever is read and was never written shows."""

    def __init__(self, kv_heads, head_size, dtype, *, block_size=16, num_blocks=80):
        shapes = [KVShape(2, kv_heads, head_size, dtype), KVShape(1, 1, 24, torch.float16)]
        self.cache = allocate_arena(shapes, num_blocks=num_blocks, block_size=block_size, device=CPU)[0]
        for keys, values in self.cache.layers:
            keys.fill_(torch.nan)
            values.fill_(torch.nan)
        self.block_size = block_size
        self._free = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(5)).tolist()
        self._tables = {}

    def table(self, sequence):
        if sequence not in self._tables:
            num_blocks = -(-sequence.length // self.block_size)
            self._tables[sequence], self._free = self._free[:num_blocks], self._free[num_blocks:]
        return self._tables[sequence]

    def attend(self, *parts):
        """The output for parts (sequence, start, stop) in one pass."""
        spans = [Span([0] * (stop - start), start, self.table(sequence), 0) for sequence, start, stop in parts]
        rows = [
            torch.cat([getattr(sequence, name)[start:stop] for sequence, start, stop in parts])
            for name in ("query", "key", "value")
        ]
        backend = RowAttention()
        num_groups = rows[0].shape[1] // rows[1].shape[1]
        plan = backend.plan(spans, block_size=self.block_size, num_groups=num_groups, dtype=rows[0].dtype)
        return backend.forward(*rows, self.cache.layers[1], plan)


def exact(sequence):
    """By the definition, [T, H_q, D]."""
    rows = [
        row_attention_reference(sequence.query[row], sequence.key[: row + 1], sequence.value[: row + 1])
        for row in range(sequence.length)
    ]
    return torch.stack(rows)


def assert_close(output, expected, *, spread=1.0):
    """One rounding to the dtype, and sums in fp32 whose terms are of the values' size."""
    half_a_step = torch.finfo(output.dtype).eps / 2
    torch.testing.assert_close(
        output.double(), expected, rtol=1.01 * half_a_step + 1e-5, atol=spread * 1e-5 + torch.finfo(output.dtype).tiny
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_size"), [(9, 3, 64), (4, 4, 8), (6, 2, 13), (2, 1, 128), (3, 1, 200), (1, 1, 1)]
)
def test_a_prompt_is_attended_as_the_definition_says(dtype, heads, kv_heads, head_size):
    sequence = Sequence(3 * MAX_ITEM_ROWS + 19, heads, kv_heads, head_size, dtype, seed=1)
    output = Pool(kv_heads, head_size, dtype).attend((sequence, 0, sequence.length))
    assert output.dtype is dtype
    assert_close(output, exact(sequence))


@pytest.mark.parametrize("block_size", [1, 3, 7, 8, 15, 16, 40])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 41])
def test_every_length_in_every_block_size(block_size, length):
    sequence = Sequence(length, 3, 1, 16, torch.float32, seed=length)
    assert_close(Pool(1, 16, torch.float32, block_size=block_size).attend((sequence, 0, length)), exact(sequence))


@pytest.mark.parametrize("spread", [0.01, 6.0, 30.0])
def test_weights_may_be_alike_or_all_on_one_key(spread):
    sequence = Sequence(90, 4, 2, 64, torch.float32, seed=3, spread=spread)
    # Scores of up to some thousands are good to their own last bits, which the exponentials magnify.
    output, expected = Pool(2, 64, torch.float32).attend((sequence, 0, 90)), exact(sequence)
    score_error = 64 * spread**2 * 2**-22
    assert bool(((output.double() - expected).abs() <= spread * (1e-5 + 4 * score_error)).all())
    assert output.isfinite().all()


def test_the_smallest_weights_count_as_the_definition_says():
    """4,000 keys that weigh e^-40 of the first, and have values of e^40."""
    length, head_size = 4001, 8
    sequence = Sequence(length, 1, 1, head_size, torch.float32, seed=1)
    sequence.query.fill_(1.0)
    sequence.key.fill_(0.0)
    sequence.key[0] = 40.0 / head_size**0.5
    sequence.value[1:] *= math.exp(40.0)
    sequence.value[0] = 0.0
    pool = Pool(1, head_size, torch.float32, num_blocks=256)
    pool.attend((sequence, 0, length - 1))
    expected = row_attention_reference(sequence.query[-1], sequence.key, sequence.value)
    output = pool.attend((sequence, length - 1, length))[0].double()
    # The terms' sizes add up to 4,000, as the weights' errors do, and a score of 40 is good to its own last bits.
    assert bool(((output - expected).abs() < 4000 * 40 * 2**-22).all())
    assert bool((expected.abs() > 10).any())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_is_the_same_in_any_batch_and_with_any_threads(dtype, threads):
    long, other, short = (Sequence(n, 6, 2, 24, dtype, seed=n) for n in (150, 61, 5))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = [Pool(2, 24, dtype).attend((each, 0, each.length)) for each in (long, other, short)]
        torch.set_num_threads(threads)
        pool = Pool(2, 24, dtype)
        pieces = {long: [], other: [], short: []}
        for parts in (
            [(long, 0, 1), (other, 0, 33)],
            [(long, 1, 20), (short, 0, 4), (other, 33, 34)],
            [(other, 34, 35), (long, 20, 21), (short, 4, 5)],
            [(long, 21, 150), (other, 35, 61)],
        ):
            output = pool.attend(*parts)
            for sequence, start, stop in parts:
                piece, output = output[: stop - start], output[stop - start :]
                pieces[sequence].append(piece)
        for sequence, expected in zip((long, other, short), whole, strict=True):
            assert torch.equal(torch.cat(pieces[sequence]), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("max_scores", [1, 2 * 40, 2 * 90, 10**9])
def test_how_many_rows_go_together_changes_no_bit(max_scores, monkeypatch):
    sequences = [Sequence(n, 4, 2, 16, torch.float32, seed=n) for n in (47, 30, 3)]
    expected = [Pool(2, 16, torch.float32).attend((each, 0, each.length)) for each in sequences]
    monkeypatch.setattr(row_attention, "_MAX_ITEM_SCORES", max_scores)
    output = Pool(2, 16, torch.float32).attend(*((each, 0, each.length) for each in sequences))
    assert torch.equal(output, torch.cat(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_new_keys_and_values_go_to_their_slots_alone(dtype):
    sequence = Sequence(37, 4, 2, 24, dtype, seed=2)
    pool = Pool(2, 24, dtype, block_size=5)
    pool.attend((sequence, 0, 30))
    pool.attend((sequence, 30, 37))
    expected = [torch.full_like(part, torch.nan) for part in pool.cache.layers[1]]
    for position in range(37):
        block, token = pool.table(sequence)[position // 5], position % 5
        expected[0][block, token], expected[1][block, token] = sequence.key[position], sequence.value[position]
    for part, wanted in zip(pool.cache.layers[1], expected, strict=True):
        torch.testing.assert_close(part, wanted, rtol=0, atol=0, equal_nan=True)
    assert all(bool(part.isnan().all()) for part in pool.cache.layers[0]), "another layer was written"


def test_rows_may_be_parts_of_wider_ones_and_lie_across():
    sequence = Sequence(20, 4, 2, 16, torch.bfloat16, seed=4)
    expected = Pool(2, 16, torch.bfloat16).attend((sequence, 0, 20))
    heads = torch.cat([sequence.query, sequence.key, sequence.value], dim=1)
    sequence.query, sequence.key, sequence.value = heads[:, :4], heads[:, 4:6], heads[:, 6:]
    pool, backend = Pool(2, 16, torch.bfloat16), RowAttention()
    plan = backend.plan([Span([0] * 20, 0, pool.table(sequence), 0)], block_size=16, num_groups=2, dtype=heads.dtype)
    rows = (sequence.query, sequence.key, sequence.value)
    across = tuple(part.permute(1, 2, 0).contiguous().permute(2, 0, 1) for part in rows)
    for query, key, value in (rows, across):
        for part in pool.cache.layers[1]:
            part.fill_(torch.nan)
        assert torch.equal(backend.forward(query, key, value, pool.cache.layers[1], plan), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_all_threads_are_asked(threads, monkeypatch):
    asked = []
    run = MachineCode.run

    def watched(self, name, job, *, num_threads):
        asked.append((name, num_threads))
        run(self, name, job, num_threads=num_threads)

    monkeypatch.setattr(MachineCode, "run", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        sequence = Sequence(5, 2, 1, 16, torch.float32, seed=1)
        Pool(1, 16, torch.float32).attend((sequence, 0, 5))
    finally:
        torch.set_num_threads(before)
    assert asked == [("store", 1), ("attend", threads)]


@pytest.mark.parametrize("broken", ["query", "key", "value"])
def test_what_is_no_number_shows_where_it_is_seen_and_nowhere_else(broken):
    sequence = Sequence(40, 2, 1, 16, torch.float32, seed=6)
    expected = exact(sequence)
    getattr(sequence, broken)[21] = torch.nan
    output = Pool(1, 16, torch.float32).attend((sequence, 0, 40))
    seen = [21] if broken == "query" else range(21, 40)
    for row in range(40):
        if row in seen:
            assert output[row].isnan().all()
        else:
            assert_close(output[row], expected[row])


def test_callers_on_several_threads_get_their_own_answers(monkeypatch):
    monkeypatch.setattr(row_attention, "_scratch", Scratch())
    before = torch.get_num_threads()
    sequences = [Sequence(30 + 40 * i, 3, 1, 8 * (i + 1), torch.float32, seed=i) for i in range(4)]
    wrong = []

    def attend(i):
        torch.set_num_threads(2)
        sequence = sequences[i]
        expected = exact(sequence)
        for _ in range(30):
            output = Pool(1, 8 * (i + 1), torch.float32).attend((sequence, 0, sequence.length))
            if not bool(((output.double() - expected).abs() < 1e-4).all()):
                wrong.append(i)

    callers = [threading.Thread(target=attend, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    torch.set_num_threads(before)
    assert not wrong
