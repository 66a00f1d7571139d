"""Log-probabilities of emitted tokens, of the rows of sequences that ask for them: worked out before they are emitted.

How many of a sequence's rows emit one is known on the device alone: each row gets its own, and of those after the last
token none is looked at.

R rows of the pass, E of them explained, V vocabulary, N likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.row_group import RowBatch, RowGroup
from specdec.verifier import Outcome, token_logprob

_CHUNK_LOGITS: Final = 2**21
"""Worked on as many rows at a time as have so many, or one by one."""


def explained_rows(batch: RowBatch) -> list[int]:
    """Of the pass's rows."""
    starts = batch.starts.tolist()
    return [
        row
        for i, group in enumerate(batch.groups)
        if group.sequence.params.logprobs is not None
        for row in range(starts[i], starts[i + 1])
    ]


def num_top_of(batch: RowBatch) -> int:
    """How many of the likeliest tokens any sequence wants to see."""
    return max(group.sequence.params.logprobs or 0 for group in batch.groups)


def explained_logprobs(raw: Tensor, token_ids: Tensor, num_top: int, *, num_token_ids: int) -> list[Tensor]:
    """Log-probabilities fp32 [E] of a token a row and fp32 [E, N] of the likeliest ones, then those' ids int64 [E, N].

    raw fp32 [E, V], logits as they came; token_ids int64 [E], any where no token is emitted.
    """
    own, values, ids = [], [], []
    size = max(1, _CHUNK_LOGITS // raw.shape[1])
    for start in range(0, len(raw), size):
        logprobs = torch.log_softmax(raw[start : start + size], dim=-1)
        own.append(logprobs.gather(1, token_ids[start : start + size, None]).squeeze(1))
        # Rows beyond the tokenizer's ids, which pad the vocabulary, are no tokens.
        top = logprobs[:, :num_token_ids].topk(num_top)
        values.append(top.values)
        ids.append(top.indices)
    return [torch.cat(own), torch.cat(values), torch.cat(ids)]


def explain(
    pieces: AbstractSequence[bytes],
    groups: AbstractSequence[RowGroup],
    outcomes: AbstractSequence[Outcome],
    own: NDArray[np.generic],
    values: NDArray[np.generic],
    ids: NDArray[np.generic],
) -> None:
    """Add what is asked for to outcomes, one a group, of what `explained_logprobs` gave."""
    first_row = 0
    for group, outcome in zip(groups, outcomes, strict=True):
        num_top = group.sequence.params.logprobs
        if num_top is None:
            continue
        rows = slice(first_row, first_row + len(outcome.token_ids))
        first_row += len(group.mask_rows)
        likeliest = zip(ids[rows, :num_top].tolist(), values[rows, :num_top].tolist(), strict=True)
        for token_id, logprob, others in zip(outcome.token_ids, own[rows].tolist(), likeliest, strict=True):
            top = tuple(token_logprob(pieces, *each) for each in zip(*others, strict=True))
            outcome.logprobs.append(token_logprob(pieces, token_id, logprob, top))
