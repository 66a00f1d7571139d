"""MaskEngine: what fills bitmasks for a schema over a real vocabulary; ours, and what every peer has to offer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from specdec.evals.schema_engine import CompileOptions, SpecdecEngine
from specdec.evals.vocabularies import EvalVocabulary
from specdec.grammars import BudgetedGrammar, BudgetedState, Grammar, GrammarCompiler, GrammarState, Vocabulary

# Schemas are whatever JSON holds.
Json = Any
SPARE_TOKENS = 24
"""Beyond the text's own tokens in a guarded walk: near the end, all that does not soon end is forbidden."""


class MaskWalk(Protocol):
    """One text under way. `fill` and `advance` are what is timed: they do what a caller would, and no more."""

    words: NDArray[np.uint32]
    """The bitmask of the last `fill`: bit (id & 31) of word (id >> 5)."""

    def fill(self) -> None:
        """Fill the bitmask with the tokens that may come next."""

    def advance(self, token_id: int) -> bool:
        """Take a token, end-of-sequence included; False where it is not allowed, and the walk is over."""

    def num_computed(self) -> int | None:
        """How many masks were computed rather than found, by the engine so far; None where it does not say."""


class MaskGrammar(Protocol):
    def walk(self) -> MaskWalk:
        """A walk from the start."""

    def guarded_walk(self, num_tokens: int) -> MaskWalk | None:
        """A walk that must end within so many tokens or little more; None where the engine knows no budget."""


class MaskEngine(Protocol):
    def compile(self, schema_text: str, options: CompileOptions) -> MaskGrammar:
        """Raises RefusedSchemaError; anything else it raises is a fault of the engine."""

    def table(self) -> tuple[int, int] | None:
        """Rows of the table of masks, and the bytes of each; None where there is none to see."""


class SpecdecMasks:
    """Ours: the row of a state, copied out of the table."""

    def __init__(self, vocabulary: EvalVocabulary, documents: Mapping[str, Json]) -> None:
        tokens = Vocabulary(vocabulary.token_bytes, vocabulary.eos_token_ids, vocabulary.size)
        self._engine = SpecdecEngine(documents, tokens)

    def compile(self, schema_text: str, options: CompileOptions) -> _SpecdecMaskGrammar:
        return _SpecdecMaskGrammar(self._engine.compiler, self._engine.compile(schema_text, options).grammar)

    def table(self) -> tuple[int, int]:
        table = self._engine.compiler.mask_table
        return table.num_rows, table.rows.shape[1] * table.rows.itemsize


class _SpecdecMaskGrammar:
    def __init__(self, compiler: GrammarCompiler, grammar: Grammar) -> None:
        self._compiler = compiler
        self._grammar = grammar

    def walk(self) -> _SpecdecWalk[GrammarState]:
        return _SpecdecWalk(self._compiler, self._grammar, self._grammar.initial_state)

    def guarded_walk(self, num_tokens: int) -> _SpecdecWalk[BudgetedState] | None:
        minimum = self._grammar.minimum_tokens
        if minimum is None:
            return None
        budgeted = BudgetedGrammar(self._grammar, max(minimum, num_tokens) + SPARE_TOKENS)
        return _SpecdecWalk(self._compiler, budgeted, budgeted.initial_state)


_State = TypeVar("_State")


class _Walked(Protocol[_State]):
    """What both kinds of grammar offer."""

    def mask_row(self, state: _State, /) -> int: ...

    def advance(self, state: _State, token_id: int, /) -> _State | None: ...


class _SpecdecWalk(Generic[_State]):
    def __init__(self, compiler: GrammarCompiler, grammar: _Walked[_State], start: _State) -> None:
        self._compiler = compiler
        self._table = compiler.mask_table
        self._grammar = grammar
        self._state = start
        self.words: NDArray[np.uint32] = np.zeros(self._table.rows.shape[1], np.uint32)

    def fill(self) -> None:
        row = self._grammar.mask_row(self._state)
        self.words[:] = self._table.rows[row]

    def advance(self, token_id: int) -> bool:
        successor = self._grammar.advance(self._state, token_id)
        if successor is None:
            return False
        self._state = successor
        return True

    def num_computed(self) -> int:
        return self._compiler.num_computed_masks
