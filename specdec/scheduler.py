"""Scheduler: who runs in a step, with how many tokens; and what became of it afterwards.

There are no prefill and decode phases: a sequence needs the tokens it has beyond those computed, and one token budget
is shared out over all of them, oldest first. A step that lacks blocks preempts the youngest running sequence, which
starts over from its tokens. The oldest is never preempted, and admission refused what the empty pool could not hold,
so every sequence finishes.

Verified tokens come first: what all of them leave of budget and blocks is shared out among drafts, which therefore
never keep a sequence waiting.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as AbstractSequence
from typing import Final

from specdec.batch import Batch, ScheduledSequence
from specdec.block_pool import BlockPool
from specdec.faults import FaultLog, SequenceFaultError, attributed_to
from specdec.next_share import NextShare, next_shares
from specdec.proposers.base import Proposal
from specdec.request import DraftTrace, FinishReason, TokenDelta
from specdec.sequence import Sequence, SequenceStatus, SpeculationCounts
from specdec.sequence_blocks import SequenceBlocks
from specdec.step_tokens import StepTokens
from specdec.stop import StopChecker
from specdec.verifier import Outcome

_MIN_DRAFT_BUDGET: Final = 8
"""Tokens that a draft is given where the budget has them, though others then get none."""


class Scheduler:
    """Owns every sequence from admission to its end, and all their blocks."""

    def __init__(
        self,
        block_pool: BlockPool,
        *,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_logits_rows: int,
        stop_checker: StopChecker,
    ) -> None:
        """max_logits_rows: of those whose text a step reaches the end of, with their drafts; at least max_num_seqs."""
        self.block_pool = block_pool
        self._blocks = SequenceBlocks(block_pool, block_size)
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_logits_rows = max_logits_rows
        self._stop_checker = stop_checker
        self.running: list[Sequence] = []
        """In order of admission: the oldest first."""
        self.waiting: deque[Sequence] = deque()
        self._turn = 0
        """The highest of those admitted."""
        self._ahead: dict[int, NextShare] = {}
        """What the next step was promised, by the sequence's id()."""
        self.num_preemptions = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_finished: dict[FinishReason, int] = {}
        self.speculation = SpeculationCounts()
        self.step_tokens = StepTokens()
        """Of prompts, as far as a step computed them, and generated."""
        self.faults = FaultLog()

    @property
    def has_unfinished(self) -> bool:
        return bool(self.running or self.waiting)

    def num_waiting_by_reason(self) -> dict[str, int]:
        """How many wait for a place or for blocks, for them once more after a preemption, or for their leader."""
        counts = {"capacity": 0, "preempted": 0, "deferred": 0}
        # A copy in one step: this is also read from other threads while the engine schedules.
        for sequence in self.waiting.copy():
            is_new = sequence.admitted_at is None
            counts["deferred" if sequence.waits_for_leader else "capacity" if is_new else "preempted"] += 1
        return counts

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that the empty pool can hold to its last token.

        Those of different callers take turns: one that queues many is not served before all others (start-time fair
        queueing, Goyal et al. 1996, a turn for each sequence).
        """
        own_turns = [waiting.turn for waiting in self.waiting if waiting.caller == sequence.caller]
        sequence.turn = max([self._turn, *(turn + 1 for turn in own_turns)])
        turns = [waiting.turn for waiting in self.waiting]
        index = len(turns)
        while index and turns[index - 1] > sequence.turn:
            index -= 1
        self.waiting.insert(index, sequence)
        sequence.queued_at = time.monotonic()

    def abort(self, request_id: str) -> list[Sequence]:
        """End every choice of a request and free its blocks at once; returns those that were unfinished."""
        aborted = [s for s in (*self.running, *self.waiting) if s.request_id == request_id]
        for sequence in aborted:
            try:
                self._finish(sequence, FinishReason.ABORT)
            except SequenceFaultError as fault:
                self.end(fault)
        if aborted:
            self._forget_finished()
        return aborted

    def schedule(self) -> Batch:
        """Share out the step's tokens and reserve the slots that they and their drafts need.

        After `reserve_ahead` those it was told of get what it was told, and nobody is admitted: the pass for them is
        under way, and whoever came now would be computed after it in any case.
        """
        ahead, self._ahead = self._ahead, {}
        budget = self._max_num_batched_tokens
        # Of a step that was given up nothing holds, as it has computed nothing.
        promised = [
            ScheduledSequence(each, said.num_tokens, 0, 0)
            for each in self.running
            if (said := ahead.get(id(each))) is not None and said.start_position == each.num_computed_tokens
        ]
        if promised:
            return Batch(self._with_draft_slots(promised, budget - sum(map(_cost, promised))))
        shares: list[ScheduledSequence] = []
        num_preemptions_before = self.num_preemptions
        while len(shares) < len(self.running) and budget > 0:
            share = self._share(self.running[len(shares)], budget)
            if not self._reserve_or_preempt(share):
                # The sequence itself was the youngest: it and everything after it has left the running list.
                break
            shares.append(share)
            budget -= _cost(share)
        if self.num_preemptions == num_preemptions_before:
            while self.waiting and budget > 0 and len(self.running) < self._max_num_seqs:
                sequence = self._next_waiting()
                if sequence is None:
                    break
                self._blocks.attach_prefix(sequence)
                share = self._share(sequence, budget)
                if not self._blocks.reserve(sequence, share.num_tokens):
                    self._blocks.drop(sequence)
                    break
                self._admit(sequence)
                shares.append(share)
                budget -= _cost(share)
        return Batch(self._with_draft_slots(shares, budget))

    def next_shares(self, batch: Batch) -> list[NextShare]:
        """What the next step will give the running sequences if none ends with this one's tokens."""
        return next_shares(self.running, batch, self._max_num_batched_tokens)

    def reserve_ahead(self, shares: AbstractSequence[NextShare]) -> bool:
        """Hold the next `schedule` to these shares, of the sequences that are there then, and give each its slots.

        To be called where nothing was drafted in this step. False, and nothing held, where a block is lacking or the
        next step would admit somebody. Whoever comes later waits for a pass more. With a long chunk that is a long
        pass, but of tokens that would have been computed beside his own and before his answer in any case; he loses
        one reading of the weights. A chunk that was computed ahead and then done again would cost its whole pass, tens
        of milliseconds on a GPU, where launching it ahead saves the few that the host takes: so what an answer's end
        leaves of the budget stays unused for a step.
        """
        assert not self._ahead, "one step ahead"
        for each in shares:
            # Slots for drafts that were not made are free for others.
            self._blocks.trim(each.sequence, each.num_new_tokens)
        # The running take their blocks before anybody is admitted.
        have_slots = all(self._blocks.reserve(each.sequence, each.num_new_tokens) for each in shares)
        if not shares or not have_slots or self._would_admit(shares):
            for each in shares:
                # What the others got in vain they give back with this step, whose slots are in use until then.
                if not each.is_in_step:
                    self._blocks.trim(each.sequence)
            return False
        self._ahead = {id(each.sequence): each for each in shares}
        return True

    def commit(
        self, batch: Batch, proposals: AbstractSequence[Proposal], outcomes: AbstractSequence[Outcome]
    ) -> list[TokenDelta]:
        """Append what was emitted, rewind over rejected drafts, register full blocks, finish what ended."""
        deltas = []
        num_tokens = 0
        for scheduled, proposal, outcome in zip(batch.scheduled, proposals, outcomes, strict=True):
            sequence = scheduled.sequence
            num_tokens += max(0, min(scheduled.num_tokens, sequence.num_prompt_tokens - sequence.num_computed_tokens))
            sequence.num_computed_tokens += scheduled.num_tokens
            try:
                if outcome.token_ids:
                    with attributed_to(sequence, "commit"):
                        delta = self._append(sequence, proposal, outcome)
                    num_tokens += len(delta.token_ids)
                    if delta.finish_reason is not None:
                        self._finish(sequence, delta.finish_reason)
                    deltas.append(delta)
                if sequence.status is SequenceStatus.RUNNING:
                    self._blocks.register(sequence)
                    ahead = self._ahead.get(id(sequence))
                    self._blocks.trim(sequence, 0 if ahead is None else ahead.num_tokens)
            except SequenceFaultError as fault:
                deltas += self.end(fault)
        self.step_tokens.record(num_tokens)
        self._forget_finished()
        return deltas

    def withdraw(self, fault: SequenceFaultError) -> list[TokenDelta]:
        """Undo a step that was not committed, and end the sequence at fault: the others take the step again."""
        self._ahead = {}
        deltas = self.end(fault)
        for sequence in self.running:
            sequence.num_draft_computed_tokens = min(sequence.num_draft_computed_tokens, sequence.num_computed_tokens)
            self._blocks.trim(sequence)
        return deltas

    def end(self, fault: SequenceFaultError) -> list[TokenDelta]:
        """Record a fault, free what its sequence holds, and tell its reader, unless the answer was whole already."""
        self.faults.record(fault)
        sequence = fault.sequence
        if sequence.status is SequenceStatus.FINISHED:
            return []
        # Its tokens may be in disorder: they name no blocks that others could share.
        self._drop(sequence, FinishReason.ERROR)
        self._forget_finished()
        return [
            TokenDelta(
                request_id=sequence.request_id,
                choice_index=sequence.choice_index,
                finish_reason=FinishReason.ERROR,
                num_prompt_tokens=sequence.num_prompt_tokens,
                num_cached_tokens=sequence.num_cached_tokens,
                seed=sequence.seed,
            )
        ]

    def _append(self, sequence: Sequence, proposal: Proposal, outcome: Outcome) -> TokenDelta:
        """Emit an outcome's tokens up to the one that ends the sequence."""
        queue_s = prefill_s = None
        if sequence.num_output_tokens == 0:
            self.num_prompt_tokens += sequence.num_prompt_tokens
            if sequence.admitted_at is not None:
                queue_s = sequence.admitted_at - sequence.queued_at
                prefill_s = time.monotonic() - sequence.admitted_at
        follower = sequence.prediction_follower
        # Before the outcome's tokens are part of the text that the draft continues.
        are_predicted = follower.agreement(sequence.token_ids, proposal.token_ids) if follower is not None else ()
        verdict = self._stop_checker.accept(sequence, outcome.token_ids)
        num_emitted = verdict.num_emitted
        num_accepted = min(outcome.num_accepted, num_emitted)
        sequence.num_computed_tokens += num_accepted
        # Past the accepted tokens the KV is that of rejected drafts, to be overwritten.
        sequence.num_draft_computed_tokens = min(sequence.num_draft_computed_tokens, sequence.num_computed_tokens)
        was_cut = num_emitted < len(outcome.token_ids)
        proposers = [source.proposer for source in proposal.sources]
        for counts in (sequence.speculation, self.speculation):
            counts.record(proposers, num_accepted=num_accepted, was_cut=was_cut, are_predicted=are_predicted)
        sequence.is_undrafted = not proposers
        self.num_generation_tokens += num_emitted
        params = sequence.params
        return TokenDelta(
            request_id=sequence.request_id,
            choice_index=sequence.choice_index,
            token_ids=tuple(outcome.token_ids[:num_emitted]),
            text=verdict.text,
            logprobs=tuple(outcome.logprobs[:num_emitted]) if params.logprobs is not None else None,
            finish_reason=verdict.finish_reason,
            stop_reason=verdict.stop_reason,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            seed=sequence.seed,
            speculation=sequence.speculation.freeze() if verdict.finish_reason is not None else None,
            queue_s=queue_s,
            prefill_s=prefill_s,
            drafts=(_trace(proposal, num_accepted),) if sequence.is_traced else (),
            enforcement=sequence.grammar.report if verdict.finish_reason is not None and sequence.grammar else None,
        )

    def _share(self, sequence: Sequence, budget: int) -> ScheduledSequence:
        """What a sequence would run in this step without drafts, within a budget of at least one token."""
        needed = sequence.num_tokens - sequence.num_computed_tokens
        if sequence.is_prefilled or not sequence.plan.has_draft_model:
            return ScheduledSequence(sequence, min(needed, budget), 0, 0)
        # The draft model catches up within the same budget: with the chunk itself, and with what it lags behind.
        lag = sequence.num_computed_tokens - sequence.num_draft_computed_tokens
        num_tokens = max(1, min(needed, (budget - min(lag, budget)) // 2))
        num_draft_model_tokens = max(0, min(lag + num_tokens, budget - num_tokens))
        return ScheduledSequence(sequence, num_tokens, 0, num_draft_model_tokens)

    def _with_draft_slots(self, shares: list[ScheduledSequence], budget: int) -> list[ScheduledSequence]:
        """The shares with slots for drafts, where blocks are free, and with what the draft model needs for them.

        Each sequence that drafts gets an equal part of the budget, and of the rows of logits that there may be, or what
        makes a draft, the oldest first.
        """
        num_wanting = sum(share.reaches_end and share.sequence.plan.max_tokens > 0 for share in shares)
        num_rows_left = self._max_logits_rows - sum(share.reaches_end for share in shares)
        with_slots = []
        for share in shares:
            sequence, plan = share.sequence, share.sequence.plan
            if not share.reaches_end or plan.max_tokens == 0:
                with_slots.append(share)
                continue
            part, own_rows = (
                min(left, max(left // num_wanting, _MIN_DRAFT_BUDGET)) for left in (budget, num_rows_left)
            )
            num_wanting -= 1
            num_draft_model_tokens = share.num_draft_model_tokens
            if plan.has_draft_model and num_draft_model_tokens == 0:
                lag = sequence.num_computed_tokens + share.num_tokens - sequence.num_draft_computed_tokens
                num_draft_model_tokens = lag if lag < part else part // 2
                part -= num_draft_model_tokens
                budget -= num_draft_model_tokens
            # The token after the drafts is emitted too, so one of the remaining tokens is not a draft's.
            num_slots = min(plan.max_tokens, sequence.num_remaining_tokens - 1, part, own_rows)
            held = len(sequence.block_table) * self._block_size - sequence.num_computed_tokens - share.num_tokens
            if num_slots > held and not self._blocks.reserve(sequence, share.num_tokens + num_slots):
                num_slots = held
            budget -= num_slots
            num_rows_left -= num_slots
            with_slots.append(ScheduledSequence(sequence, share.num_tokens, num_slots, num_draft_model_tokens))
        return with_slots

    def _reserve_or_preempt(self, share: ScheduledSequence) -> bool:
        """Reserve for a running sequence, at a younger one's cost if need be; False when it had to go itself."""
        while not self._blocks.reserve(share.sequence, share.num_tokens):
            youngest = self.running[-1]
            assert youngest is not self.running[0], "admission refuses what the empty pool cannot hold"
            self._preempt(youngest)
            if youngest is share.sequence:
                return False
        return True

    def _admit(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self._turn = max(self._turn, sequence.turn)
        sequence.status = SequenceStatus.RUNNING
        if sequence.admitted_at is None:
            sequence.admitted_at = time.monotonic()
        self.running.append(sequence)
        if sequence.num_output_tokens == 0:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        self.prefix_cache_queries += sequence.num_tokens
        self.prefix_cache_hits += sequence.num_computed_tokens

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._blocks.drop(sequence)
        sequence.status = SequenceStatus.WAITING
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _would_admit(self, shares: AbstractSequence[NextShare]) -> bool:
        """Whether the next step, which gives the running these shares, would let in one of those that wait now.

        Where a running sequence ends with this step, what it leaves is taken to suffice.
        """
        budget = self._max_num_batched_tokens - sum(each.num_tokens for each in shares)
        if not self.waiting or budget == 0:
            return False
        if len(shares) < len(self.running):
            return True
        prompts_done = {id(each.sequence) for each in shares if each.start_position >= each.sequence.num_prompt_tokens}
        sequence = next((s for s in self.waiting if not s.waits_for_leader or id(s.leader) in prompts_done), None)
        if sequence is None or len(shares) == self._max_num_seqs:
            return False
        self._blocks.attach_prefix(sequence)
        fits = self._blocks.fits(sequence, self._share(sequence, budget).num_tokens)
        self._blocks.drop(sequence)
        return fits

    def _next_waiting(self) -> Sequence | None:
        """The first waiting sequence that is not held back for its leader's prompt blocks."""
        return next((sequence for sequence in self.waiting if not sequence.waits_for_leader), None)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence and free its blocks; its full verified blocks stay findable until they are reused."""
        if sequence.status is SequenceStatus.RUNNING and sequence.block_table:
            self._blocks.register(sequence)
        self._drop(sequence, reason)

    def _drop(self, sequence: Sequence, reason: FinishReason) -> None:
        self._blocks.drop(sequence)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason
        self.num_finished[reason] = self.num_finished.get(reason, 0) + 1

    def _forget_finished(self) -> None:
        self.running = [s for s in self.running if s.status is not SequenceStatus.FINISHED]
        self.waiting = deque(s for s in self.waiting if s.status is not SequenceStatus.FINISHED)


def _cost(share: ScheduledSequence) -> int:
    return share.num_tokens + share.num_draft_model_tokens


def _trace(proposal: Proposal, num_accepted: int) -> DraftTrace:
    return DraftTrace(
        token_ids=tuple(proposal.token_ids),
        proposers=tuple(source.proposer for source in proposal.sources),
        num_accepted=num_accepted,
        is_last_forbidden=proposal.is_last_forbidden,
    )
