"""Sampling written out: full softmax, full noise, nothing skipped; and sequences to sample for."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

from specdec.kernels.gumbel import gumbel
from specdec.noise import Stream, noise_key
from specdec.request import SamplingParams
from specdec.sampler import SamplingRow
from specdec.sequence import Sequence
from specdec.speculative import PLAIN

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
        self.stamps = list(range(len(allowed)))


def sequence_of(params, token_ids=(1, 5, 9), num_prompt_tokens=1, choice_index=0, plan=PLAIN):
    return Sequence(
        request_id="r",
        choice_index=choice_index,
        params=params,
        seed=params.seed or 0,
        max_tokens=100,
        eos_token_ids=frozenset({EOS}),
        num_prompt_tokens=num_prompt_tokens,
        token_ids=list(token_ids),
        detokenizer=None,
        plan=plan,
    )


def row_of(params, token_ids=(1, 5, 9), num_prompt_tokens=1, drafts=(), mask_row=None, choice_index=0, plan=PLAIN):
    return SamplingRow(sequence_of(params, token_ids, num_prompt_tokens, choice_index, plan), drafts, mask_row)


def shaped_written_out(logits, row, allowed=None):
    """fp32 logits after temperature, and the ids that truncation keeps, in order of the logits; float64 where the
    definition leaves rounding open."""
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
        return z, [int(z.argmax())]
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
    return z, [i for i, weight in zip(order, weights, strict=True) if weight >= params.min_p]


def sample_written_out(logits, row, allowed=None):
    """The target's own token."""
    z, kept = shaped_written_out(logits, row, allowed)
    if row.sequence.params.temperature == 0.0:
        return kept[0]
    key = noise_key(row.sequence.seed, row.sequence.choice_index, row.position, Stream.TOKEN)
    noise = gumbel(key, torch.arange(VOCAB_SIZE)).numpy()
    return max(sorted(kept), key=lambda i: z[i] + noise[i])


def probs_written_out(logits, row, allowed=None):
    """fp64 [V]: what the target's own token is drawn from, at a temperature above 0."""
    z, kept = shaped_written_out(logits, row, allowed)
    params = row.sequence.params
    if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
        kept = [i for i in kept if z[i] >= z[kept[0]] - np.float32(20.0)]
    probs = np.zeros(VOCAB_SIZE)
    probs[kept] = np.exp(z[kept].astype(np.float64) - z[kept[0]])
    return probs / probs.sum()


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
