"""Warm-up: what the first requests would wait for, kernels being compiled and libraries' being loaded, done at start.

What is replayed as a graph has run when it was captured; this is about passes that are not, and about sampling.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from specdec.attention import Span
from specdec.batch import Batch, ScheduledSequence
from specdec.logits_buffer import LogitsBuffer
from specdec.model_runner import ModelRunner
from specdec.proposers.base import NO_PROPOSAL, DraftDistribution, Proposal, Source
from specdec.request import SamplingParams
from specdec.sampler import DraftSampler, SamplingRow
from specdec.sequence import Sequence
from specdec.speculative import PLAIN, Verification
from specdec.tokenizer import Detokenizer, Tokenizer
from specdec.verifier import DraftVerifier

_MAX_QUERIES: Final = 1024
"""Attention has no other kernels for more."""
_SAMPLINGS: Final = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.0, top_k=2, top_p=0.9, min_p=0.01),
    SamplingParams(temperature=1.0, frequency_penalty=0.1, repetition_penalty=1.1),
    SamplingParams(temperature=1.0, logit_bias={0: 1.0}),
    SamplingParams(temperature=1.0, min_tokens=1),
    SamplingParams(temperature=1.0, logprobs=1),
)
_EOS_ROW: Final = 0
"""Of every mask table."""


def warm_up_passes(
    runner: ModelRunner, *, num_blocks: int, block_size: int, max_model_len: int, max_tokens: int
) -> None:
    """Eager passes of one sequence, short and long, at the beginning and at the end of the longest context.

    They write into blocks that nobody uses yet.
    """
    capacity = min(num_blocks * block_size, max_model_len)
    block_table = range(-(-capacity // block_size))
    num_queries = 1
    while num_queries <= min(capacity, max_tokens, _MAX_QUERIES):
        for start in {0, capacity - num_queries}:
            runner.forward_eagerly([Span([0] * num_queries, start, block_table, num_logits=1)], runner.logits)
        num_queries *= 2
    if capacity > 1:
        # Logits of several rows, which are a product of their own.
        runner.forward_eagerly([Span([0] * 2, 0, block_table, num_logits=2)], runner.logits)
    runner.wait()


@torch.inference_mode()
def warm_up_sampling(
    verifier: DraftVerifier,
    sampler: DraftSampler,
    logits: LogitsBuffer,
    *,
    tokenizer: Tokenizer,
    vocab_size: int,
    max_drafts: int,
) -> None:
    """Tokens and drafts of every kind, one sequence at a time, out of logits that say nothing.

    Kernels are compiled for each power of two of a draft's tokens; the buffer has room for those of max_drafts.
    """
    kinds = [
        *((params, Verification.COUPLED) for params in _SAMPLINGS),
        *((_SAMPLINGS[1], each) for each in (Verification.REJECTION, Verification.BLOCK)),
    ]
    lengths = sorted({max_drafts, *(1 << power for power in range(max_drafts.bit_length()))} - {0})
    found = [Proposal((0,) * length, (Source("ngram"),) * length, (None,) * length) for length in lengths]
    for params, verification in kinds:
        sequence = _sequence(params, verification, tokenizer)
        for mask_row in (None, _EOS_ROW):
            row = SamplingRow(sequence, (), mask_row)
            drafts = [_draft(*each) for each in sampler.sample_drafts(logits.rows(1, vocab_size).zero_(), [row])]
            for proposal in (NO_PROPOSAL, *found, *(drafts if max_drafts else ())):
                mask_rows = [mask_row] * (len(proposal.token_ids) + 1)
                batch = Batch([ScheduledSequence(sequence, 1, max_drafts, 0)])
                rows = logits.rows(len(mask_rows), vocab_size).zero_()
                verifier.verify(rows, [mask_rows], batch, [proposal])


def _draft(token_id: int, distribution: DraftDistribution | None) -> Proposal:
    return Proposal(token_ids=(token_id,), sources=(Source("draft_model"),), distributions=(distribution,))


def _sequence(params: SamplingParams, verification: Verification, tokenizer: Tokenizer) -> Sequence:
    """Of one token."""
    return Sequence(
        request_id="warm-up",
        choice_index=0,
        params=params,
        seed=0,
        max_tokens=4,
        eos_token_ids=frozenset(tokenizer.eos_token_ids),
        num_prompt_tokens=1,
        token_ids=[0],
        detokenizer=Detokenizer(tokenizer, skip_special_tokens=False),
        plan=replace(PLAIN, verification=verification),
    )
