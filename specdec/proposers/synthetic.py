"""SyntheticDrafter: tokens that are accepted at given rates, whatever the target draws.

For benchmarks: its answers are not the model's. They satisfy their constraint all the same, since it drafts what the
grammar's own plan completes the answer with. Beside a draft model it leaves the drafting, and what that costs, to the
model, whose tokens are then accepted at the rates (draft_model.py).
"""

from __future__ import annotations

from specdec.proposers.base import NO_GUESS, Draft, Guess
from specdec.sequence import Sequence


class SyntheticDrafter:
    """Drafts one token at a time: in a constrained answer the plan's next, else the text's last token once more."""

    name = "synthetic"

    def guess(self, draft: Draft) -> Guess:
        grammar, state = draft.sequence.grammar, draft.state
        if grammar is not None and state is not None:
            token_id = grammar.planned_token(state)
            return NO_GUESS if token_id is None else Guess((token_id,))
        return Guess(draft.last(1))

    def finished(self, sequence: Sequence) -> None:
        """Nothing was kept."""
