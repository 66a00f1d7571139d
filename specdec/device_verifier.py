"""Drafts against the target on the device: as the Verifier does, by kernels, with one wait for all of a pass's tokens.

Coupled verification gives the Verifier's tokens. Rejection and block add up in another order, which shows in the last
bits of a sum: they keep the law, and nearly always the token. The terms are those of verifier.py.

R rows, B sequences, V vocabulary (the logits' width).
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as AbstractSequence
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from specdec.batch import Batch
from specdec.device_sampler import CHUNK_PROBS, DeviceSampler
from specdec.device_tensors import on_device
from specdec.kernels.verify_by_rule import verify_by_rule
from specdec.kernels.verify_coupled import verify_coupled
from specdec.noise import Stream, uniform
from specdec.proposers.base import DraftDistribution, Proposal
from specdec.speculative import Verification
from specdec.verifier import Outcome, Walk, token_logprob, walks_of

_BYTES_PER_DRAFT_PROB: Final = 16
"""fp64 of target and draft each."""
_BYTES_PER_CHUNK_PROB: Final = 64
"""Of what is alive at once while probabilities are worked out, sorting included."""
_RULES: Final[dict[Verification, Literal["rejection", "block"]]] = {
    Verification.REJECTION: "rejection",
    Verification.BLOCK: "block",
}


def verification_bytes(vocab_size: int, max_draft_tokens: int) -> int:
    """What verifying takes of the device's memory beside the logits, at most."""
    largest = (1 + max_draft_tokens) * vocab_size
    of_drafts = _BYTES_PER_DRAFT_PROB * max(CHUNK_PROBS, largest)
    return of_drafts + _BYTES_PER_CHUNK_PROB * max(CHUNK_PROBS, vocab_size)


class DeviceVerifier:
    """The GPU path."""

    def __init__(
        self,
        sampler: DeviceSampler,
        pieces: AbstractSequence[bytes],
        device: torch.device,
        *,
        synthetic_acceptance_rates: AbstractSequence[float] = (),
    ) -> None:
        """`pieces` is what each token id adds to a text, special tokens included."""
        self._sampler = sampler
        self._pieces = pieces
        self._device = device
        self._synthetic_rates = synthetic_acceptance_rates

    def verify(
        self,
        logits: Tensor,
        mask_rows: AbstractSequence[AbstractSequence[int | None]],
        batch: Batch,
        proposals: AbstractSequence[Proposal],
    ) -> list[Outcome]:
        rows, walks = walks_of(mask_rows, batch, proposals)
        if not rows:
            # A pass over prompts alone gives nothing to wait for, and its step would seem to take no time.
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            return [Outcome([], 0, 0, []) for _ in walks]
        explained = [row for walk in walks if _num_top(walk) is not None for row in _row_ids([walk])]
        raw = logits.index_select(0, on_device(self._device, np.int64, explained)[0]) if explained else None
        self._sampler.shape(logits, rows)
        target_ids = self._sampler.draw(logits, rows)
        by_rule = [walk for walk in walks if walk.num_drafted > 0 and walk.goes_by_rule]
        passes = [(walks, self._coupled(target_ids, walks))]
        for rule in _RULES:
            own = [walk for walk in by_rule if walk.rows[0].sequence.plan.verification is rule]
            chunks = _chunks(own, logits.shape[1])
            passes += [(chunk, self._by_rule(logits, target_ids, chunk, rule)) for chunk in chunks]
        # The one wait. A walk by rule is in two passes, of which the later counts.
        numbers = iter(torch.cat([each for _, result in passes for each in result]).tolist())
        outcomes: dict[int, Outcome] = {}
        for own, (counts, _) in passes:
            accepted = [next(numbers) for _ in range(counts.shape[0])]
            for walk, num_accepted in zip(own, accepted, strict=True):
                emitted = [next(numbers) for _ in walk.rows]
                outcomes[id(walk)] = Outcome(
                    emitted[: num_accepted + 1], num_accepted, walk.num_drafted if walk.rows else 0, []
                )
        results = [outcomes[id(walk)] for walk in walks]
        if raw is not None:
            self._explain(raw, walks, results)
        return results

    def _coupled(self, target_ids: Tensor, walks: AbstractSequence[Walk]) -> tuple[Tensor, Tensor]:
        """int64 [R] -> accepted tokens int64 [B] and emitted ones int64 [R], after each sequence's last of any id."""
        given: list[int] = []
        for walk in walks:
            if walk.rows and walk.is_synthetic:
                accepted = (i for i in range(walk.num_drafted) if walk.is_given(i, self._synthetic_rates))
                given += [walk.first_row + i for i in accepted]
        draft_ids, starts, given_rows = on_device(self._device, np.int64, _draft_ids(walks), _row_starts(walks), given)
        if given:
            # As if the target had drawn them.
            target_ids = target_ids.index_copy(0, given_rows, draft_ids[given_rows])
        num_accepted, output_ids = self._outputs(len(walks), target_ids.shape[0])
        verify_coupled(target_ids, draft_ids, starts.int(), num_accepted, output_ids, max_num_rows=_max_num_rows(walks))
        return num_accepted.long(), output_ids

    def _by_rule(
        self, logits: Tensor, target_ids: Tensor, walks: AbstractSequence[Walk], verification: Verification
    ) -> tuple[Tensor, Tensor]:
        """As `_coupled`, of walks that are some of the pass's: shaped logits fp32 [R, V], target_ids int64 [R]."""
        rows = [row for walk in walks for row in walk.rows]
        drawn_from = [_distributions(walk) for walk in walks]
        known = [each for own in drawn_from for each in own if each is not None]
        sizes = [len(each.token_ids) for each in known]
        places = iter(range(len(known)))
        # After its last draft token a sequence has one more row, of none.
        draft_rows = [-1 if each is None else next(places) for own in drawn_from for each in (*own, None)]
        chosen, draft_ids, starts, of_draft, counts = on_device(
            self._device, np.int64, _row_ids(walks), _draft_ids(walks), _row_starts(walks), draft_rows, sizes
        )
        accepting, recovering = on_device(
            self._device,
            np.float64,
            [uniform(row.noise_key(Stream.ACCEPT)) for row in rows],
            [uniform(row.noise_key(Stream.RECOVERED)) for row in rows],
        )
        target_probs = self._sampler.distributions(logits, rows, chosen)
        draft_probs = torch.zeros(max(1, len(known)), logits.shape[1], dtype=torch.float64, device=self._device)
        if known:
            owners = torch.arange(len(known), device=self._device)
            owners = owners.repeat_interleave(counts, output_size=sum(sizes))
            token_ids = torch.cat([each.token_ids for each in known])
            draft_probs[owners, token_ids] = torch.cat([each.probs for each in known])
        num_accepted, output_ids = self._outputs(len(walks), len(rows))
        verify_by_rule(
            target_probs,
            draft_probs,
            of_draft.int(),
            draft_ids,
            target_ids.index_select(0, chosen),
            accepting,
            recovering,
            starts.int(),
            num_accepted,
            output_ids,
            rule=_RULES[verification],
            max_num_rows=_max_num_rows(walks),
        )
        return num_accepted.long(), output_ids

    def _outputs(self, num_sequences: int, num_rows: int) -> tuple[Tensor, Tensor]:
        """int32 [B], int64 [R]"""
        return (
            torch.empty(num_sequences, dtype=torch.int32, device=self._device),
            torch.zeros(num_rows, dtype=torch.int64, device=self._device),
        )

    def _explain(self, raw: Tensor, walks: AbstractSequence[Walk], outcomes: AbstractSequence[Outcome]) -> None:
        """Add the log-probabilities that are asked for: raw fp32 [R', V], the rows of those walks as they came."""
        emitted: list[tuple[Outcome, int, int]] = []
        row_ids: list[int] = []
        first_row = 0
        for walk, outcome in zip(walks, outcomes, strict=True):
            num_top = _num_top(walk)
            if num_top is not None:
                emitted += [(outcome, token_id, num_top) for token_id in outcome.token_ids]
                row_ids += range(first_row, first_row + len(outcome.token_ids))
                first_row += len(walk.rows)
        chosen, token_ids = on_device(self._device, np.int64, row_ids, [token_id for _, token_id, _ in emitted])
        logprobs = torch.log_softmax(raw.index_select(0, chosen), dim=-1)
        own = logprobs.gather(1, token_ids[:, None]).squeeze(1).tolist()
        # Rows beyond the tokenizer's ids, which pad the vocabulary, are no tokens.
        top = logprobs[:, : len(self._pieces)].topk(max(num_top for _, _, num_top in emitted))
        likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        for (outcome, token_id, num_top), logprob, (ids, values) in zip(emitted, own, likeliest, strict=True):
            others = zip(ids[:num_top], values[:num_top], strict=True)
            outcome.logprobs.append(
                token_logprob(
                    self._pieces, token_id, logprob, tuple(token_logprob(self._pieces, *each) for each in others)
                )
            )


def _num_top(walk: Walk) -> int | None:
    """How many of the likeliest tokens are reported beside each of a sequence's own; None where nothing is."""
    return walk.rows[0].sequence.params.logprobs if walk.rows else None


def _distributions(walk: Walk) -> AbstractSequence[DraftDistribution | None]:
    """One a draft token."""
    return walk.proposal.distributions or [None] * walk.num_drafted


def _row_ids(walks: AbstractSequence[Walk]) -> list[int]:
    """Of all their rows among the pass's."""
    return [walk.first_row + i for walk in walks for i in range(len(walk.rows))]


def _draft_ids(walks: AbstractSequence[Walk]) -> list[int]:
    """What is drafted at each of their rows; 0 at a sequence's last, where nothing is."""
    return [token_id for walk in walks if walk.rows for token_id in (*walk.proposal.token_ids, 0)]


def _row_starts(walks: AbstractSequence[Walk]) -> list[int]:
    starts = [0]
    for walk in walks:
        starts.append(starts[-1] + len(walk.rows))
    return starts


def _max_num_rows(walks: AbstractSequence[Walk]) -> int:
    return max(len(walk.rows) for walk in walks)


def _chunks(walks: AbstractSequence[Walk], vocab_size: int) -> Iterator[list[Walk]]:
    """As many at a time as there is room for."""
    chunk: list[Walk] = []
    num_rows = 0
    for walk in walks:
        if chunk and (num_rows + len(walk.rows)) * vocab_size > CHUNK_PROBS:
            yield chunk
            chunk, num_rows = [], 0
        chunk.append(walk)
        num_rows += len(walk.rows)
    if chunk:
        yield chunk
