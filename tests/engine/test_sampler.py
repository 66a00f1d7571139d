"""The sampler against sampling written out: full softmax, full noise, nothing skipped."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.noise import Stream, gumbel, noise_key
from specdec.request import SamplingParams
from specdec.sampler import Sampler, SamplingRow
from specdec.sequence import Sequence

VOCAB_SIZE = 101
NUM_TOKEN_IDS = 97
EOS = 2


class Masks:
    """The part of a mask table that the sampler reads."""

    def __init__(self, allowed):
        bits = np.zeros((len(allowed), 128), dtype=np.uint8)
        for i, ids in enumerate(allowed):
            bits[i, sorted(ids)] = 1
        self.rows = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)


def row_of(params, token_ids=(1, 5, 9), num_prompt_tokens=1, drafts=(), mask_row=None, choice_index=0):
    sequence = Sequence(
        request_id="r",
        choice_index=choice_index,
        params=params,
        seed=params.seed or 0,
        max_tokens=100,
        eos_token_ids=frozenset({EOS}),
        num_prompt_tokens=num_prompt_tokens,
        token_ids=list(token_ids),
        detokenizer=None,
    )
    return SamplingRow(sequence, drafts, mask_row)


def sample_written_out(logits, row, allowed=None):
    """One row in float64 where the definition leaves rounding open, in fp32 where it does not."""
    params, sequence = row.sequence.params, row.sequence
    z = logits.numpy().astype(np.float32).copy()
    z[NUM_TOKEN_IDS:] = -np.inf
    if allowed is not None:
        z[[i for i in range(VOCAB_SIZE) if i not in allowed]] = -np.inf
    for token_id, bias in params.logit_bias.items():
        z[token_id] += np.float32(bias)
    context = [*sequence.token_ids, *row.preceding_draft_ids]
    output = context[sequence.num_prompt_tokens :]
    penalty = np.float32(params.repetition_penalty)
    for token_id in set(context):
        z[token_id] = z[token_id] / penalty if z[token_id] > 0 else z[token_id] * penalty
    for token_id in set(output):
        count = np.float32(output.count(token_id))
        z[token_id] -= count * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
    if len(output) < params.min_tokens:
        z[[EOS, *params.stop_token_ids]] = -np.inf
    if params.temperature == 0.0:
        return int(z.argmax())
    z = z / np.float32(params.temperature)
    order = sorted((i for i in range(VOCAB_SIZE) if z[i] > -np.inf), key=lambda i: (-z[i], i))
    if params.top_k:
        order = order[: params.top_k]
    weights = [math.exp(float(z[i]) - float(z[order[0]])) for i in order]
    if params.top_p < 1.0:
        total, cumulative, keep = sum(weights), 0.0, 0
        for weight in weights:
            cumulative += weight
            keep += 1
            if cumulative >= params.top_p * total:
                break
        order, weights = order[:keep], weights[:keep]
    order = [i for i, weight in zip(order, weights, strict=True) if weight >= params.min_p]
    key = noise_key(sequence.seed, sequence.choice_index, len(context), Stream.TOKEN)
    noise = gumbel(key, torch.arange(VOCAB_SIZE)).numpy()
    return max(sorted(order), key=lambda i: z[i] + noise[i])


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 500]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.3, 1e-6]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    presence_penalty=st.sampled_from([0.0, 0.75]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    logit_bias=st.dictionaries(st.integers(0, NUM_TOKEN_IDS - 1), st.sampled_from([-100.0, -1.5, 3.0]), max_size=3),
    min_tokens=st.sampled_from([0, 4]),
    max_tokens=st.just(50),
    stop_token_ids=st.sampled_from([(), (7, 8)]),
    seed=st.integers(-(2**63), 2**63 - 1),
)
token_lists = st.lists(st.integers(0, NUM_TOKEN_IDS - 1), max_size=6)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_every_row_draws_what_sampling_written_out_draws(data):
    num_rows = data.draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    logits = torch.randn(num_rows, VOCAB_SIZE, generator=generator) * data.draw(st.sampled_from([0.1, 3.0, 15.0]))
    if data.draw(st.booleans()):
        logits = logits.round()
    allowed = [set(data.draw(st.sets(st.integers(0, NUM_TOKEN_IDS - 1), min_size=1))) - {EOS, 7, 8} or {11}]
    rows = []
    for _ in range(num_rows):
        masked = data.draw(st.booleans())
        token_ids = [1, *data.draw(token_lists)]
        rows.append(
            row_of(
                data.draw(params_strategy),
                token_ids,
                num_prompt_tokens=1,
                drafts=tuple(data.draw(token_lists)),
                mask_row=0 if masked else None,
                choice_index=data.draw(st.integers(0, 3)),
            )
        )
    expected = [
        sample_written_out(logits[i], row, allowed[0] if row.mask_row == 0 else None) for i, row in enumerate(rows)
    ]
    assert Sampler(Masks(allowed), NUM_TOKEN_IDS).sample(logits.clone(), rows) == expected


def test_draws_follow_the_softmax():
    """Chi-square over 9 tokens, 8 degrees of freedom: 40 is exceeded once in 300,000."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.full((VOCAB_SIZE,), -math.inf)
    logits[:9] = torch.randn(9, generator=generator)
    sampler = Sampler(Masks([{0}]), NUM_TOKEN_IDS)
    counts = np.zeros(9)
    num_draws = 4000
    for seed in range(num_draws):
        (token_id,) = sampler.sample(logits[None].clone(), [row_of(SamplingParams(temperature=0.7, seed=seed))])
        counts[token_id] += 1
    expected = (logits[:9].double() / 0.7).softmax(0).numpy() * num_draws
    assert ((counts - expected) ** 2 / expected).sum() < 40


def test_a_padded_id_is_never_drawn_however_likely():
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, NUM_TOKEN_IDS:] = 1e9
    for temperature in (0.0, 1.0):
        (token_id,) = Sampler(Masks([{0}]), NUM_TOKEN_IDS).sample(
            logits.clone(), [row_of(SamplingParams(temperature=temperature, seed=1))]
        )
        assert token_id < NUM_TOKEN_IDS


def test_greedy_ties_go_to_the_lowest_id():
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, [40, 41, 90]] = 5.0
    sampler = Sampler(Masks([{0}]), NUM_TOKEN_IDS)
    assert sampler.sample(logits, [row_of(SamplingParams(temperature=0.0))]) == [40]
