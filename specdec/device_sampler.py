"""Logits to tokens on the device: as the Sampler does, by kernels.

What the Sampler says row by row, this says for all rows at once: the host lists the numbers of a pass, they go to the
device in a few copies, and bias, penalties and forbidden ends are edits of single logits there. Nothing waits for the
device before the tokens come back, but for drafts that are verified by what they were drawn from.

R rows, V vocabulary (the logits' width, padded ids included).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence as AbstractSequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from specdec.device_tensors import on_device
from specdec.grammars import MaskTable
from specdec.kernels.sample import sample
from specdec.kernels.token_mask import apply_token_mask
from specdec.mask_mirror import MaskMirror
from specdec.noise import Stream, uniform
from specdec.proposers.base import DraftDistribution
from specdec.sampler import SamplingRow, distributions, divisor_of, invert, penalises, truncates

CHUNK_PROBS: Final = 2**21
"""Probabilities are worked out for as many rows at a time as have so many, or one by one."""


class DeviceSampler:
    """Draws one token a row: the GPU path."""

    def __init__(self, mask_table: MaskTable, num_token_ids: int, device: torch.device) -> None:
        self._masks = MaskMirror(mask_table, device)
        self._num_token_ids = num_token_ids
        """Ids at or above this are padding of the embedding and can never be drawn."""
        self._device = device

    def sample_drafts(
        self, logits: Tensor, rows: AbstractSequence[SamplingRow]
    ) -> list[tuple[int, DraftDistribution | None]]:
        self.shape(logits, rows)
        by_distribution = [i for i, row in enumerate(rows) if row.draws_by_distribution]
        drawn = self.draw(logits, rows)
        known: dict[int, DraftDistribution] = {}
        size = max(1, CHUNK_PROBS // logits.shape[1])
        for start in range(0, len(by_distribution), size):
            chunk = by_distribution[start : start + size]
            own = [rows[i] for i in chunk]
            (chosen,) = on_device(self._device, np.int64, chunk)
            probs = self.distributions(logits, own, chosen)
            (uniforms,) = on_device(self._device, np.float64, [uniform(row.noise_key(Stream.DRAFT)) for row in own])
            drawn.index_copy_(0, chosen, invert(probs, uniforms))
            kept = probs > 0.0
            sizes = kept.sum(dim=1).tolist()
            # Where they are among all of the chunk's; finding that out waits for the device.
            places = kept.view(-1).nonzero().squeeze(1)
            ids, own_probs = torch.split(places % probs.shape[1], sizes), torch.split(probs.view(-1)[places], sizes)
            known.update(zip(chunk, map(DraftDistribution, ids, own_probs), strict=True))
        return [(token_id, known.get(i)) for i, token_id in enumerate(drawn.tolist())]

    def shape(self, logits: Tensor, rows: AbstractSequence[SamplingRow]) -> None:
        """Everything before temperature, in place: logits fp32 [R, V], contiguous."""
        if not rows:
            return
        vocab_size = logits.shape[1]
        constrained = [i for i, row in enumerate(rows) if row.mask_row is not None]
        mask_rows = [row.mask_row for row in rows if row.mask_row is not None]
        edits = _Edits(rows, vocab_size)
        logits[:, self._num_token_ids :] = -math.inf
        if not constrained and not edits:
            return
        mask_ids, masked, *places = on_device(self._device, np.int64, mask_rows, constrained, *edits.places)
        if constrained:
            apply_token_mask(logits, self._masks.rows(mask_rows), mask_ids, rows=masked)
        if not edits:
            return
        biased, repeated, counted, forbidden = places
        biases, repetitions, amounts = on_device(self._device, np.float32, *edits.numbers)
        every = logits.view(-1)
        if edits.biased:
            every[biased] += biases
        if edits.repeated:
            values = every[repeated]
            every[repeated] = torch.where(values > 0, values / repetitions, values * repetitions)
        if edits.counted:
            every[counted] -= amounts
        if edits.forbidden:
            every[forbidden] = -math.inf

    def draw(self, logits: Tensor, rows: AbstractSequence[SamplingRow]) -> Tensor:
        """The target's own token at every row, of what `shape` left: logits fp32 [R, V] -> int64 [R]."""
        every = [row.sequence.params for row in rows]
        words = [
            word
            for row, params in zip(rows, every, strict=True)
            # At temperature 0 there is no noise.
            for word in ((0, 0) if params.temperature == 0.0 else row.noise_key(Stream.TOKEN))
        ]
        keys, top_k = on_device(
            self._device, np.int64, words, [min(params.top_k, self._num_token_ids) for params in every]
        )
        temperatures, top_p, min_p = on_device(
            self._device,
            np.float64,
            [0.0 if params.temperature == 0.0 else divisor_of(params.temperature) for params in every],
            [params.top_p for params in every],
            [params.min_p for params in every],
        )
        has_border = any(truncates(params) for params in every)
        output = torch.empty(len(rows), dtype=torch.int64, device=self._device)
        sample(
            logits,
            keys.view(-1, 2),
            temperatures.float(),
            output,
            num_token_ids=self._num_token_ids,
            top_k=top_k.int() if has_border else None,
            top_p=top_p if has_border else None,
            min_p=min_p if has_border else None,
        )
        return output

    def distributions(self, logits: Tensor, rows: AbstractSequence[SamplingRow], chosen: Tensor) -> Tensor:
        """What `draw` draws from, at temperatures above 0: probabilities fp64 [len(rows), V] of the chosen rows.

        logits fp32 [R, V] as `shape` left them; `rows` are the chosen ones, int64 [len(rows)].
        """
        (divisors,) = on_device(self._device, np.float32, [divisor_of(row.sequence.params.temperature) for row in rows])
        size = max(1, CHUNK_PROBS // logits.shape[1])
        probs = torch.empty(len(rows), logits.shape[1], dtype=torch.float64, device=self._device)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            probs[part] = distributions(logits.index_select(0, chosen[part]) / divisors[part, None], rows[part])
        return probs


class _Edits:
    """Changes of single logits by place among all R * V; each list names a place once."""

    def __init__(self, rows: AbstractSequence[SamplingRow], vocab_size: int) -> None:
        self.biased: list[int] = []
        self._biases: list[float] = []
        self.repeated: list[int] = []
        self._repetitions: list[float] = []
        self.counted: list[int] = []
        self._amounts: list[float] = []
        self.forbidden: list[int] = []
        for i, row in enumerate(rows):
            sequence, params, start = row.sequence, row.sequence.params, i * vocab_size
            if params.logit_bias:
                self.biased += [start + token_id for token_id in params.logit_bias]
                self._biases += params.logit_bias.values()
            if penalises(params):
                self._penalise(row, start)
            if params.min_tokens > sequence.num_output_tokens + len(row.preceding_draft_ids):
                self.forbidden += [start + each for each in sequence.eos_token_ids.union(params.stop_token_ids)]

    def __bool__(self) -> bool:
        return any(self.places)

    @property
    def places(self) -> tuple[list[int], ...]:
        """In the order in which they are edited."""
        return self.biased, self.repeated, self.counted, self.forbidden

    @property
    def numbers(self) -> tuple[list[float], ...]:
        """What is added, what is divided or multiplied by, and what is subtracted."""
        return self._biases, self._repetitions, self._amounts

    def _penalise(self, row: SamplingRow, start: int) -> None:
        sequence, params = row.sequence, row.sequence.params
        if params.repetition_penalty != 1.0:
            seen = {*sequence.token_ids, *row.preceding_draft_ids}
            self.repeated += [start + token_id for token_id in seen]
            self._repetitions += [params.repetition_penalty] * len(seen)
        if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
            counts = Counter(sequence.output_token_ids)
            counts.update(row.preceding_draft_ids)
            self.counted += [start + token_id for token_id in counts]
            # In fp32 at every step, as the Sampler does.
            times = np.fromiter(counts.values(), np.float32, len(counts))
            amounts = times * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
            self._amounts += amounts.tolist()
