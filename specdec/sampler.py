"""Logits to tokens: mask, bias, penalties, temperature, top-k, top-p, min-p, then one keyed draw.

The target and the draft model draw through the same function. With coupled verification they draw by Gumbel-max with
the same noise, which is what couples them; without, a draft token is drawn from probabilities that are handed on to the
verifier. A row's token depends on that row alone: the batch only shares passes whose arithmetic is elementwise, a
maximum, or a sum along the row.

R rows, V vocabulary (the logits' width, padded ids included).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from specdec.device_tensors import on_device
from specdec.grammars import MaskTable
from specdec.kernels.gumbel import GUMBEL_RANGE, gumbel
from specdec.kernels.token_mask import apply_token_mask
from specdec.noise import Stream, noise_key, uniform
from specdec.proposers.base import DraftDistribution
from specdec.request import SamplingParams
from specdec.sequence import Sequence
from specdec.speculative import Verification

T = TypeVar("T")

# Rounding of the scaled logits and of the noise cannot lift a token over this much slack.
_PRUNING_SLACK = 0.5
# Logits over less could overflow. So little already leaves nothing but the highest logits, and lots among equals.
_MIN_TEMPERATURE = 1e-30
# Rows are worked on as many at a time as have this many logits: 4 MiB in fp64.
_CHUNK_LOGITS = 2**19
# With more tokens a row that could win, each row is better worked on alone.
_MANY_SURVIVORS = 2**10


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

    @property
    def draws_by_distribution(self) -> bool:
        """Whether a draft token of this row is verified by the distribution it was drawn from."""
        sequence = self.sequence
        return sequence.plan.verification is not Verification.COUPLED and sequence.params.temperature > 0.0

    def noise_key(self, stream: Stream) -> tuple[int, int]:
        sequence = self.sequence
        draft_start = sequence.num_tokens if stream in {Stream.DRAFT, Stream.ACCEPT} else None
        return noise_key(sequence.seed, sequence.choice_index, self.position, stream, draft_start)


class DraftSampler(Protocol):
    """Draws a draft model's tokens as the target draws its own."""

    def sample_drafts(
        self, logits: Tensor, rows: AbstractSequence[SamplingRow]
    ) -> list[tuple[int, DraftDistribution | None]]:
        """logits fp32 [R, V], overwritten -> R draft tokens, each with what it was drawn from.

        None where verification is coupled or decoding greedy: the token is then the only one that could be drafted.
        """
        ...


class Sampler:
    """Draws one token a row: the CPU path, and the definition of the other (device_sampler.py)."""

    def __init__(self, mask_table: MaskTable, num_token_ids: int) -> None:
        self._mask_table = mask_table
        self._num_token_ids = num_token_ids
        """Ids at or above this are padding of the embedding and can never be drawn."""

    def sample(self, logits: Tensor, rows: AbstractSequence[SamplingRow]) -> list[int]:
        """logits fp32 [R, V], overwritten -> R token ids, the target's own."""
        self.shape(logits, rows)
        drawn = draw(logits, rows, range(len(rows)))
        return [drawn[i] for i in range(len(rows))]

    def sample_drafts(
        self, logits: Tensor, rows: AbstractSequence[SamplingRow]
    ) -> list[tuple[int, DraftDistribution | None]]:
        self.shape(logits, rows)
        drafts: dict[int, tuple[int, DraftDistribution | None]] = {}
        by_distribution = [i for i, row in enumerate(rows) if row.draws_by_distribution]
        for chunk in chunks(by_distribution, logits.shape[1]):
            own = [rows[i] for i in chunk]
            probs = distributions(logits[chunk], own)
            token_ids = draw_from(probs, [uniform(row.noise_key(Stream.DRAFT)) for row in own])
            kept = probs > 0.0
            sizes = kept.sum(dim=1).tolist()
            ids, own_probs = torch.split(kept.nonzero(as_tuple=True)[1], sizes), torch.split(probs[kept], sizes)
            made = zip(token_ids, map(DraftDistribution, ids, own_probs), strict=True)
            drafts.update(zip(chunk, made, strict=True))
        others = [i for i in range(len(rows)) if i not in drafts]
        drafts |= {i: (token_id, None) for i, token_id in draw(logits, rows, others).items()}
        return [drafts[i] for i in range(len(rows))]

    def shape(self, logits: Tensor, rows: AbstractSequence[SamplingRow]) -> None:
        """Everything up to and with temperature, in place: logits fp32 [R, V]."""
        if not rows:
            return
        self._mask(logits, rows)
        _add_bias(logits, rows)
        for i, row in enumerate(rows):
            sequence, params = row.sequence, row.sequence.params
            if penalises(params):
                _penalise(logits[i], row)
            if params.min_tokens > sequence.num_output_tokens + len(row.preceding_draft_ids):
                logits[i, list(sequence.eos_token_ids.union(params.stop_token_ids))] = -math.inf
        temperatures = [row.sequence.params.temperature for row in rows]
        divisors = [divisor_of(each) for each in temperatures]
        if any(divisor != 1.0 for divisor in divisors):
            logits /= torch.tensor(divisors, device=logits.device)[:, None]

    def _mask(self, logits: Tensor, rows: AbstractSequence[SamplingRow]) -> None:
        logits[:, self._num_token_ids :] = -math.inf
        constrained = [i for i, row in enumerate(rows) if row.mask_row is not None]
        if constrained:
            table = torch.from_numpy(self._mask_table.rows.view("int32"))
            row_ids = torch.tensor([row.mask_row for row in rows if row.mask_row is not None])
            apply_token_mask(logits, table, row_ids, rows=torch.tensor(constrained))


def divisor_of(temperature: float) -> float:
    """What logits are divided by."""
    return 1.0 if temperature == 0.0 else max(temperature, _MIN_TEMPERATURE)


def _add_bias(logits: Tensor, rows: AbstractSequence[SamplingRow]) -> None:
    biases = [(i, *each) for i, row in enumerate(rows) for each in row.sequence.params.logit_bias.items()]
    if biases:
        row_ids, token_ids, values = zip(*biases, strict=True)
        logits[torch.tensor(row_ids), torch.tensor(token_ids)] += torch.tensor(values, dtype=torch.float32)


def penalises(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0


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


def draw(shaped: Tensor, rows: AbstractSequence[SamplingRow], which: AbstractSequence[int]) -> dict[int, int]:
    """The target's own token at `which` of the rows, of shaped logits fp32 [R, V]."""
    drawn: dict[int, int] = {}
    for chunk in chunks([i for i in which if rows[i].sequence.params.temperature == 0.0], shaped.shape[1]):
        drawn.update(zip(chunk, shaped[chunk].argmax(dim=1).tolist(), strict=True))
    for chunk in chunks([i for i in which if i not in drawn], shaped.shape[1]):
        token_ids = _draw_with_gumbel(shaped[chunk], [rows[i] for i in chunk])
        drawn.update(zip(chunk, token_ids, strict=True))
    return drawn


def distributions(shaped: Tensor, rows: AbstractSequence[SamplingRow]) -> Tensor:
    """What `draw` draws from, at temperatures above 0: shaped logits fp32 [R, V] -> probabilities fp64 [R, V].

    Tokens so unlikely that no noise could lift them are impossible here as they are there.
    """
    weights = (shaped.double() - shaped.amax(dim=1, keepdim=True)).exp_()
    weights.masked_fill_(~_survivors(shaped, rows), 0.0)
    return weights.div_(weights.sum(dim=1, keepdim=True))


def draw_from(weights: Tensor, uniforms: AbstractSequence[float]) -> list[int]:
    """One token a row by inversion: weights fp64 [R, V], of any sum above 0; the first at which their sum passes."""
    token_ids: list[int] = invert(weights, torch.tensor(uniforms, dtype=torch.float64, device=weights.device)).tolist()
    return token_ids


def invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """As draw_from: weights fp64 [R, V], uniforms fp64 [R] -> token ids int64 [R]."""
    cumulative = weights.cumsum(dim=1)
    thresholds = cumulative[:, -1] * uniforms
    return (cumulative <= thresholds[:, None]).sum(dim=1)


def chunks(items: AbstractSequence[T], vocab_size: int) -> Iterator[list[T]]:
    """As many at a time as there is room for, at one row of logits each."""
    size = max(1, _CHUNK_LOGITS // vocab_size)
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _draw_with_gumbel(shaped: Tensor, rows: AbstractSequence[SamplingRow]) -> list[int]:
    """One token a row, at temperatures above 0: the highest sum of shaped logit, fp32 [R, V], and noise.

    Noise is computed only for tokens that could win. Where these are few, calls cost more than arithmetic and rows go
    together: 16 rows of 49,152 logits with 110 such tokens each take 2.5 ms on one Zen 5 core, 4.7 ms one by one.
    """
    survivors = _survivors(shaped, rows)
    keys = [row.noise_key(Stream.TOKEN) for row in rows]
    if len(rows) == 1 or int(survivors.sum()) > _MANY_SURVIVORS * len(rows):
        return [_draw_row_with_gumbel(*each) for each in zip(shaped, survivors, keys, strict=True)]
    row_ids, token_ids = survivors.nonzero(as_tuple=True)
    first, second = torch.tensor(keys)[row_ids].unbind(1)
    perturbed = torch.full_like(shaped, -math.inf)
    perturbed[row_ids, token_ids] = shaped[row_ids, token_ids] + gumbel((first, second), token_ids)
    winners: list[int] = perturbed.argmax(dim=1).tolist()
    return winners


def _draw_row_with_gumbel(shaped: Tensor, survivors: Tensor, key: tuple[int, int]) -> int:
    """Shaped logits fp32 [V], survivors bool [V]."""
    token_ids = survivors.nonzero().squeeze(1)
    return int(token_ids[(shaped[token_ids] + gumbel(key, token_ids)).argmax()])


def _survivors(shaped: Tensor, rows: AbstractSequence[SamplingRow]) -> Tensor:
    """bool [R, V]: the tokens that may be drawn, of shaped logits fp32 [R, V].

    The noise spans less than GUMBEL_RANGE, so a token further than that below the most likely one cannot win.
    """
    survivors = shaped >= shaped.amax(dim=1, keepdim=True) - (GUMBEL_RANGE + _PRUNING_SLACK)
    truncating = [i for i, row in enumerate(rows) if truncates(row.sequence.params)]
    if truncating:
        (own,) = on_device(shaped.device, np.int64, truncating)
        survivors[own] = _truncate(shaped[own], [rows[i].sequence.params for i in truncating])
    return survivors


def truncates(params: SamplingParams) -> bool:
    return params.top_k != 0 or params.top_p != 1.0 or params.min_p != 0.0


def _truncate(shaped: Tensor, params: AbstractSequence[SamplingParams]) -> Tensor:
    """bool [R, V]: what top-k, then top-p within that, then min-p keep of shaped logits fp32 [R, V].

    Ties at a border go to the lowest ids.
    """
    vocab_size, device = shaped.shape[1], shaped.device
    (top_k,) = on_device(device, np.int64, [each.top_k or vocab_size for each in params])
    # No sum exceeds infinity: where top-p is off, it does not cut what rounding adds nothing for.
    limits = [each.top_p if each.top_p < 1.0 else math.inf for each in params]
    top_p, min_p = on_device(device, np.float64, limits, [each.min_p for each in params])
    top_k = top_k[:, None]
    values, order = shaped.sort(dim=1, descending=True, stable=True)
    ranks = torch.arange(vocab_size, device=device)
    weights = (values.double() - values[:, :1]).exp_().masked_fill_(ranks >= top_k, 0.0)
    cumulative = weights.cumsum(dim=1)
    # The first token at which the sum reaches top_p is the last one kept.
    num_below = (cumulative < top_p[:, None] * cumulative[:, -1:]).sum(dim=1, keepdim=True)
    is_kept = (ranks <= num_below) & (ranks < top_k) & (weights >= min_p[:, None]) & (values > -math.inf)
    return torch.zeros_like(is_kept).scatter_(1, order, is_kept)
