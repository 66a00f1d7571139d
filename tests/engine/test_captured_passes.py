"""Captured passes: a pass that is filled up to a bucket gives what the eager one gives, and touches nobody else's KV.

Here a replay runs the captured work again, with the numbers of the host that it was captured with: one that should have
changed would be stale, as in a graph. test_graphed_engine.py replays graphs on a GPU.
"""

import random
from array import array

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec import captured_passes, device_tensors
from specdec.attention import Span
from specdec.fixed_inputs import _Turn
from specdec.graph_buckets import GraphBucket, draft_buckets, smallest_bucket, target_buckets
from specdec.graph_capture import RepeatCapture
from specdec.kv_cache import allocate_arena
from specdec.linear import PlainLinear, RowInvariantLinear
from specdec.logits_buffer import LogitsBuffer
from specdec.model_runner import ModelRunner
from specdec.models.config import ModelConfig
from specdec.models.layer_ops import KernelOps
from specdec.models.llama import IGNORED_KEYS, LlamaModel
from specdec.models.loader import load_weights
from specdec.triton_attention import NO_SLOT, HostPlan, TritonAttention

CPU = torch.device("cpu")
BLOCK_SIZE, NUM_BLOCKS, MAX_LEN = 4, 60, 40
MAX_TOKENS, MAX_SEQUENCES, MAX_ROWS = 32, 8, 24


class CountingCapture(RepeatCapture):
    """Counts replays."""

    def __init__(self):
        self.num_replays = 0

    def capture(self, work):
        work()

        def replay():
            self.num_replays += 1
            work()

        return replay


class FiniteLinear(PlainLinear):
    """Multiplies no NaN, and no infinity."""

    def apply(self, x, weight, bias):
        assert bool(x.isfinite().all())
        return super().apply(x, weight, bias)


@pytest.fixture(scope="module")
def models(tiny_model_folder):
    def build(method):
        config = ModelConfig.from_folder(tiny_model_folder)
        model = LlamaModel(
            config, method=method, max_model_len=MAX_LEN, dtype=torch.float32, device=CPU, ops=KernelOps()
        )
        load_weights(tiny_model_folder, model.weight_slots(), ignored=[IGNORED_KEYS], progress=lambda *_: None)
        model.finish_loading()
        return model

    return {False: build(PlainLinear()), True: build(RowInvariantLinear()), "watched": build(FiniteLinear())}


def runner_of(model, exact, *, capture=None, buckets=None):
    """With a pool of its own, of which every number is another; captured where there is what captures."""
    (cache,) = allocate_arena([model.kv_shape], num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, device=CPU)
    generator = torch.Generator().manual_seed(5)
    for layer in cache.layers:
        for part in layer:
            part.copy_(torch.randn(part.shape, generator=generator))
    runner = ModelRunner(model, cache, TritonAttention(CPU, row_invariant=exact))
    if capture is not None:
        runner.logits.reserve(MAX_ROWS, model.config.vocab_size)
        runner.capture(buckets or target_buckets(**SIZES), capture, max_model_len=MAX_LEN)
    return runner, cache


SIZES = {"max_tokens": MAX_TOKENS, "max_sequences": MAX_SEQUENCES, "max_rows": MAX_ROWS}


def contents(cache):
    return [part.clone() for layer in cache.layers for part in layer]


@st.composite
def passes(draw):
    """Spans of distinct sequences over blocks in any order, as decoding, verification and short prompts mix."""
    order = draw(st.permutations(range(NUM_BLOCKS)))
    spans = []
    for _ in range(draw(st.integers(1, MAX_SEQUENCES))):
        count = draw(st.sampled_from([1, 1, 1, 2, 5, 9]))
        start = draw(st.integers(0, MAX_LEN - count))
        num_blocks = -(-(start + count) // BLOCK_SIZE)
        if num_blocks > len(order):
            break
        table, order = order[:num_blocks], order[num_blocks:]
        token_ids = draw(st.lists(st.integers(0, 200), min_size=count, max_size=count))
        spans.append(Span(token_ids, start, table, draw(st.integers(0, count))))
    return spans


@settings(max_examples=25, deadline=None)
@given(spans=passes())
def test_tokens_that_the_device_drew_stand_in_for_those_of_the_spans(models, spans):
    drawn_ids = torch.tensor([token_id for span in spans for token_id in span.token_ids], device=CPU)
    others = [Span([0] * len(span.token_ids), span.start_position, span.block_table, span.num_logits) for span in spans]
    caches = []
    for capture in (None, CountingCapture()):
        runner, _ = runner_of(models[True], True, capture=capture)
        expected = runner.forward(spans, runner.logits).clone()
        # So that what was written before is no help.
        runner, cache = runner_of(models[True], True, capture=capture)
        assert torch.equal(runner.forward_drawn(others, drawn_ids, runner.logits), expected)
        caches.append(contents(cache))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*caches, strict=True))


@settings(max_examples=25, deadline=None)
@given(spans=passes(), data=st.data())
def test_tokens_that_the_device_drew_stand_among_those_that_the_host_knows(models, spans, data):
    every = [token_id for span in spans for token_id in span.token_ids]
    drawn_at = data.draw(st.lists(st.integers(0, len(every) - 1), unique=True, min_size=1))
    unknown = [0 if place in drawn_at else token_id for place, token_id in enumerate(every)]
    others, start = [], 0
    for span in spans:
        end = start + len(span.token_ids)
        others.append(Span(unknown[start:end], span.start_position, span.block_table, span.num_logits))
        start = end
    drawn_ids = torch.tensor([every[place] for place in drawn_at], device=CPU)
    caches = []
    for capture in (None, CountingCapture()):
        runner, _ = runner_of(models[True], True, capture=capture)
        expected = runner.forward(spans, runner.logits).clone()
        runner, cache = runner_of(models[True], True, capture=capture)
        places = torch.tensor(drawn_at, device=CPU)
        assert torch.equal(runner.forward_drawn(others, drawn_ids, runner.logits, places), expected)
        caches.append(contents(cache))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*caches, strict=True))


@pytest.fixture(scope="module", params=[2**15, 150])
def tables(request):
    """Sent as a graph reads them, or, where that is more bytes, spread out on the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured_passes, "_WHOLE_TABLES_BYTES", request.param)
        yield


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("exact", [False, True])
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(passes(), min_size=1, max_size=3))
def test_any_mix_of_spans_gives_what_it_gives_eagerly(models, exact, steps):
    capture = CountingCapture()
    eager, eager_cache = runner_of(models[exact], exact)
    captured, captured_cache = runner_of(models[exact], exact, capture=capture)
    before = contents(eager_cache)
    written = torch.zeros(NUM_BLOCKS, BLOCK_SIZE, dtype=torch.bool)
    for spans in steps:
        num_replays = capture.num_replays
        expected, ours = eager.forward(spans), captured.forward(spans, captured.logits)
        fits = (
            sum(len(span.token_ids) for span in spans) <= MAX_TOKENS
            and sum(span.num_logits for span in spans) <= MAX_ROWS
        )
        assert (capture.num_replays > num_replays) == fits
        tolerance = 0.0 if exact else 1e-4
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
        for span in spans:
            for position in range(span.start_position, span.context_len):
                written[span.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE] = True
    for old, own, other in zip(before, contents(captured_cache), contents(eager_cache), strict=True):
        assert torch.equal(own[~written], old[~written])
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance)


def test_what_fills_a_pass_up_is_no_nan_even_where_the_cache_is(models):
    vocab_size = models["watched"].config.vocab_size
    captured, cache = runner_of(models["watched"], False, capture=RepeatCapture())
    for layer in cache.layers:
        for part in layer:
            part[3:] = float("nan")
    captured.logits.rows(MAX_ROWS, vocab_size).fill_(float("nan"))
    captured.forward([Span([5] * 9, 0, [0, 1, 2], 9)], captured.logits)
    every = captured.logits.rows(MAX_ROWS, vocab_size)
    bucket = smallest_bucket(target_buckets(**SIZES)[::-1], num_tokens=9, num_sequences=1, num_rows=9)
    assert bucket.num_rows > 9
    assert bool(every[: bucket.num_rows].isfinite().all())


def test_captured_logits_lie_in_the_runners_buffer_and_a_copy_of_them_where_there_is_none(models):
    captured, _ = runner_of(models[False], False, capture=RepeatCapture())
    span = [Span([1, 2, 3], 0, [0], 3)]
    held = captured.forward(span, captured.logits)
    assert held.data_ptr() == captured.logits.rows(1, models[False].config.vocab_size).data_ptr()
    own = captured.forward(span)
    assert own.data_ptr() != held.data_ptr()
    assert torch.equal(own, held)
    kept = own.clone()
    captured.forward([Span([9], 0, [1], 1)])
    assert torch.equal(own, kept)
    other = LogitsBuffer(CPU)
    assert captured.forward(span, other).data_ptr() == other.rows(1, models[False].config.vocab_size).data_ptr()


@pytest.mark.parametrize("are_spread", [False, True])
def test_a_pass_has_one_copy_to_the_device(models, monkeypatch, are_spread):
    if are_spread:
        monkeypatch.setattr(captured_passes, "_WHOLE_TABLES_BYTES", 0)
    captured, _ = runner_of(models[False], False, capture=RepeatCapture())
    copies = []
    send = _Turn.send
    monkeypatch.setattr(_Turn, "send", lambda *given: copies.append(given[-1]) or send(*given))
    monkeypatch.setattr(device_tensors, "together_on_device", None)
    captured.forward([Span([1, 2], 20, list(range(6)), 2), Span([3], 9, [7, 8, 9], 1)], captured.logits)
    # Tokens, positions, rows, slots, starts and contexts of a bucket of 4, then 2 tables of 6 blocks, or of 10.
    assert copies == [6 * 64 + (64 if are_spread else 128)]


def test_a_context_longer_than_the_graphs_are_laid_out_for_is_eager(models):
    capture = CountingCapture()
    captured, _ = runner_of(models[False], False)
    captured.capture(target_buckets(**SIZES), capture, max_model_len=20)
    captured.forward([Span([1], 19, list(range(5)), 1)])
    assert capture.num_replays == 1
    captured.forward([Span([1], 20, list(range(6)), 1)])
    assert capture.num_replays == 1


def test_all_captures_come_before_any_replay_and_are_told_of(models):
    told, captures = [], []

    class Counting(RepeatCapture):
        def capture(self, work):
            captures.append(len(told))
            return super().capture(work)

    runner, _ = runner_of(models[False], False)
    buckets = target_buckets(**SIZES)
    runner.capture(buckets, Counting(), max_model_len=MAX_LEN, report=told.append)
    assert told == list(range(len(buckets) + 1))
    assert runner.num_graphs == len(buckets) == len(captures)
    for count in range(1, 40):
        runner.forward([Span([1] * count, 0, list(range(10)), 1)])
    assert len(captures) == len(buckets)


class Refusing(RepeatCapture):
    def capture(self, work):
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_capture_that_fails_leaves_the_passes_eager(models):
    runner, _ = runner_of(models[False], False)
    with pytest.raises(RuntimeError, match="not permitted"):
        runner.capture(target_buckets(**SIZES), Refusing(), max_model_len=MAX_LEN)
    assert runner.num_graphs == 0
    expected = runner.forward_eagerly([Span([1, 2], 0, [0], 2)])
    assert torch.equal(runner.forward([Span([1, 2], 0, [0], 2)]), expected)


@settings(max_examples=200, deadline=None)
@given(
    max_tokens=st.integers(1, 2000),
    max_sequences=st.integers(1, 600),
    max_rows=st.integers(1, 2000),
    seed=st.integers(0, 2**32),
)
def test_the_smallest_bucket_that_holds_a_pass_is_at_most_twice_as_large(max_tokens, max_sequences, max_rows, seed):
    max_sequences = min(max_sequences, max_tokens, max_rows)
    drawn = random.Random(seed)
    for buckets in (
        target_buckets(max_tokens=max_tokens, max_sequences=max_sequences, max_rows=max_rows),
        draft_buckets(max_tokens=max_tokens, max_sequences=max_sequences),
    ):
        assert buckets == sorted(set(buckets), reverse=True)
        assert len(buckets) <= 30
        for bucket in buckets:
            assert bucket.num_tokens <= min(512, max_tokens)
            assert bucket.num_sequences <= min(max_sequences, bucket.num_tokens)
            assert bucket.num_sequences <= bucket.num_rows <= max(max_rows, max_sequences)
        largest = buckets[0]
        for _ in range(20):
            num_sequences = drawn.randint(1, max_sequences)
            num_tokens = drawn.randint(num_sequences, max(num_sequences, largest.num_tokens + 1))
            num_rows = drawn.randint(1, num_sequences)
            sizes = {"num_tokens": num_tokens, "num_sequences": num_sequences, "num_rows": num_rows}
            found = smallest_bucket(buckets[::-1], **sizes)
            if num_tokens > largest.num_tokens:
                assert found is None
                continue
            assert found is not None
            assert found.holds(**sizes)
            assert found.num_tokens < 2 * num_tokens


def test_decoding_and_drafts_have_buckets_of_their_own():
    buckets = target_buckets(max_tokens=512, max_sequences=64, max_rows=512)[::-1]

    def of(num_tokens, num_sequences):
        return smallest_bucket(buckets, num_tokens=num_tokens, num_sequences=num_sequences, num_rows=num_tokens)

    assert of(1, 1) == GraphBucket(1, 1, 1, 1)
    assert of(64, 64) == GraphBucket(64, 64, 64, 1)
    assert of(5, 1) == GraphBucket(8, 4, 8, 8)
    assert of(320, 64) == GraphBucket(384, 64, 384, 16)
    assert of(513, 64) is None
    # Prompts, of which a token each has logits, do not compute everybody's; one row more than sequences is a draft.
    for num_rows, expected in ((3, 64), (64, 64), (65, 384), (300, 384)):
        chosen = smallest_bucket(buckets, num_tokens=300, num_sequences=3, num_rows=num_rows)
        assert chosen == GraphBucket(384, 64, expected, 16)
    drafts = draft_buckets(max_tokens=512, max_sequences=64)[::-1]
    assert smallest_bucket(drafts, num_tokens=100, num_sequences=60, num_rows=60) == GraphBucket(128, 64, 64, 16)


def test_what_fills_a_pass_up_has_no_slot_and_no_queries(models):
    captured, _ = runner_of(models[False], False, capture=RepeatCapture(), buckets=[GraphBucket(6, 3, 4, 6)])
    captured.forward([Span([9] * 6, 3, [1, 2, 3], 4)], captured.logits)
    captured.forward([Span([1, 2, 3], 2, [7, 4], 1)], captured.logits)
    (layout,) = captured._captured._layouts.values()
    sent = {name: tensor.tolist() for name, tensor in layout.tensors.items()}
    assert sent["token_ids"] == [1, 2, 3, 0, 0, 0]
    assert sent["slot_mapping"] == [7 * 4 + 2, 7 * 4 + 3, 4 * 4, NO_SLOT, NO_SLOT, NO_SLOT]
    assert sent["positions"] == [2, 3, 4, 0, 0, 0]
    assert sent["logits_rows"] == [2, 0, 0, 0]
    assert sent["query_starts"] == [0, 3, 3, 3]
    assert sent["context_lens"] == [5, 0, 0]
    assert sent["block_tables"] == [7, 4, *[0] * (3 * 10 - 2)]


def test_the_tables_of_a_plan_are_as_wide_as_its_contexts_or_as_asked_for():
    spans = [Span([1, 2, 3], 2, array("i", [7, 4, 9]), 1), Span([5], 0, [3], 1)]
    host = HostPlan.of(spans, BLOCK_SIZE)
    assert host.block_tables.tolist() == [[7, 4], [3, 0]]
    assert host.slot_mapping.tolist() == [30, 31, 16, 12]
    assert host.max_context_len == 5
    assert HostPlan.of(spans, BLOCK_SIZE, 4).block_tables.tolist() == [[7, 4, 0, 0], [3, 0, 0, 0]]
    assert HostPlan.of(spans, BLOCK_SIZE, 4).slot_mapping.tolist() == host.slot_mapping.tolist()
    assert HostPlan.of([], BLOCK_SIZE).query_starts.tolist() == [0]
