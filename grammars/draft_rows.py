"""draft_rows: the masks that a verification pass needs, of all its sequences in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from specdec.grammars.budget import BudgetedGrammar, BudgetedState


class DraftWalk(NamedTuple):
    """A draft of k tokens, from the state before it."""

    grammar: BudgetedGrammar
    state: BudgetedState
    token_ids: Sequence[int]


def draft_rows(walks: Iterable[DraftWalk]) -> list[list[int]]:
    """For each draft k + 1 rows of the mask table: before each of its tokens, and after the last.

    From the end of the answer on, and after a token that the grammar forbids, the last row is repeated: nothing there
    is ever emitted. Rows stay valid as mask_table.py says.
    """
    return [_rows(*walk) for walk in walks]


def _rows(grammar: BudgetedGrammar, state: BudgetedState, token_ids: Sequence[int]) -> list[int]:
    rows = [grammar.mask_row(state)]
    for token_id in token_ids:
        following = None if grammar.is_terminated(state) else grammar.advance(state, token_id)
        if following is None:
            break
        state = following
        rows.append(rows[-1] if grammar.is_terminated(state) else grammar.mask_row(state))
    return rows + [rows[-1]] * (len(token_ids) + 1 - len(rows))
