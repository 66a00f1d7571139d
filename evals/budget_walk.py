"""Budget walks: random texts that take tokens from the masks of a budgeted grammar alone, some of them hostile.

A model that wanders is played by logits that are drawn at every step, at a temperature that is drawn for the walk. One
that does its worst prefers, besides, tokens that open brackets, or long ones that leave strings open.
"""

from __future__ import annotations

import math
import random
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from specdec.grammars import BudgetedGrammar, GrammarCompiler

WalkStyle = Literal["even", "opening", "long"]
WALK_STYLES: tuple[WalkStyle, ...] = ("even", "opening", "long")
WalkEnd = Literal["closed", "dead_end", "overrun", "disagreement"]
"""How a walk ended: complete inside its budget; at an empty mask; over the budget or incomplete when it was spent; at
a token that its mask allowed and that did not advance."""
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 0.1, 10.0
_PREFERENCE = 8.0
"""What a preferred token's logit gains, for each bracket or for a token of full length."""
_FULL_LENGTH = 16


class BudgetWalk(msgspec.Struct, frozen=True, kw_only=True):
    style: WalkStyle
    budget: int
    num_tokens: int
    text: bytes
    end: WalkEnd


class BudgetWalker:
    """Walks over the grammars of one compiler."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        vocabulary = compiler.vocabulary
        tokens = [vocabulary.token_bytes(token_id) or b"" for token_id in range(vocabulary.size)]
        num_opened = [len(token) and sum(token.count(byte) for byte in (b"{", b"[")) for token in tokens]
        lengths = [0 if b'"' in token or not token else min(len(token), _FULL_LENGTH) for token in tokens]
        self._preferences: dict[WalkStyle, NDArray[np.float64]] = {
            "even": np.zeros(vocabulary.size),
            "opening": _PREFERENCE * np.array(num_opened, np.float64),
            "long": _PREFERENCE * np.array(lengths, np.float64) / _FULL_LENGTH,
        }
        self._eos = frozenset(vocabulary.eos_token_ids)

    def walk(self, budgeted: BudgetedGrammar, budget: int, rng: random.Random) -> BudgetWalk:
        """One walk to its end."""
        draws = np.random.default_rng(rng.getrandbits(64))
        style = rng.choice(WALK_STYLES)
        temperature = math.exp(rng.uniform(math.log(_LOWEST_TEMPERATURE), math.log(_HIGHEST_TEMPERATURE)))
        preference = self._preferences[style]
        state = budgeted.initial_state
        text = bytearray()
        num_tokens = 0
        end: WalkEnd | None = None
        while not budgeted.only_eos(state):
            allowed = self._allowed_ids(budgeted.mask_row(state))
            if not len(allowed):
                end = "dead_end"
                break
            logits = draws.normal(size=len(allowed)) + preference[allowed]
            token_id = int(allowed[np.argmax(logits / temperature + draws.gumbel(size=len(allowed)))])
            if token_id in self._eos:
                break
            successor = budgeted.advance(state, token_id)
            if successor is None:
                end = "disagreement"
                break
            state = successor
            num_tokens += 1
            text += self._compiler.vocabulary.token_bytes(token_id) or b""
        if end is None:
            end = "closed" if budgeted.is_accepting(state) and num_tokens <= budget else "overrun"
        return BudgetWalk(style=style, budget=budget, num_tokens=num_tokens, text=bytes(text), end=end)

    def _allowed_ids(self, row: int) -> NDArray[np.int64]:
        words = np.asarray(self._compiler.mask_table.rows[row])
        return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
