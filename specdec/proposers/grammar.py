"""GrammarDrafter: what the constraint forces.

The run is forced in bytes. The target may still spell them by other tokens, so that these are drafts like any other.
"""

from __future__ import annotations

from typing import Final

from specdec.proposers.base import NO_GUESS, Draft, Guess
from specdec.sequence import Sequence

_NUM_PRECEDING: Final = 65
"""Tokens before the run, which say how its first bytes are spelt: more bytes than forced.py looks at."""


class GrammarDrafter:
    """The forced run of the grammar's state; has nothing to remember.

    Tokens that the tokenizer spells the run by whatever follows have confidence 1. Those that it might spell otherwise,
    as what follows decides, have confidence 0.
    """

    name = "grammar"

    def guess(self, draft: Draft) -> Guess:
        grammar, state = draft.sequence.grammar, draft.state
        if grammar is None or state is None:
            return NO_GUESS
        preceding = draft.last(_NUM_PRECEDING)
        token_ids = grammar.forced_tokens(state, preceding)
        if token_ids:
            return Guess(token_ids, 1)
        return Guess(grammar.likely_tokens(state, preceding))

    def finished(self, sequence: Sequence) -> None:
        """Nothing was kept."""
