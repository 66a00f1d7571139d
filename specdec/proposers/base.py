"""Drafts and who guesses them: a wrong guess costs time, never the answer.

A Drafter guesses for one sequence, without a model, from what was written and drafted so far; chain.py makes a proposer
for a whole batch of any number of drafters and a draft model.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from specdec.batch import Batch
from specdec.grammars import BudgetedState
from specdec.sequence import Sequence


class Source(NamedTuple):
    """Where a draft token came from."""

    proposer: str
    """A name of speculative.PROPOSERS."""
    confidence: int = 0
    """A class of guesses that are about as likely to be right, of those by one proposer; more is likelier."""


class DraftDistribution(NamedTuple):
    """What a draft token was drawn from, where it was drawn and not merely found: N tokens, all others impossible."""

    token_ids: Tensor
    """int64 [N], ascending."""
    probs: Tensor
    """fp64 [N], of sum 1."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Draft tokens for one sequence."""

    token_ids: AbstractSequence[int] = ()
    sources: AbstractSequence[Source] = ()
    """One a token."""
    distributions: AbstractSequence[DraftDistribution | None] = ()
    """One a token; None where the proposer could have drafted no other."""
    is_last_forbidden: bool = False
    """Whether the grammar forbids the last token, drafted without its mask; it allows all others."""


NO_PROPOSAL = Proposal()


@dataclass(frozen=True, slots=True)
class DrawnAhead:
    """Proposals whose last tokens only the device knows so far; they may turn out to have fewer."""

    known_ids: AbstractSequence[AbstractSequence[int]]
    """Of each scheduled sequence the draft tokens that the host knows"""
    places: AbstractSequence[AbstractSequence[int]]
    """and where in drawn_ids those behind them are."""
    drawn_ids: Tensor
    """int64 [D] on the device"""


DraftsArrived: TypeAlias = Callable[[AbstractSequence[AbstractSequence[int]]], None]
"""Told the tokens at the places of each sequence, or the first of them, as soon as the host has them."""

BeginPass: TypeAlias = Callable[[Batch, DrawnAhead], DraftsArrived]
"""Told of a step's proposals before the host knows their tokens, which it waits for next."""


@dataclass(slots=True)
class Draft:
    """The draft of one sequence as it grows."""

    sequence: Sequence
    max_tokens: int
    state: BudgetedState | None
    """After the last drafted token; None without a grammar, and after a token that it forbids."""
    token_ids: list[int] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    distributions: list[DraftDistribution | None] = field(default_factory=list)

    @classmethod
    def of(cls, sequence: Sequence, max_tokens: int) -> Draft:
        return cls(sequence, max_tokens, sequence.grammar_state)

    @property
    def num_free(self) -> int:
        """Tokens that may still be drafted."""
        return self.max_tokens - len(self.token_ids)

    @property
    def is_full(self) -> bool:
        """Nothing can follow: no slots are left, or the answer would have ended."""
        if self.num_free <= 0:
            return True
        grammar, state = self.sequence.grammar, self.state
        if grammar is not None:
            return state is None or grammar.is_terminated(state) or grammar.only_eos(state)
        if not self.token_ids or self.sequence.params.ignore_eos:
            return False
        return self.token_ids[-1] in self.sequence.eos_token_ids

    def last(self, num_tokens: int) -> list[int]:
        """The last tokens of the text with the draft, oldest first; fewer where there are fewer."""
        if num_tokens <= len(self.token_ids):
            return self.token_ids[len(self.token_ids) - num_tokens :]
        written = self.sequence.token_ids
        return written[max(0, len(written) - num_tokens + len(self.token_ids)) :] + self.token_ids

    def push(self, token_id: int, source: Source, distribution: DraftDistribution | None = None) -> bool:
        """Add a token; False, and nothing is added, where the grammar forbids it."""
        if self.sequence.grammar is not None:
            if self.state is None:
                return False
            state = self.sequence.grammar.advance(self.state, token_id)
            if state is None:
                return False
            self.state = state
        self._add(token_id, source, distribution)
        return True

    def push_unmasked(self, token_id: int, source: Source, distribution: DraftDistribution | None = None) -> None:
        """Add a token that the grammar may forbid, after which nothing can follow."""
        if not self.push(token_id, source, distribution):
            self.state = None
            self._add(token_id, source, distribution)

    def cut(self, num_tokens: int) -> Proposal:
        """The proposal of its first tokens."""
        is_whole = num_tokens >= len(self.token_ids)
        is_last_forbidden = is_whole and self.sequence.grammar is not None and self.state is None
        return Proposal(
            self.token_ids[:num_tokens], self.sources[:num_tokens], self.distributions[:num_tokens], is_last_forbidden
        )

    def _add(self, token_id: int, source: Source, distribution: DraftDistribution | None) -> None:
        self.token_ids.append(token_id)
        self.sources.append(source)
        self.distributions.append(distribution)


class Guess(NamedTuple):
    """What may follow a draft."""

    token_ids: AbstractSequence[int]
    """As they come: the grammar may forbid some. Empty where the drafter has no idea."""
    confidence: int = 0
    """Their class (Source.confidence)."""
    yields_to_model: bool = False
    """Worse than a draft model's guess: not taken where one drafts."""


NO_GUESS = Guess(())


class Drafter(Protocol):
    """Guesses how one sequence goes on, without a model."""

    name: str
    """One of speculative.PROPOSERS."""

    def guess(self, draft: Draft) -> Guess:
        """What may follow the draft's text and tokens, draft.num_free tokens at most."""
        ...

    def finished(self, sequence: Sequence) -> None:
        """Learn from an answer that ended, and forget what was kept for it."""
        ...
