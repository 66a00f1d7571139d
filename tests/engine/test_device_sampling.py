"""The device's sampler and verifier against the CPU's, which are held against sampling written out.

test_device_path_interpreted.py runs this file a second time, with TRITON_INTERPRET set.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_out_sampling import (
    NUM_TOKEN_IDS,
    VOCAB_SIZE,
    Masks,
    params_strategy,
    row_of,
    sequence_of,
    token_lists,
)

from specdec import device_logprobs, device_sampler, device_tensors, device_verifier
from specdec.batch import Batch, ScheduledSequence
from specdec.device_sampler import DeviceSampler
from specdec.device_tensors import on_device, packed, together_on_device
from specdec.device_verifier import DeviceVerifier
from specdec.kernels.dispatch import INTERPRETED
from specdec.mask_mirror import MaskMirror
from specdec.proposers.base import Proposal, Source
from specdec.request import SamplingParams
from specdec.sampler import Sampler, SamplingRow
from specdec.speculative import PLAIN, SpeculationPlan, Verification
from specdec.verifier import Verifier

NUM_EXAMPLES = 20 if INTERPRETED else 100
PLANS = [SpeculationPlan(verification=each) for each in Verification]
SYNTHETIC = SpeculationPlan(methods=frozenset({"synthetic"}))
RATES = (0.8, 0.5, 0.2)
MASKS = Masks([set(range(1, NUM_TOKEN_IDS, 2)), set(range(10, 40))])
PIECES = [bytes([i]) for i in range(NUM_TOKEN_IDS)]
CPU_SAMPLER = Sampler(MASKS, NUM_TOKEN_IDS)
CPU_VERIFIER = Verifier(CPU_SAMPLER, PIECES, synthetic_acceptance_rates=RATES)

examples = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(params=["together", "few at a time"])
def chunks(request, monkeypatch):
    """As many rows, and drafts, at a time as there is room for."""
    if request.param == "few at a time":
        monkeypatch.setattr(device_sampler, "CHUNK_PROBS", 2 * VOCAB_SIZE)
        monkeypatch.setattr(device_verifier, "_WALKED_PROBS", 2 * VOCAB_SIZE)
        monkeypatch.setattr(device_logprobs, "_CHUNK_LOGITS", 2 * VOCAB_SIZE)


def logits_of(data, num_rows):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    logits = torch.randn(num_rows, VOCAB_SIZE, generator=generator) * data.draw(st.sampled_from([0.1, 3.0, 15.0]))
    return logits.round() if data.draw(st.booleans()) else logits


def rows_of(data, num_rows, plans=(PLAIN,)):
    return [
        row_of(
            data.draw(params_strategy),
            [1, *data.draw(token_lists)],
            drafts=tuple(data.draw(token_lists)),
            mask_row=data.draw(st.sampled_from([None, 0, 1])),
            choice_index=data.draw(st.integers(0, 3)),
            plan=data.draw(st.sampled_from(plans)),
        )
        for _ in range(num_rows)
    ]


@examples
@given(data=st.data())
def test_every_row_draws_what_it_draws_on_the_cpu(device, data):
    num_rows = data.draw(st.integers(1, 5))
    logits, rows = logits_of(data, num_rows), rows_of(data, num_rows)
    if data.draw(st.booleans()):
        # Nothing is edited, and nothing truncated.
        plain = [SamplingParams(seed=row.sequence.params.seed, temperature=0.7) for row in rows]
        rows = [row_of(each, mask_row=row.mask_row) for each, row in zip(plain, rows, strict=True)]
    sampler = DeviceSampler(MASKS, NUM_TOKEN_IDS, device)
    expected = CPU_SAMPLER.sample(logits.clone(), rows)
    own = logits.clone().to(device)
    sampler.shape(own, rows)
    assert sampler.draw(own, rows).tolist() == expected


@examples
@given(data=st.data())
def test_shaped_logits_have_the_bits_that_they_have_on_the_cpu(device, data):
    """But for the temperature, by which the device divides as it draws."""
    num_rows = data.draw(st.integers(1, 4))
    logits, rows = logits_of(data, num_rows), rows_of(data, num_rows)
    own = logits.clone().to(device)
    DeviceSampler(MASKS, NUM_TOKEN_IDS, device).shape(own, rows)
    temperatures = torch.tensor([row.sequence.params.temperature or 1.0 for row in rows])
    CPU_SAMPLER.shape(logits, rows)
    assert torch.equal(own.cpu() / temperatures[:, None], logits)


@examples
@given(data=st.data())
@pytest.mark.usefixtures("chunks")
def test_drafts_are_those_of_the_cpu_with_their_probabilities(device, data):
    num_rows = data.draw(st.integers(1, 5))
    logits, rows = logits_of(data, num_rows), rows_of(data, num_rows, PLANS)
    expected = CPU_SAMPLER.sample_drafts(logits.clone(), rows)
    drawn = DeviceSampler(MASKS, NUM_TOKEN_IDS, device).sample_drafts(logits.clone().to(device), rows)
    for (token_id, distribution), (other_id, other) in zip(drawn, expected, strict=True):
        assert token_id == other_id
        assert (distribution is None) == (other is None)
        if distribution is not None:
            assert distribution.token_ids.device.type == device.type
            assert distribution.token_ids.tolist() == other.token_ids.tolist()
            np.testing.assert_allclose(distribution.probs.tolist(), other.probs.tolist(), rtol=1e-9, atol=1e-300)


def draw_proposal(data, device, sequence, num_drafts, masks):
    """A draft of tokens drawn, with or without the mask, or merely found, on the device and on the CPU."""
    token_ids, ours, theirs = [], [], []
    is_masked = data.draw(st.booleans())
    for i in range(num_drafts):
        token_id, own, other = data.draw(st.sampled_from([8, 9, 31, 60])), None, None
        if data.draw(st.booleans()):
            row = SamplingRow(sequence, tuple(token_ids), masks[i] if is_masked else None)
            ((token_id, other),) = CPU_SAMPLER.sample_drafts(logits_of(data, 1), [row])
            own = other and type(other)(*(each.to(device) for each in other))
        token_ids.append(token_id)
        ours.append(own)
        theirs.append(other)
    sources = [Source("synthetic")] * num_drafts
    if all(each is None for each in theirs):
        ours, theirs = (), ()
    return Proposal(token_ids, sources, ours), Proposal(token_ids, sources, theirs)


@examples
@given(data=st.data())
@pytest.mark.usefixtures("chunks")
def test_every_sequence_gets_what_it_gets_on_the_cpu(device, data):
    """In batches that mix all kinds of verification, prompts under way included."""
    sequences, proposals, masks = [], [], []
    for _ in range(data.draw(st.integers(1, 5))):
        params = data.draw(params_strategy)
        if data.draw(st.booleans()):
            params = SamplingParams(
                seed=params.seed,
                temperature=data.draw(st.sampled_from([0.5, 1.0, 3.0])),
                logprobs=data.draw(st.sampled_from([None, 0, 3])),
            )
        plan = data.draw(st.sampled_from([*PLANS, SYNTHETIC]))
        sequence = sequence_of(params, [1, *data.draw(token_lists)], plan=plan)
        num_drafts = data.draw(st.integers(0, 4))
        own_masks = data.draw(st.lists(st.sampled_from([None, 0, 1]), min_size=num_drafts + 1, max_size=num_drafts + 1))
        proposal = draw_proposal(data, device, sequence, num_drafts, own_masks)
        if data.draw(st.integers(0, 4)) == 0:
            own_masks, proposal = [], (Proposal(), Proposal())
        sequences.append(sequence)
        masks.append(own_masks)
        proposals.append(proposal)
    logits = logits_of(data, sum(len(each) for each in masks))
    batch = Batch([ScheduledSequence(sequence, 1, 0, 0) for sequence in sequences])
    theirs = CPU_VERIFIER.verify(logits.clone(), masks, batch, [each[1] for each in proposals])
    sampler = DeviceSampler(MASKS, NUM_TOKEN_IDS, device)
    verifier = DeviceVerifier(sampler, PIECES, device, synthetic_acceptance_rates=RATES)
    ours = verifier.verify(logits.clone().to(device), masks, batch, [each[0] for each in proposals])
    for own, other in zip(ours, theirs, strict=True):
        assert (own.token_ids, own.num_accepted, own.num_drafted) == (
            other.token_ids,
            other.num_accepted,
            other.num_drafted,
        )
        for logprob, expected in zip(own.logprobs, other.logprobs, strict=True):
            assert logprob.token_id == expected.token_id
            assert logprob.logprob == pytest.approx(expected.logprob, abs=1e-5)
            assert [each.logprob for each in logprob.top] == pytest.approx(
                [each.logprob for each in expected.top], abs=1e-5
            )


def check_pass(device, verifier, sequences, masks, drafts, logits):
    """One pass of both paths; returns each sequence's tokens."""
    batch = Batch([ScheduledSequence(sequence, 1, 0, 0) for sequence in sequences])
    proposals = [Proposal(each, [Source("ngram")] * len(each)) for each in drafts]
    theirs = CPU_VERIFIER.verify(logits.clone(), masks, batch, proposals)
    ours = verifier.verify(logits.clone().to(device), masks, batch, proposals)
    assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]
    return [each.token_ids for each in ours]


@settings(examples, max_examples=5 if INTERPRETED else 30)
@given(data=st.data())
def test_passes_one_after_the_other_are_those_of_the_cpu(device, data, monkeypatch):
    """With a verifier that remembers: tokens come, masks are overwritten, sequences sit out, leave and arrive."""
    masks = Masks([set(range(1, NUM_TOKEN_IDS, 2)), set(range(10, 40)), set(range(60, 70))])
    monkeypatch.setattr(CPU_SAMPLER, "_mask_table", masks)
    verifier = DeviceVerifier(DeviceSampler(masks, NUM_TOKEN_IDS, device), PIECES, device)
    sequences = []
    for step in range(3 if INTERPRETED else 6):
        for _ in range(data.draw(st.integers(1, 2))):
            params = data.draw(params_strategy)
            sequences.append(sequence_of(params, [1, *data.draw(token_lists)], num_prompt_tokens=1))
        if len(sequences) > 2 and data.draw(st.booleans()):
            sequences.pop(data.draw(st.integers(0, len(sequences) - 1)))
        if data.draw(st.booleans()):
            row = data.draw(st.integers(0, 2))
            masks.rows[row] = Masks([data.draw(st.sets(st.integers(0, NUM_TOKEN_IDS - 1), min_size=1))]).rows[0]
            masks.stamps[row] = 1000 + step
        batch = data.draw(st.permutations(sequences))[: data.draw(st.integers(1, len(sequences)))]
        drafts = [data.draw(st.lists(st.sampled_from([8, 9, 31, 60]), max_size=4)) for _ in batch]
        own_masks = [
            data.draw(st.lists(st.sampled_from([None, 0, 1, 2]), min_size=len(each) + 1, max_size=len(each) + 1))
            for each in drafts
        ]
        logits = logits_of(data, sum(map(len, own_masks)))
        emitted = check_pass(device, verifier, batch, own_masks, drafts, logits)
        for sequence, token_ids in zip(batch, emitted, strict=True):
            sequence.token_ids += token_ids


LIKELY = torch.arange(8 * VOCAB_SIZE, dtype=torch.float32).view(8, VOCAB_SIZE).mul(0.7).sin().mul(4.0)


def coupled_pass(device, *, params=None, plans=(PLAIN,), masks=(0, None, 1)):
    """Logits of three sequences' rows before and after a pass over a draft of one token each, the last of none."""
    sequences = [
        sequence_of(params or SamplingParams(seed=i), plan=plan, choice_index=i)
        for i, plan in enumerate([*plans, *[PLAIN] * (3 - len(plans))])
    ]
    logits = LIKELY[:5].clone().to(device)
    own_masks = [[masks[0]] * 2, [masks[1]] * 2, [masks[2]]]
    drafts = [[31], [31], []]
    verifier = DeviceVerifier(DeviceSampler(MASKS, NUM_TOKEN_IDS, device), PIECES, device)
    batch = Batch([ScheduledSequence(sequence, 1, 0, 0) for sequence in sequences])
    proposals = [Proposal(each, [Source("ngram")] * len(each)) for each in drafts]
    verifier.verify(logits, own_masks, batch, proposals)
    return LIKELY[:5], logits.cpu()


def test_a_coupled_pass_writes_no_masks_into_the_logits(device):
    before, after = coupled_pass(device)
    assert torch.equal(before, after)


def test_rows_that_are_verified_by_rule_are_masked_and_no_others(device):
    before, after = coupled_pass(device, plans=[SpeculationPlan(verification=Verification.REJECTION)])
    assert bool(after[:2, [0, 2, 98]].isneginf().all())
    assert torch.equal(after[:2, 1:NUM_TOKEN_IDS:2], before[:2, 1:NUM_TOKEN_IDS:2])
    assert torch.equal(after[2:, :NUM_TOKEN_IDS], before[2:, :NUM_TOKEN_IDS])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(top_k=5, top_p=0.9, min_p=0.01, seed=1),
        SamplingParams(frequency_penalty=0.5, logit_bias={3: 1.0}, min_tokens=9, seed=1, logprobs=2),
    ],
)
def test_a_coupled_pass_is_told_everything_in_one_copy(device, params, monkeypatch):
    copies = []

    def counted(*args, **kwargs):
        copies.append(args)
        return together_on_device(*args, **kwargs)

    monkeypatch.setattr(device_tensors, "together_on_device", counted)
    coupled_pass(device, params=params)
    assert len(copies) == 1


def test_a_pass_that_failed_is_made_up_for_by_the_next(device, monkeypatch):
    """What lists and masks had not been told when it failed, they are told then."""
    params = SamplingParams(frequency_penalty=1.5, presence_penalty=0.5, seed=4)
    sequence = sequence_of(params, [1, 5, 9, 5], num_prompt_tokens=2)
    verifier = DeviceVerifier(DeviceSampler(MASKS, NUM_TOKEN_IDS, device), PIECES, device)
    for failing in (True, False, True, False):
        masks, drafts = [[0, 1, 0]], [[31, 9]]
        if failing:
            with monkeypatch.context() as patch:
                patch.setattr(device_tensors, "together_on_device", None)
                with pytest.raises(TypeError):
                    check_pass(device, verifier, [sequence], masks, drafts, LIKELY[:3])
        else:
            check_pass(device, verifier, [sequence], masks, drafts, LIKELY[:3])
        sequence.token_ids += [33, 31, 33]


def test_a_row_that_was_overwritten_is_copied_again(device):
    masks = Masks([{1, 40}, {2}, {3, 90}])
    mirror = MaskMirror(masks, device)
    expected = torch.from_numpy(masks.rows.view("int32").copy())
    assert torch.equal(mirror.rows([2, 0, 2])[[0, 2]].cpu(), expected[[0, 2]])
    masks.rows[2] = 7
    assert torch.equal(mirror.rows([2])[2].cpu(), expected[2]), "the table has not said so"
    masks.stamps[2] = 99
    assert mirror.rows([1, 2])[2].cpu().tolist() == [7] * masks.rows.shape[1]
    assert torch.equal(mirror.rows([0])[:2].cpu(), expected[:2])


def test_a_mirror_grows_with_the_rows_that_are_asked_for(device):
    masks = Masks([{i % NUM_TOKEN_IDS} for i in range(6000)])
    mirror = MaskMirror(masks, device)
    expected = torch.from_numpy(masks.rows.view("int32"))
    few = mirror.rows(range(10))
    assert few.shape[0] < 6000
    every = mirror.rows(range(0, 6000, 7))
    assert every.shape[0] == 6000
    assert torch.equal(every[::7].cpu(), expected[::7])
    assert torch.equal(every[:10].cpu(), expected[:10]), "what was there before"


PARTS = ([1, 2, 3], [], range(20), np.array([7], dtype=np.int32))


def test_numbers_go_to_the_device_part_by_part(device):
    ours = on_device(device, np.int64, *PARTS)
    assert [each.tolist() for each in ours] == [list(each) for each in PARTS]
    assert {each.dtype for each in ours} == {torch.int64}
    assert {each.device.type for each in ours} == {device.type}
    assert all(each.is_contiguous() for each in ours)
    (halves,) = on_device(device, np.float32, [0.1, 1e-30])
    assert halves.tolist() == [float(np.float32(0.1)), float(np.float32(1e-30))]
    (nothing,) = on_device(device, np.int64, [])
    assert nothing.shape == (0,)


def test_parts_of_several_dtypes_are_packed_at_aligned_places():
    parts = [(dtype, part) for dtype in (np.int32, np.float64, np.int64, np.uint8) for part in PARTS]
    all_bytes, places = packed(parts)
    assert [all_bytes[place].view(dtype).tolist() for place, (dtype, _) in zip(places, parts, strict=True)] == [
        list(part) for _, part in parts
    ]
    assert all(place.start % 64 == 0 for place in places)
    assert len(all_bytes) == 4 * 64 * 3 + 64 * (1 + 2 + 2)
    assert packed([])[1] == []
