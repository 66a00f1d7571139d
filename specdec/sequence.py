"""Sequence: one choice of one request in flight, and everything that is only about it."""

from __future__ import annotations

import enum
from array import array
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field
from typing import Any

from specdec.block_pool import ROOT_HASH, hash_block
from specdec.grammars import BudgetedGrammar, BudgetedState
from specdec.prediction_follower import PredictionFollower
from specdec.prediction_index import PredictionIndex
from specdec.request import FinishReason, ProposerStats, SamplingParams, SpeculationStats
from specdec.speculative import PLAIN, SpeculationPlan
from specdec.tokenizer import Detokenizer


class SequenceStatus(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True)
class _Counts:
    """Draft tokens by what became of them."""

    num_drafts: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_rejected: int = 0
    drafted_per_position: list[int] = field(default_factory=list)
    accepted_per_position: list[int] = field(default_factory=list)

    def add(self, positions: AbstractSequence[int], num_accepted: int, *, has_rejected: bool) -> None:
        """One draft's tokens at these positions, ascending: the first num_accepted were, perhaps one was rejected."""
        drafted, accepted = self.drafted_per_position, self.accepted_per_position
        num_lacking = positions[-1] + 1 - len(drafted)
        if num_lacking > 0:
            drafted += [0] * num_lacking
            accepted += [0] * num_lacking
        self.num_drafts += 1
        self.num_drafted += len(positions)
        self.num_accepted += num_accepted
        self.num_rejected += has_rejected
        for position in positions:
            drafted[position] += 1
        for position in positions[:num_accepted]:
            accepted[position] += 1

    # Any: counts, and counts by position.
    def as_fields(self) -> dict[str, Any]:
        """Of ProposerStats."""
        return {
            "num_drafts": self.num_drafts,
            "num_draft_tokens": self.num_drafted,
            "num_accepted_tokens": self.num_accepted,
            "num_rejected_tokens": self.num_rejected,
            "num_discarded_tokens": self.num_drafted - self.num_accepted - self.num_rejected,
            "num_drafted_per_position": tuple(self.drafted_per_position),
            "num_accepted_per_position": tuple(self.accepted_per_position),
        }


class SpeculationCounts:
    """SpeculationStats while they grow. Every drafted token ends as accepted, rejected or discarded."""

    __slots__ = (
        "_by_proposer",
        "_num_accepted_predicted",
        "_num_rejected_predicted",
        "_num_target_passes",
        "_total",
    )

    def __init__(self) -> None:
        self._num_target_passes = 0
        self._num_accepted_predicted = 0
        self._num_rejected_predicted = 0
        self._total = _Counts()
        self._by_proposer: dict[str, _Counts] = {}

    def record(
        self,
        proposers: AbstractSequence[str],
        *,
        num_accepted: int,
        was_cut: bool,
        are_predicted: AbstractSequence[bool] = (),
    ) -> None:
        """One target pass over a draft by these proposers; `was_cut` if the answer ended before the pass's last token.

        The token after the accepted ones was rejected, or discarded with all others where the answer ended. With a
        prediction, `are_predicted` says of each token whether it goes on like that.
        """
        self._num_target_passes += 1
        if not proposers:
            return
        if are_predicted:
            self._num_accepted_predicted += sum(are_predicted[:num_accepted])
            self._num_rejected_predicted += sum(are_predicted[num_accepted:])
        rejected_at = None if was_cut else num_accepted
        every = range(len(proposers))
        self._total.add(every, num_accepted, has_rejected=rejected_at in every)
        for proposer in set(proposers):
            own: AbstractSequence[int] = every
            num_own_accepted = num_accepted
            if proposers.count(proposer) < len(proposers):
                own = [position for position in every if proposers[position] == proposer]
                num_own_accepted = sum(each < num_accepted for each in own)
            counts = self._by_proposer.setdefault(proposer, _Counts())
            counts.add(own, num_own_accepted, has_rejected=rejected_at in own)

    def freeze(self) -> SpeculationStats:
        return SpeculationStats(
            **self._total.as_fields(),
            num_target_passes=self._num_target_passes,
            num_accepted_prediction_tokens=self._num_accepted_predicted,
            num_rejected_prediction_tokens=self._num_rejected_predicted,
            # A copy in one step: this is also read from other threads while the engine counts.
            by_proposer={
                proposer: ProposerStats(**counts.as_fields()) for proposer, counts in self._by_proposer.copy().items()
            },
        )


@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """Tokens, blocks and grammar state of one choice.

    `token_ids` holds verified tokens only. KV exists for the first `num_computed_tokens` of them in the target's view
    of the blocks and for the first `num_draft_computed_tokens` in the draft's. The grammar state is the one after the
    last token; being a value, it needs no rewinding.
    """

    request_id: str
    choice_index: int
    params: SamplingParams
    seed: int
    max_tokens: int
    eos_token_ids: frozenset[int]
    num_prompt_tokens: int
    token_ids: list[int]
    detokenizer: Detokenizer
    cache_salt: str = ""
    caller: str = ""
    turn: int = 0
    """Its place among those that wait: the scheduler's."""
    grammar: BudgetedGrammar | None = None
    grammar_state: BudgetedState | None = None
    plan: SpeculationPlan = PLAIN
    prediction: PredictionIndex | None = None
    """What the user expects the answer to resemble."""
    prediction_follower: PredictionFollower | None = field(init=False, default=None)
    """Where the answer is in that."""
    is_traced: bool = False
    free_text_end: str | None = None
    """Where free text may end in calls, the marker that they begin with, or "" if that is a brace at the very start."""
    calls_after: str = ""
    """The marker behind which such a brace may come as well; empty once it has come."""
    leader: Sequence | None = None
    """The first choice of the same request, whose prompt blocks this one waits for."""

    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    block_table: array[int] = field(default_factory=lambda: array("i"))
    """As numpy copies it without a look at each id."""
    num_computed_tokens: int = 0
    num_draft_computed_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache when first admitted."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Of the full blocks of token_ids, as far as they were needed."""
    queued_at: float = 0.0
    """On the monotonic clock, as the next."""
    admitted_at: float | None = None
    """When first admitted: a preemption does not change it."""
    num_registered_blocks: int = 0
    num_draft_ready_blocks: int = 0
    held_text: str = ""
    """Text not shown yet, because a stop string, or the marker of calls, may begin in it."""
    is_before_brace: bool = False
    """Whether nothing but whitespace has come since that marker."""
    is_in_calls: bool = False
    """Whether free text has ended, and stop strings with it."""
    speculation: SpeculationCounts = field(default_factory=SpeculationCounts)
    is_undrafted: bool = False
    """Whether its last pass of the target verified no draft."""

    def __post_init__(self) -> None:
        if self.prediction is not None:
            self.prediction_follower = PredictionFollower(self.prediction, self.num_prompt_tokens)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens that may still be emitted."""
        return self.max_tokens - self.num_output_tokens

    @property
    def is_prefilled(self) -> bool:
        return self.num_computed_tokens >= self.num_prompt_tokens

    @property
    def waits_for_leader(self) -> bool:
        """Whether another choice is still computing the prompt, whose blocks this one will share."""
        leader = self.leader
        return leader is not None and not leader.is_prefilled and leader.status is not SequenceStatus.FINISHED

    def can_be_drafted_for(self, methods: frozenset[str]) -> bool:
        """Whether one of its own methods, or of these, has something to draft from."""
        without = {"grammar": self.grammar is None, "prediction": self.prediction is None}
        return any(not without.get(method, False) for method in methods | self.plan.methods)

    def hashes(self, num_blocks: int, block_size: int) -> AbstractSequence[bytes]:
        """Digests of the first full blocks of token_ids."""
        while len(self.block_hashes) < num_blocks:
            start = len(self.block_hashes) * block_size
            parent = self.block_hashes[-1] if self.block_hashes else ROOT_HASH
            block = self.token_ids[start : start + block_size]
            assert len(block) == block_size, "only full blocks have a hash"
            self.block_hashes.append(hash_block(parent, block, salt=self.cache_salt))
        return self.block_hashes[:num_blocks]

    def drop_blocks(self) -> AbstractSequence[int]:
        """Forget all KV, as at preemption; returns the blocks to release."""
        block_ids, self.block_table = self.block_table, array("i")
        self.num_computed_tokens = 0
        self.num_draft_computed_tokens = 0
        self.num_registered_blocks = 0
        self.num_draft_ready_blocks = 0
        return block_ids
