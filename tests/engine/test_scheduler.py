"""The scheduler and its pool under any mix of requests, drafts, acceptances, endings and aborts."""

import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from specdec.block_pool import BlockPool, hash_block
from specdec.proposers.base import NO_PROPOSAL, Proposal, Source
from specdec.request import FinishReason, SamplingParams
from specdec.scheduler import Scheduler
from specdec.sequence import Sequence
from specdec.speculative import MAX_DRAFT_TOKENS, PROPOSERS, SpeculationPlan
from specdec.stop import StopChecker
from specdec.verifier import Outcome

EOS = 0
NUM_BLOCKS = 14


class Silent:
    """A detokenizer of tokens without text."""

    def push(self, token_ids):
        return ""

    def flush(self):
        return ""


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the model: it decides what is drafted, what is accepted and where answers end."""

    @initialize(
        block_size=st.integers(1, 5),
        budget=st.integers(6, 24),
        rows=st.integers(5, 24),
        caching=st.booleans(),
        overlaps=st.booleans(),
    )
    def build(self, block_size, budget, rows, caching, overlaps):
        self.overlaps = overlaps
        self.ahead = []
        """What runs next, where that was said."""
        self.caching = caching
        self.block_size = block_size
        self.budget = budget
        self.rows = rows
        self.pool = BlockPool(NUM_BLOCKS, enable_prefix_caching=caching)
        self.scheduler = Scheduler(
            self.pool,
            block_size=block_size,
            max_num_seqs=5,
            max_num_batched_tokens=budget,
            max_logits_rows=rows,
            stop_checker=StopChecker(),
        )
        self.num_requests = 0
        self.alive = []

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=20),
        num_new=st.integers(1, 20),
        n=st.integers(1, 2),
        plan=st.builds(
            SpeculationPlan,
            st.sampled_from([frozenset(), frozenset({"ngram"}), frozenset({"ngram", "draft_model"})]),
            st.none() | st.integers(0, 4),
        ),
    )
    def add(self, prompt, num_new, n, plan):
        room = NUM_BLOCKS * self.block_size
        if len(prompt) + num_new > room:
            return
        self.num_requests += 1
        leader = None
        for choice_index in range(n):
            sequence = Sequence(
                request_id=str(self.num_requests),
                choice_index=choice_index,
                params=SamplingParams(n=n),
                seed=0,
                max_tokens=num_new,
                eos_token_ids=frozenset({EOS}),
                num_prompt_tokens=len(prompt),
                token_ids=list(prompt),
                detokenizer=Silent(),
                plan=plan,
                leader=leader,
            )
            leader = leader or sequence
            self.scheduler.add(sequence)
            self.alive.append(sequence)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data):
        request_id = data.draw(st.sampled_from(self.alive)).request_id
        before = [s for s in self.alive if s.request_id == request_id]
        assert self.scheduler.abort(request_id)
        assert all(s.finish_reason is FinishReason.ABORT for s in before)
        self.alive = [s for s in self.alive if s.request_id != request_id]

    @rule(data=st.data())
    def step(self, data):
        def draw(most):
            return data.draw(st.integers(0, most))

        self.run_step(draw, lambda: draw(3))

    @rule()
    def drain(self):
        """Every sequence ends, in a number of steps that the tokens left bound, when nothing is accepted."""
        most = sum(s.num_prompt_tokens + 2 * s.max_tokens for s in self.alive) * (len(self.alive) + 1) + 1
        for _ in range(most):
            if not self.alive:
                break
            self.run_step(lambda most: 0, lambda: 1)
        assert not self.alive
        assert self.pool.num_in_use == 0

    def run_step(self, draw, draw_token):
        oldest = self.scheduler.running[0] if self.scheduler.running else None
        expected = [share for share in self.ahead if share.sequence.finish_reason is None]
        self.ahead = []
        tables = [share.sequence.block_table[:] for share in expected]
        batch = self.scheduler.schedule()
        if expected:
            assert [each.sequence for each in batch.scheduled] == [share.sequence for share in expected]
            for each, share, table in zip(batch.scheduled, expected, tables, strict=True):
                assert each.sequence.num_computed_tokens == share.start_position
                assert (each.num_tokens, each.reaches_end) == (share.num_tokens, share.reaches_end)
                assert each.num_draft_model_tokens == 0
                assert each.sequence.block_table[: len(table)] == table
        assert bool(batch) == bool(self.alive), "something unfinished can always run"
        if oldest is not None:
            assert self.scheduler.running[0] is oldest, "the oldest is never preempted"
        assert sum(
            each.num_tokens + each.num_draft_slots + each.num_draft_model_tokens for each in batch.scheduled
        ) <= (self.budget)
        rows = [1 + each.num_draft_slots for each in batch.scheduled if each.reaches_end]
        assert sum(rows) <= self.rows
        proposals, outcomes = [], []
        for each in batch.scheduled:
            sequence = each.sequence
            slots = sequence.num_computed_tokens + each.num_tokens + each.num_draft_slots
            assert each.num_tokens >= 1
            assert slots <= sequence.num_prompt_tokens + sequence.max_tokens - 1, "the last token needs no slot"
            assert len(sequence.block_table) == math.ceil(slots / self.block_size)
            self.run_draft_model(each)
            if not each.reaches_end:
                assert each.num_draft_slots == 0
                proposals.append(NO_PROPOSAL)
                outcomes.append(Outcome([], 0, 0, []))
                continue
            assert each.num_draft_slots <= sequence.plan.max_tokens
            num_drafted = draw(each.num_draft_slots)
            num_accepted = draw(num_drafted)
            sources = [Source(PROPOSERS[draw(len(PROPOSERS) - 1)]) for _ in range(num_drafted)]
            proposals.append(Proposal([1] * num_drafted, sources, [None] * num_drafted))
            outcomes.append(Outcome([draw_token() for _ in range(num_accepted + 1)], num_accepted, num_drafted, []))
        if self.overlaps and not any(each.token_ids for each in proposals):
            # As it would go on without; only the lock in the log of faults cannot be copied.
            twin = copy.deepcopy((self.scheduler, batch, proposals, outcomes), {id(self.scheduler.faults): None})
            shares = self.scheduler.next_shares(batch)
            was_reserved = self.scheduler.reserve_ahead(shares)
            if was_reserved:
                self.ahead = shares
                for share in shares:
                    slots = len(share.sequence.block_table) * self.block_size
                    assert share.start_position + share.num_tokens <= slots, "all tokens have slots"
            self.check_by_twin(shares, was_reserved, *twin)
        before = {id(s): s.num_tokens for s in self.alive}
        deltas = self.scheduler.commit(batch, proposals, outcomes)
        for delta in deltas:
            assert len(delta.token_ids) >= 1
        for sequence in [s for s in self.alive if s.finish_reason is not None]:
            stats = sequence.speculation.freeze()
            assert stats.num_draft_tokens == (
                stats.num_accepted_tokens + stats.num_rejected_tokens + stats.num_discarded_tokens
            )
            assert min(stats.num_accepted_tokens, stats.num_rejected_tokens, stats.num_discarded_tokens) >= 0
            for name in ("draft_tokens", "accepted_tokens", "rejected_tokens", "discarded_tokens"):
                parts = [getattr(each, f"num_{name}") for each in stats.by_proposer.values()]
                assert sum(parts) == getattr(stats, f"num_{name}")
                assert min(parts, default=0) >= 0
            assert sequence.token_ids[-1] == EOS or sequence.num_output_tokens == sequence.max_tokens
        self.alive = [s for s in self.alive if s.finish_reason is None]
        assert all(s.num_tokens >= before[id(s)] for s in self.alive)

    def check_by_twin(self, shares, was_reserved, scheduler, *step):
        """What was said of the next step comes true where nobody ends unforeseen, and nobody could be let in."""
        num_running = len(scheduler.running)
        foreseen = sum(each.reaches_end and each.sequence.num_remaining_tokens == 1 for each in step[0].scheduled)
        scheduler.commit(*step)
        if not shares or num_running - len(scheduler.running) > foreseen:
            return
        num_preemptions = scheduler.num_preemptions
        batch = scheduler.schedule()
        was_preempted = scheduler.num_preemptions > num_preemptions
        following = [
            (s.sequence.request_id, s.sequence.choice_index, s.num_tokens, s.reaches_end) for s in batch.scheduled
        ]
        said = [(s.sequence.request_id, s.sequence.choice_index, s.num_tokens, s.reaches_end) for s in shares]
        if was_reserved:
            assert not was_preempted
            assert following[: len(said)] == said
            # A prompt may find blocks that are full with this step.
            assert self.caching or len(following) == len(said)
        else:
            assert was_preempted or len(following) > len(said) or foreseen or self.caching
        assert all(each.num_draft_model_tokens == 0 for each in batch.scheduled[: len(said)])

    def run_draft_model(self, each):
        """Catch up as the draft model's proposer does, then write KV for all but the last draft."""
        sequence = each.sequence
        if not sequence.plan.has_draft_model:
            assert each.num_draft_model_tokens == 0
            return
        end = sequence.num_computed_tokens + each.num_tokens
        sequence.num_draft_computed_tokens += min(end - sequence.num_draft_computed_tokens, each.num_draft_model_tokens)
        if sequence.num_draft_computed_tokens == sequence.num_tokens and each.num_draft_slots:
            sequence.num_draft_computed_tokens += each.num_draft_slots - 1

    @invariant()
    def blocks_held_are_those_that_computed_tokens_need(self):
        held = [block_id for s in self.scheduler.running for block_id in s.block_table]
        assert self.pool.num_in_use == len(set(held))
        assert all(self.pool[block_id].ref_count == held.count(block_id) for block_id in set(held))
        for sequence in self.scheduler.running:
            slots = sequence.num_computed_tokens + sum(
                share.num_tokens for share in self.ahead if share.sequence is sequence
            )
            assert len(sequence.block_table) == math.ceil(slots / self.block_size)
            assert sequence.num_draft_computed_tokens <= sequence.num_computed_tokens < sequence.num_tokens
        assert all(not s.block_table for s in self.scheduler.waiting)

    @invariant()
    def a_shared_or_findable_block_holds_verified_computed_tokens_under_their_own_hash(self):
        for sequence in self.scheduler.running:
            parent = b""
            for i, block_id in enumerate(sequence.block_table):
                block = self.pool[block_id]
                end = (i + 1) * self.block_size
                if block.ref_count > 1 or block.block_hash is not None:
                    assert end <= sequence.num_computed_tokens
                if end <= sequence.num_tokens:
                    parent = hash_block(parent, sequence.token_ids[end - self.block_size : end])
                if block.block_hash is not None:
                    assert block.block_hash == parent

    @invariant()
    def every_sequence_is_in_one_place(self):
        queued = [*self.scheduler.running, *self.scheduler.waiting]
        assert len(queued) == len({id(s) for s in queued}) == len(self.alive)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def waiting_sequence(name, caller):
    return Sequence(
        request_id=name,
        choice_index=0,
        params=SamplingParams(),
        seed=0,
        max_tokens=2,
        eos_token_ids=frozenset({EOS}),
        num_prompt_tokens=1,
        token_ids=[1],
        detokenizer=Silent(),
        caller=caller,
    )


def scheduler_of_one_at_a_time():
    return Scheduler(
        BlockPool(NUM_BLOCKS, enable_prefix_caching=False),
        block_size=4,
        max_num_seqs=1,
        max_num_batched_tokens=8,
        max_logits_rows=8,
        stop_checker=StopChecker(),
    )


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_those_that_wait_take_turns_by_caller_and_in_order_within_one(callers):
    scheduler = scheduler_of_one_at_a_time()
    for number, caller in enumerate(callers):
        scheduler.add(waiting_sequence(str(number), caller))
    rounds = {}
    order = []
    for sequence in scheduler.waiting:
        rounds[sequence.caller] = rounds.get(sequence.caller, 0) + 1
        order.append(rounds[sequence.caller])
    assert order == sorted(order)
    for caller in "abc":
        own = [int(sequence.request_id) for sequence in scheduler.waiting if sequence.caller == caller]
        assert own == sorted(own)


def test_a_newcomer_is_next_however_many_another_has_queued_and_however_long_it_was_served_alone():
    scheduler = scheduler_of_one_at_a_time()
    for number in range(20):
        scheduler.add(waiting_sequence(f"many-{number}", "many"))
    for _ in range(5):
        scheduler.schedule()
        scheduler.abort(scheduler.running[0].request_id)
    scheduler.add(waiting_sequence("newcomer", "one"))
    next_up = [sequence.request_id for sequence in scheduler.waiting][:3]
    assert next_up == ["newcomer", "many-5", "many-6"]


def draft_slots(num_sequences, *, budget, rows):
    """Of sequences that all want the longest drafts."""
    scheduler = Scheduler(
        BlockPool(12 * num_sequences, enable_prefix_caching=False),
        block_size=8,
        max_num_seqs=num_sequences,
        max_num_batched_tokens=budget,
        max_logits_rows=rows,
        stop_checker=StopChecker(),
    )
    for number in range(num_sequences):
        sequence = waiting_sequence(str(number), "one")
        sequence.max_tokens, sequence.plan = 90, SpeculationPlan(frozenset({"ngram"}), MAX_DRAFT_TOKENS)
        scheduler.add(sequence)
    batch = scheduler.schedule()
    assert len(batch.scheduled) == num_sequences
    return [each.num_draft_slots for each in batch.scheduled]


def test_rows_of_logits_are_shared_out_among_drafts_as_the_budget_is():
    assert draft_slots(32, budget=2048, rows=512) == draft_slots(32, budget=512, rows=512) == [15] * 32
    assert draft_slots(64, budget=2048, rows=512) == draft_slots(64, budget=512, rows=512) == [8] * 56 + [0] * 8
    assert draft_slots(40, budget=2048, rows=60) == [8, 8, 4] + [0] * 37
    assert draft_slots(3, budget=2048, rows=512) == [MAX_DRAFT_TOKENS] * 3


@pytest.mark.parametrize("num_sequences", [1, 2, 3, 16, 64, 200])
@pytest.mark.parametrize("budget", [200, 512, 2048])
def test_rows_for_all_that_the_budget_or_the_longest_drafts_take_cut_no_draft(num_sequences, budget):
    rows = min(budget, num_sequences * (1 + MAX_DRAFT_TOKENS))
    assert draft_slots(num_sequences, budget=budget, rows=rows) == draft_slots(num_sequences, budget=budget, rows=10**9)
