"""The verifier against verification written out, one sequence at a time, in batches that mix all its kinds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from written_out_sampling import (
    NUM_TOKEN_IDS,
    VOCAB_SIZE,
    Masks,
    params_strategy,
    probs_written_out,
    sample_written_out,
    sequence_of,
    token_lists,
)

from specdec.batch import Batch, ScheduledSequence
from specdec.noise import Stream, noise_key, uniform
from specdec.proposers.base import DraftDistribution, Proposal
from specdec.request import SamplingParams
from specdec.sampler import Sampler, SamplingRow
from specdec.speculative import SpeculationPlan, Verification
from specdec.verifier import Verifier

PLANS = [SpeculationPlan(verification=each) for each in Verification]
FREE, ODD, LOW = range(VOCAB_SIZE), range(1, NUM_TOKEN_IDS, 2), range(10, 40)
SAMPLER = Sampler(Masks([set(FREE), set(ODD), set(LOW)]), NUM_TOKEN_IDS)


VERIFIER = Verifier(SAMPLER, [bytes([i]) for i in range(VOCAB_SIZE)])


def batch_of(sequences):
    return Batch([ScheduledSequence(sequence, 1, 0, 0) for sequence in sequences])


def invert(weights, u):
    cumulative = np.cumsum(weights)
    return int(np.argmax(cumulative > u * cumulative[-1]))


def draft_probs_of(proposal, i):
    distribution = proposal.distributions[i] if proposal.distributions else None
    if distribution is None:
        return np.eye(VOCAB_SIZE)[proposal.token_ids[i]]
    probs = np.zeros(VOCAB_SIZE)
    probs[distribution.token_ids] = distribution.probs
    return probs


def verify_written_out(logits, sequence, proposal, allowed):
    """The emitted tokens: logits fp32 [K + 1, V]; `allowed` holds the ids that each row's mask allows."""
    draft_ids, num_drafts = list(proposal.token_ids), len(proposal.token_ids)
    rows = [SamplingRow(sequence, draft_ids[:i]) for i in range(num_drafts + 1)]
    own = [sample_written_out(logits[i], rows[i], allowed[i]) for i in range(num_drafts + 1)]
    verification = sequence.plan.verification
    if verification is Verification.COUPLED or sequence.params.temperature == 0.0:
        num_accepted = next((i for i in range(num_drafts) if own[i] != draft_ids[i]), num_drafts)
        return [*draft_ids[:num_accepted], own[num_accepted]]
    start = sequence.num_tokens
    target = [probs_written_out(logits[i], rows[i], allowed[i]) for i in range(num_drafts + 1)]
    drafts = [draft_probs_of(proposal, i) for i in range(num_drafts)]
    accepts = [
        uniform(noise_key(sequence.seed, sequence.choice_index, start + i, Stream.ACCEPT, draft_start=start))
        for i in range(num_drafts + 1)
    ]
    weights = [1.0]
    if verification is Verification.REJECTION:
        ratios = [target[i][x] / drafts[i][x] for i, x in enumerate(draft_ids)]
        num_accepted = next((i for i, ratio in enumerate(ratios) if accepts[i] > ratio), num_drafts)
        weights = [1.0] * (num_drafts + 1)
    else:
        for i, x in enumerate(draft_ids):
            weights.append(min(1.0, weights[i] * target[i][x] / drafts[i][x]))
        num_accepted = 0
        for i in range(1, num_drafts + 1):
            share = weights[i]
            if i < num_drafts:
                mass = np.maximum(weights[i] * target[i] - drafts[i], 0.0).sum()
                share = mass / (mass + 1.0 - weights[i]) if mass > 0.0 else 0.0
            if accepts[i] <= share:
                num_accepted = i
    if num_accepted == num_drafts:
        return [*draft_ids, own[num_drafts]]
    key = noise_key(sequence.seed, sequence.choice_index, start + num_accepted, Stream.RECOVERED)
    rest = np.maximum(weights[num_accepted] * target[num_accepted] - drafts[num_accepted], 0.0)
    return [*draft_ids[:num_accepted], invert(rest, uniform(key))]


def draw_proposal(data, sequence, num_drafts, generator, masks):
    """A draft of tokens drawn, with or without the mask, or merely found."""
    token_ids, distributions = [], []
    is_masked = data.draw(st.booleans())
    for i in range(num_drafts):
        logits = torch.randn(1, VOCAB_SIZE, generator=generator) * 2
        token_id, distribution = data.draw(st.sampled_from([8, 9, 31, 60])), None
        if data.draw(st.booleans()):
            row = SamplingRow(sequence, tuple(token_ids), masks[i] if is_masked else None)
            ((token_id, distribution),) = SAMPLER.sample_drafts(logits, [row])
        token_ids.append(token_id)
        distributions.append(distribution)
    return Proposal(token_ids, (), distributions if any(each is not None for each in distributions) else ())


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_every_sequence_gets_what_verification_written_out_gives(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    sequences, proposals, masks, blocks = [], [], [], []
    for _ in range(data.draw(st.integers(1, 5))):
        params = data.draw(params_strategy)
        if data.draw(st.booleans()):
            params = SamplingParams(seed=params.seed, temperature=data.draw(st.sampled_from([0.5, 1.0, 3.0])))
        sequence = sequence_of(params, [1, *data.draw(token_lists)], plan=data.draw(st.sampled_from(PLANS)))
        num_drafts = data.draw(st.integers(0, 4))
        own_masks = data.draw(st.lists(st.sampled_from([None, 1, 2]), min_size=num_drafts + 1, max_size=num_drafts + 1))
        sequences.append(sequence)
        masks.append(own_masks)
        proposals.append(draw_proposal(data, sequence, num_drafts, generator, own_masks))
        blocks.append(torch.randn(num_drafts + 1, VOCAB_SIZE, generator=generator) * 2)
    outcomes = VERIFIER.verify(torch.cat(blocks), masks, batch_of(sequences), proposals)
    for sequence, proposal, own_masks, logits, outcome in zip(
        sequences, proposals, masks, blocks, outcomes, strict=True
    ):
        allowed = [{None: FREE, 1: ODD, 2: LOW}[mask] for mask in own_masks]
        assert outcome.token_ids == verify_written_out(logits, sequence, proposal, allowed)
        assert outcome.num_drafted == len(proposal.token_ids)
        assert outcome.num_accepted == len(outcome.token_ids) - 1
        assert outcome.token_ids[: outcome.num_accepted] == list(proposal.token_ids[: outcome.num_accepted])
        for i, token_id in enumerate(outcome.token_ids):
            assert token_id in allowed[i]
            assert token_id < NUM_TOKEN_IDS


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.verification)
def test_without_a_draft_the_token_is_the_plain_one(plan):
    logits = torch.randn(50, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)) * 2
    sequences = [sequence_of(SamplingParams(seed=seed), plan=plan) for seed in range(50)]
    plain = SAMPLER.sample(logits.clone(), [SamplingRow(sequence) for sequence in sequences])
    outcomes = VERIFIER.verify(logits, [[None]] * 50, batch_of(sequences), [Proposal()] * 50)
    assert [outcome.token_ids for outcome in outcomes] == [[token_id] for token_id in plain]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.verification)
def test_the_target_as_its_own_draft_is_accepted_whole_with_the_plain_token_after_it(plan):
    generator = torch.Generator().manual_seed(0)
    for seed in range(30):
        logits = torch.randn(4, VOCAB_SIZE, generator=generator) * 2
        sequence = sequence_of(SamplingParams(seed=seed, temperature=0.9, top_p=0.95), plan=plan)
        token_ids, distributions = [], []
        for i in range(3):
            row = SamplingRow(sequence, tuple(token_ids))
            ((token_id, distribution),) = SAMPLER.sample_drafts(logits[i : i + 1].clone(), [row])
            token_ids.append(token_id)
            distributions.append(distribution)
        (bonus,) = SAMPLER.sample(logits[3:].clone(), [SamplingRow(sequence, tuple(token_ids))])
        proposal = Proposal(token_ids, (), distributions)
        (outcome,) = VERIFIER.verify(logits, [[None] * 4], batch_of([sequence]), [proposal])
        assert outcome.token_ids == [*token_ids, bonus]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.verification)
def test_at_temperature_0_every_kind_gives_the_greedy_tokens(plan):
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(5))
    best = logits[:, :NUM_TOKEN_IDS].argmax(dim=1).tolist()
    sequence = sequence_of(SamplingParams(temperature=0.0), plan=plan)
    for draft_ids, emitted in (
        (best[:2], best),
        ([best[0], best[1] ^ 1], best[:2]),
        ([best[0] ^ 1, best[1]], best[:1]),
    ):
        (outcome,) = VERIFIER.verify(logits.clone(), [[None] * 3], batch_of([sequence]), [Proposal(draft_ids)])
        assert outcome.token_ids == emitted


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.verification)
def test_log_probabilities_are_those_of_the_raw_logits_for_accepted_and_recovered_tokens(plan):
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(2))
    expected = logits.log_softmax(dim=1)
    sequence = sequence_of(SamplingParams(seed=3, temperature=0.5, logprobs=2, logit_bias={8: 100.0}), plan=plan)
    proposal = Proposal([8, 9], (), [None, DraftDistribution(torch.tensor([9]), torch.ones(1, dtype=torch.float64))])
    (outcome,) = VERIFIER.verify(logits, [[None] * 3], batch_of([sequence]), [proposal])
    assert outcome.token_ids[0] == 8
    assert [each.token_id for each in outcome.logprobs] == outcome.token_ids
    for i, each in enumerate(outcome.logprobs):
        assert each.logprob == pytest.approx(float(expected[i, each.token_id]), abs=1e-5)
        assert [top.token_id for top in each.top] == expected[i].topk(2).indices.tolist()


def test_a_prompt_not_yet_computed_gives_nothing():
    sequences = [sequence_of(SamplingParams(seed=1), plan=plan) for plan in PLANS]
    outcomes = VERIFIER.verify(
        torch.zeros(1, VOCAB_SIZE), [[], [None], []], batch_of(sequences), [Proposal(), Proposal(), Proposal()]
    )
    assert [len(outcome.token_ids) for outcome in outcomes] == [0, 1, 0]


def test_padded_ids_are_none_of_the_likely_tokens():
    sequence = sequence_of(SamplingParams(seed=3, logprobs=4))
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, NUM_TOKEN_IDS:] = 5.0
    verifier = Verifier(SAMPLER, [bytes([i]) for i in range(NUM_TOKEN_IDS)])
    [outcome] = verifier.verify(logits.clone(), [[0]], batch_of([sequence]), [Proposal()])
    [entry] = outcome.logprobs
    assert len(entry.top) == 4
    for each in (entry, *entry.top):
        assert each.token_id < NUM_TOKEN_IDS
        assert each.logprob == pytest.approx(float(logits.log_softmax(-1)[0, each.token_id]))
