"""BudgetedGrammar: a grammar whose texts always end within a number of tokens.

A state carries a plan: bytes that complete the text, and the fewest tokens that spell them. A token is allowed iff the
text after it has a plan that fits the tokens left. The plan's own next token always is, and leaves a plan that takes
one token less; so the mask is never empty, and the text is complete when the budget is spent. The plan after a token is
the rest of the plan before, or a fresh one where that takes fewer tokens or the token left the plan. It depends on the
tokens of the text alone, however they were arrived at.
"""

from __future__ import annotations

from collections.abc import Sequence

from specdec.grammars.errors import BudgetError
from specdec.grammars.grammar import Grammar, GrammarState
from specdec.grammars.mask_table import EOS_ROW
from specdec.grammars.report import EnforcementReport
from specdec.grammars.speller import EMPTY, Spelling


class BudgetedState:
    """A grammar's state, the plan to complete it and the tokens left; a value that never changes."""

    __slots__ = ("plan", "remaining", "state")

    def __init__(self, state: GrammarState, plan: Spelling, remaining: int) -> None:
        self.state = state
        self.plan = plan
        self.remaining = remaining

    def __repr__(self) -> str:
        return f"BudgetedState({self.state!r}, plan={self.plan.num_tokens}, remaining={self.remaining})"


class BudgetedGrammar:
    """Like Grammar, over states that know their budget. End-of-sequence needs no token of it."""

    def __init__(self, grammar: Grammar, max_tokens: int) -> None:
        """BudgetError where the grammar may need more than max_tokens; it names the smallest budget."""
        plan = grammar.initial_plan
        if plan is None:
            raise BudgetError("the constraint asks for an answer too long to plan for", minimum_tokens=None)
        if plan.num_tokens > max_tokens:
            raise BudgetError(
                f"the shortest answer that the engine guarantees has {plan.num_tokens} tokens, and max_tokens is "
                f"{max_tokens}",
                minimum_tokens=plan.num_tokens,
            )
        self.grammar = grammar
        """Without the budget."""
        self.initial_state = BudgetedState(grammar.initial_state, plan, max_tokens)

    @property
    def report(self) -> EnforcementReport:
        return self.grammar.report

    def advance(self, state: BudgetedState, token_id: int) -> BudgetedState | None:
        """The state after the token; None where it is not allowed, or what is left would not do."""
        after = self.grammar.advance(state.state, token_id)
        if after is None:
            return None
        if self.grammar.is_terminated(after):
            return BudgetedState(after, EMPTY, state.remaining)
        plan = self.grammar.closing(after)
        data = self.grammar.token_bytes(token_id)
        if data is not None and state.plan.data.startswith(data):
            rest = state.plan.rest(len(data))
            if plan is None or rest.num_tokens < plan.num_tokens:
                plan = rest
        remaining = state.remaining - 1
        return None if plan is None or plan.num_tokens > remaining else BudgetedState(after, plan, remaining)

    def mask_row(self, state: BudgetedState) -> int:
        """Row of the compiler's mask table: tokens that `advance` accepts, the plan's next token among them.

        Where tokens are too many to be costed one by one, those that cost nearly as much as is left may be missing.
        """
        grammar = self.grammar
        if grammar.is_terminated(state.state) or state.remaining == 0:
            return EOS_ROW
        return grammar.mask_row_within(state.state, state.remaining - 1, state.plan)

    def forced_tokens(self, state: BudgetedState, preceding: Sequence[int]) -> tuple[int, ...]:
        """Those of Grammar.forced_tokens, as many as fit the tokens left."""
        return self._fitting(state, self.grammar.forced_tokens(state.state, preceding))

    def likely_tokens(self, state: BudgetedState, preceding: Sequence[int]) -> tuple[int, ...]:
        """Those of Grammar.likely_tokens, as many as fit the tokens left."""
        return self._fitting(state, self.grammar.likely_tokens(state.state, preceding))

    def _fitting(self, state: BudgetedState, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        after: BudgetedState | None = state
        for i, token_id in enumerate(token_ids):
            assert after is not None, "the loop ends where it is"
            after = self.advance(after, token_id)
            if after is None:
                return token_ids[:i]
        return token_ids

    def planned_token(self, state: BudgetedState) -> int | None:
        """A token of the fewest that complete the text; None where it needs no more."""
        return min(self.grammar.first_tokens(state.plan, state.plan.num_tokens - 1), default=None)

    def is_accepting(self, state: BudgetedState) -> bool:
        return self.grammar.is_accepting(state.state)

    def is_terminated(self, state: BudgetedState) -> bool:
        return self.grammar.is_terminated(state.state)

    def only_eos(self, state: BudgetedState) -> bool:
        """End-of-sequence is all that is allowed, by the grammar or because the budget is spent."""
        return state.remaining == 0 or self.grammar.only_eos(state.state)

    def allows(self, state: BudgetedState, token_id: int) -> bool:
        return self.advance(state, token_id) is not None
