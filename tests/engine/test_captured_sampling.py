"""Captured sampling: the tokens are those of the CPU path, whatever fills a step up, and which steps are replayed.

Without a GPU a replay runs the captured work again, over the same tensors: one that has moved meanwhile would be stale
there as in a graph. test_device_path_interpreted.py runs this file a second time, with TRITON_INTERPRET set.
"""

import itertools
import logging
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_out_sampling import NUM_TOKEN_IDS, VOCAB_SIZE, Masks, params_strategy, sequence_of, token_lists

from specdec import captured_sampling, device_sampler, fixed_inputs, mask_mirror
from specdec.batch import Batch, ScheduledSequence
from specdec.captured_sampling import KINDS, SamplingKind
from specdec.device_sampler import DeviceSampler
from specdec.device_verifier import DeviceVerifier
from specdec.graph_buckets import SamplingBucket, sampling_buckets
from specdec.graph_capture import CudaGraphCapture, RepeatCapture
from specdec.kernels.dispatch import INTERPRETED
from specdec.kernels.token_groups import NOBODY
from specdec.proposers.base import Proposal, Source
from specdec.request import SamplingParams
from specdec.sampler import Sampler
from specdec.speculative import PLAIN, SpeculationPlan, Verification
from specdec.verifier import Verifier

PLACES = [pytest.param("cpu", id="interpreter" if INTERPRETED else "cpu")]
if not INTERPRETED:
    PLACES.append(pytest.param("cuda", id="gpu", marks=pytest.mark.gpu))
MAX_ROWS, MAX_SEQUENCES = (4, 3) if INTERPRETED else (24, 5)
BUCKETS = sampling_buckets(max_sequences=MAX_SEQUENCES, max_rows=MAX_ROWS)
RATES = (0.8, 0.5, 0.2)
PIECES = [bytes([i]) for i in range(NUM_TOKEN_IDS)]
PLANS = [*(SpeculationPlan(verification=each) for each in Verification), PLAIN, PLAIN]
SYNTHETIC = SpeculationPlan(methods=frozenset({"synthetic"}))
PLAINLY_DRAWN = st.builds(SamplingParams, temperature=st.sampled_from([0.0, 0.7]), seed=st.integers(0, 99))


class Counting:
    """Counts captures, and replays by the size and kind of what was captured."""

    def __init__(self, device):
        self._graphs = CudaGraphCapture(device) if device.type == "cuda" else RepeatCapture()
        self.num_captures = 0
        self.replayed = []

    def capture(self, work):
        self.num_captures += 1
        replay = self._graphs.capture(work)
        bucket, kind, _ = work.args
        return lambda: self.replayed.append((bucket, kind)) or replay()


class Refusing(Counting):
    """From some capture on."""

    num_left = math.inf

    def capture(self, work):
        self.num_left -= 1
        if self.num_left < 0:
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().capture(work)


class World:
    """A verifier whose steps are captured, the logits that it draws from, and the CPU's verifier beside it."""

    def __init__(self, device, masks, capture=Counting):
        self.device = device
        self.sampler = DeviceSampler(masks, NUM_TOKEN_IDS, device)
        self.verifier = DeviceVerifier(self.sampler, PIECES, device, synthetic_acceptance_rates=RATES)
        self.logits = torch.full((MAX_ROWS, VOCAB_SIZE), math.nan, device=device)
        self.graphs = capture(device)
        self.verifier.capture(self.logits, BUCKETS, self.graphs)
        sampler = Sampler(masks, NUM_TOKEN_IDS)
        self.expecting = Verifier(sampler, PIECES, synthetic_acceptance_rates=RATES)

    @property
    def replayed(self):
        return self.graphs.replayed

    def check(self, sequences, masks, drafts, logits):
        """One pass of both; each sequence's tokens."""
        num_rows = logits.shape[0]
        rows = logits.to(self.device, copy=True)
        if num_rows <= MAX_ROWS:
            # What is left of other steps is no number.
            self.logits.fill_(math.nan)
            rows = self.logits[:num_rows].copy_(logits)
        batch = Batch([ScheduledSequence(sequence, 1, 0, 0) for sequence in sequences])
        source = Source("synthetic")
        proposals = [Proposal(each, [source] * len(each)) for each in drafts]
        theirs = self.expecting.verify(logits.clone(), masks, batch, proposals)
        ours = self.verifier.verify(rows, masks, batch, proposals)
        for own, other in zip(ours, theirs, strict=True):
            assert own.token_ids == other.token_ids
            assert (own.num_accepted, own.num_drafted) == (other.num_accepted, other.num_drafted)
            for logprob, expected in zip(own.logprobs, other.logprobs, strict=True):
                assert (logprob.token_id, len(logprob.top)) == (expected.token_id, len(expected.top))
                assert logprob.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert bool(self.logits[num_rows:].isnan().all()), "rows of nobody are written nowhere"
        return [each.token_ids for each in ours]


@pytest.fixture(params=PLACES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture
def small_mirror(monkeypatch):
    monkeypatch.setattr(mask_mirror, "_MIN_ROWS", 2)


def masks_of(num_rows=4):
    return Masks([set(range(i % 3, NUM_TOKEN_IDS, 2 + i % 5)) for i in range(num_rows)])


def logits_of(num_rows, seed):
    return 3.0 * torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))


def simple_step(world, *, mask=None, seed=0, drafts=([31], []), params=None):
    """Two sequences', under one mask or none."""
    sequences = [sequence_of(params or SamplingParams(seed=i), choice_index=i) for i in range(len(drafts))]
    masks = [[mask] * (len(each) + 1) for each in drafts]
    return world.check(sequences, masks, drafts, logits_of(sum(map(len, masks)), seed))


@settings(
    max_examples=6 if INTERPRETED else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
@pytest.mark.usefixtures("small_mirror")
def test_steps_one_after_the_other_are_those_of_the_cpu(device, data):
    """Of all kinds and sizes, with tokens that come, masks that are overwritten, and a mirror of them that grows."""
    masks = masks_of(9)
    world = World(device, masks)
    sequences = []
    for step in range(2 if INTERPRETED else 6):
        for _ in range(data.draw(st.integers(1, 3))):
            params = data.draw(st.one_of(params_strategy, PLAINLY_DRAWN))
            explained = SamplingParams(seed=step, logprobs=data.draw(st.sampled_from([0, 2])), temperature=0.6)
            plan = data.draw(st.sampled_from([*PLANS, SYNTHETIC]))
            own = data.draw(st.sampled_from([params, params, explained]))
            sequences.append(sequence_of(own, [1, *data.draw(token_lists)], plan=plan))
        if data.draw(st.booleans()):
            row = data.draw(st.integers(0, 8))
            masks.rows[row] = Masks([data.draw(st.sets(st.integers(0, NUM_TOKEN_IDS - 1), min_size=1))]).rows[0]
            masks.stamps[row] = 1000 + step
        batch = data.draw(st.permutations(sequences))[: data.draw(st.integers(1, 2 if INTERPRETED else 7))]
        drafts = [data.draw(st.lists(st.sampled_from([8, 9, 31, 60]), max_size=4)) for _ in batch]
        own_masks = [
            data.draw(st.lists(st.sampled_from([None, *range(9)]), min_size=len(each) + 1, max_size=len(each) + 1))
            for each in drafts
        ]
        num_rows = sum(map(len, own_masks))
        num_before = len(world.replayed)
        emitted = world.check(batch, own_masks, drafts, logits_of(num_rows, data.draw(st.integers(0, 2**31))))
        num_replays = len(world.replayed) - num_before
        if num_rows > MAX_ROWS or len(batch) > MAX_SEQUENCES:
            assert num_replays == 0
        elif all(sequence.plan != SYNTHETIC for sequence in batch):
            assert num_replays == 1
        for sequence, token_ids in zip(batch, emitted, strict=True):
            sequence.token_ids += token_ids


EDITED = SamplingParams(frequency_penalty=0.5, logit_bias={3: 1.0}, min_tokens=9, seed=1)
CUT = SamplingParams(top_k=20, top_p=0.9, min_p=0.01, seed=1)


@pytest.mark.parametrize("mask", [None, 2])
@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SamplingParams(seed=2), CUT, EDITED])
def test_a_step_is_replayed_in_the_smallest_bucket_of_its_kind(device, mask, params):
    world = World(device, masks_of())
    simple_step(world, mask=mask, params=params)
    assert world.graphs.num_captures == len(BUCKETS) * len(KINDS) == world.verifier.num_graphs
    bucket = SamplingBucket(4, min(4, MAX_SEQUENCES), 4)
    kind = SamplingKind(truncates=params is CUT, is_masked=mask is not None)
    assert world.replayed == [(bucket, kind)]
    sent = {name: tensor.tolist() for name, tensor in world.verifier._captured._layouts[bucket, kind].tensors.items()}
    assert sent["temperatures"] == [pytest.approx(params.temperature)] * 3 + [NOBODY]
    assert sent["draft_ids"] == [31, 0, 0, 0]
    assert sent["row_starts"] == [0, 2, 3, *[3] * (bucket.num_sequences - 2)]
    assert sent.get("is_constrained") == (None if mask is None else [True, True, True, False])


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.0, 0.0)])
def test_tokens_that_are_accepted_whatever_is_drawn_are_not_replayed(device, monkeypatch, rates):
    world = World(device, masks_of())
    for verifier in (world.verifier, world.expecting):
        monkeypatch.setattr(verifier, "_synthetic_rates", rates)
    sequence = sequence_of(SamplingParams(seed=3), plan=SYNTHETIC)
    (emitted,) = world.check([sequence], [[None] * 3], [[7, 8]], logits_of(3, 5))
    assert emitted[:2] == [7, 8] or rates == (0.0, 0.0)
    assert len(world.replayed) == (rates == (0.0, 0.0))


def test_logits_elsewhere_are_not_drawn_from_by_a_graph(device):
    """As where it is looked for whose fault a failed step is, sequence by sequence."""
    world = World(device, masks_of())
    simple_step(world)
    sequences = [sequence_of(SamplingParams(seed=i), choice_index=i) for i in range(2)]
    logits = logits_of(3, 0)
    for rows in (logits.to(world.device), world.logits[1:4].copy_(logits)):
        batch = Batch([ScheduledSequence(sequence, 1, 0, 0) for sequence in sequences])
        proposals = [Proposal([31], [Source("ngram")]), Proposal()]
        ours = world.verifier.verify(rows, [[None] * 2, [None]], batch, proposals)
        theirs = world.expecting.verify(logits.clone(), [[None] * 2, [None]], batch, proposals)
        assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]
    assert len(world.replayed) == 1


def overwrite(memory):
    """As whoever is given it next does."""
    memory.zero_()


@pytest.mark.usefixtures("small_mirror")
def test_masks_are_read_where_the_grown_mirror_has_them(device):
    world = World(device, masks_of(20))
    num_captures = world.graphs.num_captures
    old = []
    for mask in (0, 1, 0):
        simple_step(world, mask=mask, seed=mask)
    assert world.graphs.num_captures == num_captures, "it has not grown"
    for step, mask in enumerate((5, 11, 0, 5, 1, 11)):
        old.append(world.sampler.mask_rows)
        if step in {0, 1}:
            world.sampler._masks.rows([mask])
            assert world.sampler.mask_rows is not old[-1], "it has grown"
            overwrite(old[-1])
        num_before = len(world.replayed)
        simple_step(world, mask=mask, seed=step)
        assert len(world.replayed) == num_before + 1
    assert world.graphs.num_captures == num_captures + 2, "one size and kind of step, in two places"
    simple_step(world, mask=0, drafts=([],))
    assert world.graphs.num_captures == num_captures + 3
    simple_step(world)
    assert world.graphs.num_captures == num_captures + 3, "what reads no masks stays"


@pytest.mark.usefixtures("small_mirror")
def test_a_mirror_that_grows_in_a_step_is_read_in_that_step(device):
    world = World(device, masks_of(20))
    before = world.sampler.mask_rows
    for step, mask in enumerate((0, 9, 19, 0, 9)):
        simple_step(world, mask=mask, seed=step)
        if world.sampler.mask_rows is not before:
            overwrite(before)
            before = world.sampler.mask_rows
    assert len(world.replayed) == 5


@pytest.mark.usefixtures("small_mirror")
def test_a_graph_that_cannot_be_captured_anew_is_logged_once(device, caplog):
    world = World(device, masks_of(20), Refusing)
    world.graphs.num_left = 0
    with caplog.at_level(logging.WARNING, logger="specdec"):
        for step, mask in enumerate((0, 9, 19, 0, 9)):
            simple_step(world, mask=mask, seed=step)
            simple_step(world, seed=step)
    (record,) = caplog.records
    assert record.getMessage() == (
        "sampling under masks is launched kernel by kernel from now on, which is slower: the mask table's mirror has "
        "grown, and a graph that reads it where it is now could not be captured (RuntimeError: operation not permitted "
        "when stream is capturing)"
    )
    assert [kind.is_masked for _, kind in world.replayed] == [True, *[False] * 5]


def test_captures_that_are_refused_leave_all_steps_as_they_were(device):
    world = World(device, masks_of())
    refusing = Refusing(device)
    refusing.num_left = 5
    verifier = DeviceVerifier(world.sampler, PIECES, device)
    with pytest.raises(RuntimeError, match="not permitted"):
        verifier.capture(world.logits, BUCKETS, refusing)
    assert verifier.num_graphs == 0
    world.verifier = verifier
    simple_step(world, mask=1)
    assert refusing.replayed == []


LARGEST = ([31, 8], []) if INTERPRETED else ([8] * 4, [9] * 4, [31] * 4, [60] * 4, [8, 9, 31])
"""Drafts of a step that fills the largest bucket."""


@pytest.mark.parametrize("room", [0, captured_sampling._ROOM_FOR_OTHERS])
@pytest.mark.parametrize("params", [CUT, SamplingParams(top_p=0.9, frequency_penalty=0.5, seed=2, logprobs=2)])
def test_a_step_is_told_everything_in_one_copy_where_there_is_room(device, monkeypatch, room, params):
    monkeypatch.setattr(captured_sampling, "_ROOM_FOR_OTHERS", room)
    world = World(device, masks_of())
    copies = []
    named = fixed_inputs.named_on_device
    monkeypatch.setattr(fixed_inputs, "named_on_device", lambda *given: copies.append(given) or named(*given))
    monkeypatch.setattr(device_sampler, "named_on_device", None)
    send = captured_sampling.FixedInputs.send
    sent = []
    monkeypatch.setattr(captured_sampling.FixedInputs, "send", lambda *given: sent.append(given) or send(*given))
    # New masks, and whatever the tokens change in lists, go along.
    simple_step(world, mask=2, params=params, drafts=LARGEST)
    assert world.replayed == [(BUCKETS[0], KINDS[-1])]
    assert len(sent) == 1
    assert len(copies) == (room == 0)


def test_no_graph_leaves_an_id_that_is_none(device):
    """Whatever logits are left over where rows are nobody's, and whatever is left over in what a replay fills."""
    world = World(device, masks_of())
    (first, *_), (second, *_) = simple_step(world, seed=7, drafts=([], []))
    # Numbers of accepted tokens in one size, then ids in another.
    sequences = [sequence_of(SamplingParams(seed=i), choice_index=i) for i in range(2)]
    logits = logits_of(2, 7)[[0, 1, 1] if INTERPRETED else [0, 0, 1, 1]]
    drafts = [[], [second]] if INTERPRETED else [[first], [second]]
    world.check(sequences, [[None] * (len(each) + 1) for each in drafts], drafts, logits)
    simple_step(world, drafts=LARGEST, params=SamplingParams(seed=3, logprobs=1))
    for mask in (None, 1):
        simple_step(world, mask=mask, drafts=([31, 8], []) if not INTERPRETED else ([31], []))
    for step in world.verifier._captured._steps.values():
        for ids in (step.target_ids, step.output_ids):
            assert bool(((ids >= 0) & (ids < NUM_TOKEN_IDS)).all())
        assert bool(((step.num_accepted >= 0) & (step.num_accepted <= step.target_ids.shape[0])).all())


@settings(max_examples=100, deadline=None)
@given(max_sequences=st.integers(1, 600), max_rows=st.integers(1, 2000))
def test_sampling_buckets_hold_every_step_of_few_rows(max_sequences, max_rows):
    buckets = sampling_buckets(max_sequences=max_sequences, max_rows=max_rows)
    assert buckets == sorted(set(buckets), reverse=True)
    assert len(buckets) <= 15
    assert buckets[0].num_rows == min(max_rows, 512)
    for larger, smaller in itertools.pairwise(buckets):
        assert larger.num_rows <= 2 * smaller.num_rows
    for bucket in buckets:
        # As many sequences as rows, or one with a draft as long as they come.
        assert bucket.holds(num_sequences=min(bucket.num_rows, max_sequences), max_num_rows=1)
        assert bucket.holds(num_sequences=1, max_num_rows=min(bucket.num_rows, 65))
        assert not bucket.holds(num_sequences=max_sequences + 1, max_num_rows=1)
        assert not bucket.holds(num_sequences=1, max_num_rows=bucket.num_rows + 1)
