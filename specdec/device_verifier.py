"""Drafts against the target on the device: as the Verifier does, by kernels, with one wait for all of a pass's tokens.

Coupled verification gives the Verifier's tokens. Rejection and block add up in another order, which shows in the last
bits of a sum: they keep the law, and nearly always the token. The terms are those of verifier.py.

R rows, B sequences, V vocabulary (the logits' width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as AbstractSequence
from functools import partial
from itertools import accumulate
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from specdec.batch import Batch
from specdec.captured_sampling import KINDS, CapturedSampling, DrawnStep
from specdec.device_logprobs import explain, explained_logprobs, explained_rows, num_top_of
from specdec.device_sampler import CHUNK_PROBS, DeviceSampler
from specdec.device_tensors import HostCopy, as_bytes, named_on_device
from specdec.graph_buckets import SamplingBucket
from specdec.graph_capture import GraphCapture
from specdec.kernels.verify_by_rule import verify_by_rule
from specdec.kernels.verify_coupled import verify_coupled
from specdec.noise import Stream, uniform
from specdec.proposers.base import Proposal
from specdec.row_group import RowBatch, RowGroup
from specdec.speculative import SYNTHETIC, SpeculationPlan, Verification
from specdec.verifier import Outcome, PendingOutcomes, Walk

_BYTES_PER_DRAFT_PROB: Final = 40
"""fp64 of target and draft each, and of the draft's tokens where they lie in one piece: whose, which, and what."""
_BYTES_PER_CHUNK_PROB: Final = 64
"""Of what is alive at once while probabilities are worked out, sorting included."""
_WALKED_PROBS: Final = 2**23
"""Of the target, and as many of drafts, that are walked in one launch. A sequence is walked by one program, row after
row, so that many take about as long as one; 64 sequences of 5 rows and 128,000 tokens take five launches."""
_RULES: Final[dict[Verification, Literal["rejection", "block"]]] = {
    Verification.REJECTION: "rejection",
    Verification.BLOCK: "block",
}


def verification_bytes(vocab_size: int, max_draft_tokens: int) -> int:
    """What verifying takes of the device's memory beside the logits, at most."""
    largest = (1 + max_draft_tokens) * vocab_size
    of_drafts = _BYTES_PER_DRAFT_PROB * max(_WALKED_PROBS, largest)
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
        self._captured: CapturedSampling | None = None

    @property
    def num_graphs(self) -> int:
        return 0 if self._captured is None else len(self._captured)

    def capture(
        self,
        logits: Tensor,
        buckets: AbstractSequence[SamplingBucket],
        graphs: GraphCapture,
        *,
        report: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Steps that fit one of the buckets are replayed from now on; `report` is told how many graphs there are.

        logits fp32 [R, V]: where passes leave them, and as many rows as the largest bucket has. Raises RuntimeError
        where the device refuses; all steps are then launched kernel by kernel.
        """
        sampler = self._sampler
        captured = CapturedSampling(logits, buckets, graphs, num_token_ids=sampler.num_token_ids)
        for bucket in buckets:
            for kind in KINDS:
                report(len(captured))
                captured.capture(bucket, kind, sampler.mask_rows)
        report(len(captured))
        self._captured = captured

    def verify(
        self,
        logits: Tensor,
        mask_rows: AbstractSequence[AbstractSequence[int | None]],
        batch: Batch,
        proposals: AbstractSequence[Proposal],
    ) -> list[Outcome]:
        return self.launch(logits, mask_rows, batch, proposals).wait()

    def launch(
        self,
        logits: Tensor,
        mask_rows: AbstractSequence[AbstractSequence[int | None]],
        batch: Batch,
        proposals: AbstractSequence[Proposal],
    ) -> PendingOutcomes:
        drafted = [
            (RowGroup(scheduled.sequence, proposal.token_ids, masks), proposal)
            for scheduled, proposal, masks in zip(batch.scheduled, proposals, mask_rows, strict=True)
            if masks
        ]
        if not drafted:
            # A pass over prompts alone gives nothing to wait for, and its step would seem to take no time.
            done: torch.cuda.Event | None = None
            if self._device.type == "cuda":
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                done.record(torch.cuda.current_stream(self._device))
            return PendingOutcomes(partial(_nothing_emitted, len(proposals), done))
        rows = RowBatch([group for group, _ in drafted])
        starts = rows.starts.tolist()
        # The others need not be looked at token by token.
        walks = {
            i: Walk(proposal, group.rows(), starts[i])
            for i, (group, proposal) in enumerate(drafted)
            if proposal.token_ids and _is_walked(group.sequence.plan)
        }
        given_rows = [row for walk in walks.values() for row in self._given_rows(walk)]
        explained = explained_rows(rows)
        sampler = self._sampler
        parts = sampler.parts(rows) | rows.draft_parts()
        parts["row_starts"] = (np.int32, rows.starts)
        if given_rows:
            parts["given_rows"] = (np.int64, given_rows)
        if explained:
            parts["explained_rows"] = (np.int64, explained)
        # Tokens that are accepted whatever the target draws stand between the two that a graph does in one.
        captured = None if given_rows else self._captured
        step = None if captured is None else captured.send(logits, rows, parts)
        if step is None:
            given = sampler.moved(parts)
        else:
            given = step.given
            sampler.write(given)
        raw = logits.index_select(0, given["explained_rows"]) if explained else None
        sampler.edit(logits, rows, given)
        drawn: DrawnStep | None = None
        if captured is None or step is None:
            target_ids = sampler.draw_given(logits, given)
            num_accepted, output_ids = self._coupled(rows, given, target_ids)
        else:
            drawn = captured.replay(step, sampler.mask_rows)
            target_ids, num_accepted = drawn.target_ids, drawn.num_accepted
            output_ids = drawn.output_ids[: rows.num_rows]
        by_rule = {i: walk for i, walk in walks.items() if walk.goes_by_rule}
        sampler.mask(logits, rows, _row_ids(by_rule.values()))
        for rule in _RULES if by_rule else ():
            own_rule = {i: walk for i, walk in by_rule.items() if walk.rows[0].sequence.plan.verification is rule}
            for chunk in _chunks(own_rule, logits.shape[1]):
                self._walk_by_rule(logits, target_ids, chunk, rule, num_accepted, output_ids)
        results = [output_ids, num_accepted]
        if raw is not None:
            emitted_ids = output_ids.index_select(0, given["explained_rows"])
            results += explained_logprobs(raw, emitted_ids, num_top_of(rows), num_token_ids=len(self._pieces))
        if drawn is None or raw is not None:
            joined = as_bytes(results)
        else:
            # What a replay leaves is in one piece as it is, with what fills it up; it is copied before the next one.
            joined, results = drawn.joined, [drawn.output_ids, drawn.num_accepted]
        have_rows = [bool(masks) for masks in mask_rows]
        wait = partial(self._arrived, HostCopy(self._device, joined, results), drafted, starts, have_rows)
        return PendingOutcomes(wait, output_ids)

    def _arrived(
        self,
        copy: HostCopy,
        drafted: AbstractSequence[tuple[RowGroup, Proposal]],
        starts: AbstractSequence[int],
        have_rows: AbstractSequence[bool],
    ) -> list[Outcome]:
        """Of the sequences that have rows of logits, and of the others; the one wait."""
        emitted, accepted, *explanation = copy.arrays()
        outcomes = list(_outcomes(drafted, starts, emitted.tolist(), accepted.tolist()))
        if explanation:
            explain(self._pieces, [group for group, _ in drafted], outcomes, *explanation)
        own = iter(outcomes)
        return [next(own) if has_rows else Outcome([], 0, 0, []) for has_rows in have_rows]

    def _given_rows(self, walk: Walk) -> list[int]:
        """Of a synthetic draft the rows of the tokens that are accepted whatever the target draws."""
        return [walk.first_row + i for i in walk.given(self._synthetic_rates)]

    def _coupled(self, rows: RowBatch, given: Mapping[str, Tensor], target_ids: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [R] -> accepted tokens int32 [B] and emitted ones int64 [R], after each sequence's last of any id."""
        if "given_rows" in given:
            # As if the target had drawn them.
            own = given["given_rows"]
            target_ids = target_ids.index_copy(0, own, given["draft_ids"][own])
        num_accepted, output_ids = self._outputs(len(rows.groups), rows.num_rows)
        verify_coupled(
            target_ids,
            given["draft_ids"],
            given["row_starts"],
            num_accepted,
            output_ids,
            max_num_rows=rows.max_num_rows,
        )
        return num_accepted, output_ids

    def _walk_by_rule(
        self,
        logits: Tensor,
        target_ids: Tensor,
        walks: Mapping[int, Walk],
        verification: Verification,
        num_accepted: Tensor,
        output_ids: Tensor,
    ) -> None:
        """Walk some of the pass's drafts, each under its place among all, into their parts of the two last.

        Edited and masked logits fp32 [R, V], target_ids int64 [R], num_accepted int32 [B], output_ids int64 [R].
        """
        every = list(walks.values())
        rows = [row for walk in every for row in walk.rows]
        drawn_from = [walk.proposal.distributions or [None] * walk.num_drafted for walk in every]
        known = [each for own in drawn_from for each in own if each is not None]
        sizes = [len(each.token_ids) for each in known]
        places = iter(range(len(known)))
        given = named_on_device(
            self._device,
            {
                "owners": (np.int64, list(walks)),
                "chosen": (np.int64, _row_ids(every)),
                # After its last draft token a sequence has one more row, of none.
                "draft_ids": (np.int64, [token_id for walk in every for token_id in (*walk.proposal.token_ids, 0)]),
                "draft_rows": (
                    np.int32,
                    [-1 if each is None else next(places) for own in drawn_from for each in (*own, None)],
                ),
                "row_starts": (np.int32, list(accumulate((len(walk.rows) for walk in every), initial=0))),
                "sizes": (np.int64, sizes),
                "accepting": (np.float64, [uniform(row.noise_key(Stream.ACCEPT)) for row in rows]),
                "recovering": (np.float64, [uniform(row.noise_key(Stream.RECOVERED)) for row in rows]),
            },
        )
        chosen = given["chosen"]
        target_probs = self._sampler.distributions(logits, rows, chosen)
        draft_probs = torch.zeros(max(1, len(known)), logits.shape[1], dtype=torch.float64, device=self._device)
        if known:
            owners = torch.arange(len(known), device=self._device)
            owners = owners.repeat_interleave(given["sizes"], output_size=sum(sizes))
            token_ids = torch.cat([each.token_ids for each in known])
            draft_probs[owners, token_ids] = torch.cat([each.probs for each in known])
        own_accepted, own_output_ids = self._outputs(len(every), len(rows))
        verify_by_rule(
            target_probs,
            draft_probs,
            given["draft_rows"],
            given["draft_ids"],
            target_ids.index_select(0, chosen),
            given["accepting"],
            given["recovering"],
            given["row_starts"],
            own_accepted,
            own_output_ids,
            rule=_RULES[verification],
            max_num_rows=max(len(walk.rows) for walk in every),
        )
        num_accepted.index_copy_(0, given["owners"], own_accepted)
        output_ids.index_copy_(0, chosen, own_output_ids)

    def _outputs(self, num_sequences: int, num_rows: int) -> tuple[Tensor, Tensor]:
        """int32 [B], int64 [R]"""
        return (
            torch.empty(num_sequences, dtype=torch.int32, device=self._device),
            torch.zeros(num_rows, dtype=torch.int64, device=self._device),
        )


def _nothing_emitted(num_sequences: int, done: torch.cuda.Event | None) -> list[Outcome]:
    if done is not None:
        done.synchronize()
    return [Outcome([], 0, 0, []) for _ in range(num_sequences)]


def _is_walked(plan: SpeculationPlan) -> bool:
    """Whether a draft's tokens may be accepted for another reason than that the target draws them."""
    return plan.verification is not Verification.COUPLED or SYNTHETIC in plan.methods


def _row_ids(walks: Iterable[Walk]) -> list[int]:
    """Of all their rows among the pass's."""
    return [walk.first_row + i for walk in walks for i in range(len(walk.rows))]


def _outcomes(
    drafted: AbstractSequence[tuple[RowGroup, Proposal]],
    starts: AbstractSequence[int],
    emitted: AbstractSequence[int],
    accepted: AbstractSequence[int],
) -> Iterator[Outcome]:
    """One a group: of all rows' emitted ids those of its accepted tokens and one more."""
    for (_, proposal), start, num_accepted in zip(drafted, starts, accepted, strict=False):
        token_ids = list(emitted[start : start + num_accepted + 1])
        yield Outcome(token_ids, num_accepted, len(proposal.token_ids), [])


def _chunks(walks: Mapping[int, Walk], vocab_size: int) -> Iterator[dict[int, Walk]]:
    """As many at a time as there is room for."""
    chunk: dict[int, Walk] = {}
    num_rows = 0
    for place, walk in walks.items():
        if chunk and (num_rows + len(walk.rows)) * vocab_size > _WALKED_PROBS:
            yield chunk
            chunk, num_rows = {}, 0
        chunk[place] = walk
        num_rows += len(walk.rows)
    if chunk:
        yield chunk
