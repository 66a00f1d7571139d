"""Acceptance rules: how much of a draft to keep, where both laws are known at every one of its positions.

A draft of K tokens is walked row by row: row i stands after the draft's first i tokens, row K after all of them. At
each row a rule says whether the answer may leave the draft there, and with what weight to go on. The last row at which
it may is where it does: the draft tokens before are accepted, and the token there is drawn from the residual

    (weight * target_probs - draft_probs)+

made to sum to 1, or at row K from target_probs. Either rule leaves the law of what is emitted as the target has it,
whatever the draft's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor

from specdec.speculative import Verification


class DraftRow(NamedTuple):
    """What a rule knows of a row before the last."""

    weight: float
    """From the row before; 1 at the first."""
    residual_mass: float
    """Sum of the residual."""
    target_prob: float
    """Of the draft token that stands next."""
    draft_prob: float
    """Of the same; 1 where no other could have been drafted."""
    uniform: float
    """Between 0 and 1, neither of them."""


class Step(NamedTuple):
    leaves: bool
    """Whether the answer leaves the draft at this row, unless it does at a later one."""
    weight: float
    """For the next row; at 0 nothing there or after can be accepted."""


Rule = Callable[[DraftRow], Step]


def residual(target_probs: Tensor, draft_probs: Tensor, weights: Tensor) -> Tensor:
    """Not normalised: fp64 [B, V], [B, V] and [B, 1] -> [B, V]."""
    return (weights * target_probs - draft_probs).clamp_(min=0.0)


def rejection(row: DraftRow) -> Step:
    """Token by token: accepted with min(1, target_prob / draft_prob) (Leviathan et al. 2023, algorithm 1)."""
    is_accepted = row.uniform * row.draft_prob < row.target_prob
    # A residual that rounding has emptied holds no token to draw.
    return Step(not is_accepted and row.residual_mass > 0.0, 1.0 if is_accepted else 0.0)


def block(row: DraftRow) -> Step:
    """The draft as a whole (Sun et al. 2024, algorithm 2), which keeps at least as much in expectation.

    Where the target is the draft, no row may be left and the weight stays 1, with which the last one is.
    """
    leaves = row.uniform * (row.residual_mass + 1.0 - row.weight) < row.residual_mass
    return Step(leaves, min(1.0, row.weight * row.target_prob / row.draft_prob))


def accepts_whole_draft(weight: float, uniform: float) -> bool:
    """Whether the answer leaves at the row after all draft tokens, by the weight that a rule came to there."""
    return uniform < weight


RULES: Final[dict[Verification, Rule]] = {Verification.REJECTION: rejection, Verification.BLOCK: block}
