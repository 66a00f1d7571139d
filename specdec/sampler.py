"""Logits to tokens: mask, bias, penalties, temperature, top-k, top-p, min-p, then one keyed Gumbel draw.

The target and the draft model draw through the same function with the same noise, which is what couples them. A row's
token depends on that row alone: the batch only shares passes whose arithmetic is elementwise or a maximum.

R rows, V vocabulary (the logits' width, padded ids included).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.grammars import MaskTable
from specdec.kernels.token_mask import apply_token_mask
from specdec.noise import GUMBEL_RANGE, Stream, gumbel, noise_key
from specdec.sequence import Sequence

# Rounding of the scaled logits and of the noise cannot lift a token over this much slack.
_PRUNING_SLACK = 0.5


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """Where one row of logits stands: after `sequence`'s tokens and the draft tokens before it."""

    sequence: Sequence
    preceding_draft_ids: AbstractSequence[int] = ()
    mask_row: int | None = None
    """Row of the mask table; None only for a request without a constraint."""

    @property
    def position(self) -> int:
        """Position of the token to draw."""
        return self.sequence.num_tokens + len(self.preceding_draft_ids)


class Sampler:
    """Draws one token a row; holds no state but the mask table's mirror on the device."""

    def __init__(self, mask_table: MaskTable, num_token_ids: int) -> None:
        self._mask_table = mask_table
        self._num_token_ids = num_token_ids
        """Ids at or above this are padding of the embedding and can never be drawn."""

    def sample(self, logits: Tensor, rows: AbstractSequence[SamplingRow]) -> list[int]:
        """logits fp32 [R, V], overwritten -> R token ids."""
        if not rows:
            return []
        self._shape(logits, rows)
        token_ids: list[int] = logits.argmax(dim=-1).tolist()
        for i, row in enumerate(rows):
            if row.sequence.params.temperature > 0.0:
                token_ids[i] = _draw(logits[i], row)
        return token_ids

    def _shape(self, logits: Tensor, rows: AbstractSequence[SamplingRow]) -> None:
        """Everything before temperature, in place."""
        logits[:, self._num_token_ids :] = -math.inf
        constrained = [i for i, row in enumerate(rows) if row.mask_row is not None]
        if constrained:
            table = torch.from_numpy(self._mask_table.rows.view("int32"))
            row_ids = torch.tensor([row.mask_row for row in rows if row.mask_row is not None])
            apply_token_mask(logits, table, row_ids, rows=torch.tensor(constrained))
        for i, row in enumerate(rows):
            params = row.sequence.params
            if params.logit_bias:
                ids = torch.tensor(list(params.logit_bias))
                logits[i, ids] += torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
            if params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
                _penalise(logits[i], row)
            num_output_tokens = row.sequence.num_output_tokens + len(row.preceding_draft_ids)
            if num_output_tokens < params.min_tokens:
                logits[i, list(row.sequence.eos_token_ids.union(params.stop_token_ids))] = -math.inf


def _penalise(logits: Tensor, row: SamplingRow) -> None:
    """Repetition over prompt and output (Keskar et al. 2019), then frequency and presence over the output alone."""
    sequence, params = row.sequence, row.sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*sequence.token_ids, *row.preceding_draft_ids}))
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        counts = Counter(sequence.output_token_ids)
        counts.update(row.preceding_draft_ids)
        if counts:
            ids = torch.tensor(list(counts))
            times = torch.tensor(list(counts.values()), dtype=torch.float32)
            logits[ids] -= times * params.frequency_penalty + params.presence_penalty


def _draw(logits: Tensor, row: SamplingRow) -> int:
    """One token from shaped logits fp32 [V], at a temperature above 0.

    Noise is computed only for tokens that could win: the noise spans less than GUMBEL_RANGE, so a token further than
    that below the most likely one cannot.
    """
    params = row.sequence.params
    scaled = logits / params.temperature
    key = noise_key(row.sequence.seed, row.sequence.choice_index, row.position, Stream.TOKEN)
    if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
        token_ids = (scaled > scaled.max() - (GUMBEL_RANGE + _PRUNING_SLACK)).nonzero().squeeze(1)
    else:
        token_ids = _truncate(scaled, params.top_k, params.top_p, params.min_p)
    return int(token_ids[(scaled[token_ids] + gumbel(key, token_ids)).argmax()])


def _truncate(scaled: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Ids, ascending, that top-k, then top-p within those, then min-p keep; scaled logits fp32 [V].

    Ties at a border go to the lowest ids.
    """
    token_ids = (scaled > -math.inf).nonzero().squeeze(1)
    values, order = scaled[token_ids].sort(descending=True, stable=True)
    if 0 < top_k < len(values):
        values, order = values[:top_k], order[:top_k]
    weights = (values.double() - values[0]).exp()
    keep = len(values)
    if top_p < 1.0:
        cumulative = weights.cumsum(0)
        # The first token at which the sum reaches top_p is the last one kept.
        keep = min(keep, int((cumulative < top_p * cumulative[-1]).sum()) + 1)
    if min_p > 0.0:
        keep = min(keep, int((weights >= min_p).sum()))
    return token_ids[order[:keep]].sort().values
