"""A captured loop draws what the launched one draws, writes that KV and nobody else's, and needs no host in between.

Without a GPU a replay runs the captured work again, over the same tensors: one that has moved meanwhile would be stale
there as in a graph. test_device_path_interpreted.py runs this file a second time, with TRITON_INTERPRET set.
"""

import itertools
import logging
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specdec import captured_drafting, fixed_inputs
from specdec.attention import Span
from specdec.captured_drafting import CapturedDrafting, LoopGraphs, graphs_of
from specdec.fixed_inputs import FixedInputs
from specdec.graph_buckets import drafting_sizes
from specdec.graph_capture import CudaGraphCapture, RepeatCapture
from specdec.kernels.dispatch import INTERPRETED
from specdec.kernels.grammar_advance import TransitionTable
from specdec.kv_cache import allocate_arena
from specdec.launched_drafting import LaunchedDrafting
from specdec.linear import linear_method
from specdec.model_runner import ModelRunner
from specdec.models.config import ModelConfig
from specdec.models.layer_ops import KernelOps
from specdec.models.llama import IGNORED_KEYS, LlamaModel
from specdec.models.loader import load_weights
from specdec.speculative import MAX_DRAFT_TOKENS
from specdec.transition_mirror import Transitions
from specdec.triton_attention import TritonAttention

MAX_SEQUENCES = 2 if INTERPRETED else 6
SIZES = drafting_sizes(max_tokens=64, max_sequences=MAX_SEQUENCES)
BLOCK_SIZE, NUM_BLOCKS, MAX_LEN = 4, 80, 40
NUM_STATES, NUM_MASKS = 6, 9
MAX_TOKENS = 3 if INTERPRETED else 7
"""Of a loop."""


class Counting:
    """Counts captures and replays."""

    def __init__(self, device):
        self._device = device
        self.num_captures = self.num_replays = 0
        self.num_left = math.inf

    def anew(self):
        """In other memory."""
        self._graphs = CudaGraphCapture(self._device) if self._device.type == "cuda" else RepeatCapture()
        return self

    def capture(self, work):
        self.num_left -= 1
        if self.num_left < 0:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.num_captures += 1
        replay = self._graphs.capture(work)

        def counted():
            self.num_replays += 1
            replay()

        return counted


@pytest.fixture(scope="module")
def model(tiny_draft_folder, device):
    """Whose rows do not depend on what is beside them."""
    config = ModelConfig.from_folder(tiny_draft_folder)
    method = linear_method(exact=True, dtype=torch.float32, device=device)
    model = LlamaModel(
        config, method=method, max_model_len=MAX_LEN, dtype=torch.float32, device=device, ops=KernelOps()
    )
    load_weights(tiny_draft_folder, model.weight_slots(), ignored=[IGNORED_KEYS], progress=lambda *_: None)
    model.finish_loading()
    return model


def grammars_of(vocab_size, device, seed=3):
    """States of which most tokens lead somewhere, in budgets that matter, and masks of a few tokens each."""
    rng = random.Random(seed)
    table = TransitionTable.empty(1024, NUM_STATES)
    allowed = [rng.sample(range(vocab_size), 4) for _ in range(NUM_MASKS)]
    for state in range(NUM_STATES):
        for token_id in {token_id for row in allowed for token_id in row}:
            if rng.random() < 0.8:
                table.put(state, token_id, rng.randrange(NUM_STATES))
    table.mask_rows.copy_(torch.tensor([rng.randrange(NUM_MASKS) for _ in range(NUM_STATES)]))
    table.least_remaining.copy_(torch.tensor([rng.randrange(4) for _ in range(NUM_STATES)]))
    bits = np.zeros((NUM_MASKS, 32 * -(-vocab_size // 32)), np.uint8)
    for row, token_ids in zip(bits, allowed, strict=True):
        row[token_ids] = 1
    masks = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    placed = TransitionTable(*(tensor.to(device) for tensor in table))
    return Transitions(placed, torch.from_numpy(masks.copy()).to(device))


class World:
    """Two runners over caches of equal content: one's loops are launched, the other's captured."""

    def __init__(self, model, *, max_model_len=MAX_LEN):
        self.device = model.device
        self.vocab_size = model.config.vocab_size
        # As where an embedding is padded.
        self.num_token_ids = self.vocab_size - 3
        self.runners, self.caches = [], []
        for _ in range(2):
            (cache,) = allocate_arena(
                [model.kv_shape], num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, device=self.device
            )
            generator = torch.Generator().manual_seed(5)
            for layer in cache.layers:
                for part in layer:
                    part.copy_(torch.randn(part.shape, generator=generator))
            runner = ModelRunner(model, cache, TritonAttention(self.device, row_invariant=True))
            runner.logits.reserve(MAX_SEQUENCES, self.vocab_size)
            self.runners.append(runner)
            self.caches.append(cache)
        self.graphs = Counting(self.device)
        self.launched = LaunchedDrafting(self.runners[0], num_token_ids=self.num_token_ids)
        self.captured = CapturedDrafting(
            model,
            self.caches[1],
            TritonAttention(self.device, row_invariant=True),
            self.runners[1].logits.rows(MAX_SEQUENCES, self.vocab_size),
            SIZES,
            self.graphs.anew,
            num_token_ids=self.num_token_ids,
            max_model_len=max_model_len,
        )
        self.transitions = grammars_of(self.num_token_ids, self.device)

    def capture(self):
        for each in graphs_of(SIZES):
            self.captured.capture(each, self.transitions)

    def contents(self, index):
        return [part.clone() for layer in self.caches[index].layers for part in layer]

    def poison(self):
        """Whatever is left over of other loops, and of other passes."""
        captured = self.captured
        captured._inputs._memory.fill_(0xFF)
        captured._attended.fill_(math.nan)
        captured._logits.fill_(math.nan)
        captured._drawn.fill_(10**9)
        captured._token_ids.fill_(10**9)
        captured._row_keys.fill_(-5)
        captured._slot_mapping.fill_(7)
        captured._query_starts.fill_(2)
        captured._block_tables.fill_(10**6)

    @torch.inference_mode()
    def check(self, loop, *, fits=True):
        """What each sequence drew, which both say, and what its budget has left."""
        spans, num_tokens, *_ = loop
        self.poison()
        runs = self.launched.send(*loop, self.transitions), self.captured.send(*loop, self.transitions)
        assert (runs[1] is not None) == fits
        if not fits:
            return None
        num_replays = self.graphs.num_replays
        results = []
        for run, runner in zip(runs, self.runners, strict=True):
            logits = runner.forward(spans, runner.logits)
            drawn = run(logits)
            numbers = drawn.joined().tolist()
            num_columns = len(drawn.last_ids)
            num_drawn = num_columns * num_tokens[0]
            token_ids = [numbers[i:num_drawn:num_columns][:count] for i, count in enumerate(num_tokens)]
            results.append((token_ids, numbers[num_drawn:][: len(spans)]))
        assert results[0] == results[1]
        assert all(0 <= token_id < self.num_token_ids for own in results[1][0] for token_id in own)
        assert self.graphs.num_replays == num_replays + num_tokens[0]
        # Nobody else's blocks either, of which every number was another.
        for ours, theirs in zip(self.contents(1), self.contents(0), strict=True):
            assert torch.equal(ours, theirs)
        return results[1]


def loop_of(rng, count, *, vocab_size, cuts=None, masked=None, max_tokens=MAX_TOKENS, max_len=MAX_LEN):
    """Of distinct sequences over blocks in any order, the longest first."""
    order = list(range(NUM_BLOCKS))
    rng.shuffle(order)
    num_tokens = sorted((rng.randint(1, max_tokens) for _ in range(count)), reverse=True)
    if cuts is None:
        cuts = rng.random() < 0.5
    spans, are_masked = [], []
    for own_tokens in num_tokens:
        num_fed = rng.choice([1, 1, 2, 5])
        start = rng.randint(0, max_len - num_fed - own_tokens + 1)
        # The blocks of a text that is going to be longer.
        table = [order.pop() for _ in range(-(-(start + num_fed + own_tokens) // BLOCK_SIZE))]
        spans.append(Span([rng.randrange(vocab_size) for _ in range(num_fed)], start, table, num_logits=1))
        are_masked.append(rng.random() < 0.6 if masked is None else masked)
    states = [rng.randrange(NUM_STATES) if each else 0 for each in are_masked]
    parts = {
        "temperatures": (np.float32, [rng.choice([0.0, 0.7, 1.3]) for _ in num_tokens]),
        "states": (np.int32, states),
        "remaining": (np.int32, [rng.randint(1, 9) if each else 0 for each in are_masked]),
        "is_known": (np.bool_, are_masked),
        "mask_row_ids": (np.int64, [rng.randrange(NUM_MASKS) if each else 0 for each in are_masked]),
        "is_masked": (np.bool_, are_masked),
    }
    if cuts:
        parts["top_k"] = (np.int32, [rng.choice([0, 2, 20]) for _ in num_tokens])
        parts["top_p"] = (np.float64, [rng.choice([1.0, 0.8]) for _ in num_tokens])
        parts["min_p"] = (np.float64, [rng.choice([0.0, 0.05]) for _ in num_tokens])
    words = np.array([rng.randrange(2**32) for _ in range(2 * num_tokens[0] * count)], np.int64)
    return spans, num_tokens, words.reshape(num_tokens[0], count, 2), parts


@pytest.fixture(scope="module", params=[2**15, 100], ids=["whole tables", "spread tables"])
def world(model, request):
    """Tables are sent as a graph reads them, or, where that is more bytes, spread out on the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured_drafting, "_WHOLE_TABLES_BYTES", request.param)
        world = World(model)
        before = world.contents(0)
        world.capture()
        assert all(torch.equal(own, old) for own, old in zip(world.contents(1), before, strict=True)), "of nobody"
        assert world.graphs.num_captures == 2 * len(graphs_of(SIZES)) == 2 * len(world.captured)
        return world


@settings(max_examples=1 if INTERPRETED else 15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), counts=st.lists(st.integers(1, MAX_SEQUENCES), min_size=1, max_size=3))
def test_loops_one_after_the_other_are_those_that_are_launched(world, seed, counts):
    """Of all sizes and kinds, a smaller one after a larger one, with whatever that has left."""
    rng = random.Random(seed)
    for count in counts:
        world.check(loop_of(rng, count, vocab_size=world.num_token_ids))


def test_sequences_go_as_far_as_each_has_asked_for_and_their_grammars_let_them(model):
    """Lengths of all kinds at once, and texts that end where they are not known: neither is seldom."""
    world, rng = World(model), random.Random(11)
    world.capture()
    num_lost = num_followed = num_shorter = 0
    for _ in range(1 if INTERPRETED else 12):
        loop = loop_of(rng, MAX_SEQUENCES, vocab_size=world.num_token_ids, masked=True)
        token_ids, remaining = world.check(loop)
        begun = loop[3]["remaining"][1]
        for own, left, all_of_it in zip(token_ids, remaining, begun, strict=True):
            num_followed += all_of_it - left
            num_lost += all_of_it - left < len(own) - 1
            num_shorter += len(own) < loop[1][0]
    assert INTERPRETED or (num_lost > 5 and num_followed > 20 and num_shorter > 20)


def test_all_that_a_loop_needs_is_sent_by_one_copy_before_its_first_replay(world, monkeypatch):
    events = []
    send, capture = fixed_inputs._Turn.send, world.graphs.capture

    def note(event):
        events.append((event, world.graphs.num_replays))

    monkeypatch.setattr(fixed_inputs._Turn, "send", lambda *given: note("copy") or send(*given))
    monkeypatch.setattr(fixed_inputs, "named_on_device", None)
    monkeypatch.setattr(world.graphs, "capture", lambda work: note("capture") or capture(work))
    num_replays = world.graphs.num_replays
    world.check(loop_of(random.Random(2), MAX_SEQUENCES, vocab_size=world.num_token_ids))
    assert events == [("copy", num_replays)]


@pytest.mark.parametrize("reason", ["sequences", "positions", "context"])
def test_loops_that_no_graph_is_laid_out_for_are_launched(model, reason):
    world = World(model, max_model_len=4 * MAX_DRAFT_TOKENS if reason == "positions" else MAX_LEN)
    world.capture()
    spans, num_tokens, keys, parts = loop_of(random.Random(4), 1, vocab_size=world.num_token_ids, max_len=20)
    if reason == "sequences":
        count = MAX_SEQUENCES + 1
        parts = {name: (dtype, list(own) * count) for name, (dtype, own) in parts.items()}
        loop = spans * count, num_tokens * count, keys.repeat(count, axis=1), parts
    elif reason == "positions":
        loop = spans, [MAX_DRAFT_TOKENS + 1], np.zeros((MAX_DRAFT_TOKENS + 1, 1, 2), np.int64), parts
    else:
        # The pass for the last token would be a token too long.
        start = MAX_LEN - 2
        loop = [Span([5], start, list(range(11)), 1)], [4], np.zeros((4, 1, 2), np.int64), parts
        longest = [Span([5], start, list(range(11)), 1)], [2], np.zeros((2, 1, 2), np.int64), parts
        world.check(longest)
    world.check(loop, fits=False)


def test_masks_are_read_where_the_grown_mirror_has_them(model):
    """What is captured anew runs, and moves what a loop counts: that comes before its numbers are sent."""
    world, rng = World(model), random.Random(8)
    world.capture()
    num_captures = world.graphs.num_captures
    count = MAX_SEQUENCES
    for step in range(3):
        if step:
            old = world.transitions
            grown = torch.cat((old.mask_rows, torch.zeros_like(old.mask_rows)))
            world.transitions = Transitions(old.table, grown)
            # As whoever is given it next does.
            old.mask_rows.zero_()
        for cuts in (True, False, True):
            world.check(loop_of(rng, count, vocab_size=world.num_token_ids, cuts=cuts, masked=True))
        assert world.graphs.num_captures == num_captures + 2 * 2 * step
        assert len(world.captured) == (2 if step else len(graphs_of(SIZES)))


def test_another_table_of_transitions_is_read_from_then_on(model):
    world, rng = World(model), random.Random(9)
    world.capture()
    for seed in (3, 4, 5):
        old = world.transitions
        others = grammars_of(world.num_token_ids, world.device, seed)
        world.transitions = Transitions(others.table, old.mask_rows)
        for _ in range(1 if INTERPRETED else 3):
            world.check(loop_of(rng, MAX_SEQUENCES, vocab_size=world.num_token_ids, masked=True))


def test_graphs_that_cannot_be_captured_anew_are_logged_once_and_loops_are_launched(model, caplog):
    world, rng = World(model), random.Random(8)
    world.capture()
    world.graphs.num_left = 0
    world.check(loop_of(rng, 1, vocab_size=world.num_token_ids))
    world.transitions = Transitions(world.transitions.table, world.transitions.mask_rows.clone())
    with caplog.at_level(logging.WARNING, logger="specdec"):
        for _ in range(3):
            world.check(loop_of(rng, 1, vocab_size=world.num_token_ids), fits=False)
    (record,) = caplog.records
    assert record.getMessage() == (
        "drafting is launched kernel by kernel from now on, which is slower: the mask table's mirror has grown, and a "
        "graph that reads it where it is now could not be captured (RuntimeError: operation not permitted when stream "
        "is capturing)"
    )


def test_what_fills_a_loop_up_is_nobody_s(model, monkeypatch):
    world = World(model)
    world.capture()
    sizes = {1: SIZES[-1], MAX_SEQUENCES: SIZES[0]} | ({} if INTERPRETED else {3: 4})
    layouts = []
    send = FixedInputs.send
    monkeypatch.setattr(FixedInputs, "send", lambda *given: layouts.append(given[1]) or send(*given))
    for count, size in sizes.items():
        loop = loop_of(random.Random(count), count, vocab_size=world.num_token_ids, cuts=True)
        world.poison()
        with torch.inference_mode():
            assert world.captured.send(*loop, world.transitions).args[0] == LoopGraphs(size, truncates=True)
        sent = {name: tensor.tolist() for name, tensor in layouts[-1].tensors.items()}
        num_spare = size - count
        assert sent["num_tokens"] == loop[1] + [0] * num_spare
        assert sent["num_drawn"] == [0] * size
        assert sent["temperatures"][count:] == [-1.0] * num_spare
        assert sent["is_masked"][count:] == sent["is_known"][count:] == [False] * num_spare
        assert sent["mask_row_ids"][count:] == [0] * num_spare
        assert (sent["top_k"][count:], sent["top_p"][count:]) == ([0] * num_spare, [1.0] * num_spare)
        keys = np.array(sent["keys"]).reshape(MAX_DRAFT_TOKENS, size, 2)
        assert (keys[: loop[1][0], :count] == loop[2]).all()
        assert not keys[loop[1][0] :].any()
        assert not keys[:, count:].any()


@settings(max_examples=100, deadline=None)
@given(max_tokens=st.integers(1, 2000), max_sequences=st.integers(1, 600))
def test_drafting_sizes_are_at_most_twice_what_is_needed(max_tokens, max_sequences):
    sizes = drafting_sizes(max_tokens=max_tokens, max_sequences=max_sequences)
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[0] == min(max_tokens, max_sequences, 512)
    assert sizes[-1] == 1
    assert all(larger <= 2 * smaller for larger, smaller in itertools.pairwise(sizes))
