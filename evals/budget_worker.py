"""BudgetWorker: grammars over a real vocabulary in a process of its own, killed where a call outlasts its deadline."""

from __future__ import annotations

import random
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from specdec.evals.budget_walk import BudgetWalk, BudgetWalker
from specdec.evals.engine_worker import EngineWorker, LostWorkerError
from specdec.evals.schema_engine import CompileOptions, SpecdecEngine
from specdec.evals.schema_worker import COMPILE_SECONDS
from specdec.evals.shortest_answer import ShortestAnswer, ShortestSearch
from specdec.evals.vocabularies import EvalVocabulary
from specdec.grammars import BudgetedGrammar, BudgetError, Grammar, GrammarError, Vocabulary

_WALK_SECONDS = 120.0


class CompiledBudget(msgspec.Struct, frozen=True, kw_only=True):
    """A schema's grammar, and what a budget below its minimum was answered."""

    minimum: int | None = None
    """None where there is no grammar, or its answers are too long to plan for."""
    is_refused_below: bool = False
    """A budget of one token less is refused, and the refusal names the minimum."""
    refusal: str | None = None
    is_fault: bool = False
    """The compiler did not say no: it ran out of time, crashed, or raised what it must not raise."""


class WalksOfSchema(msgspec.Struct, frozen=True, kw_only=True):
    walks: tuple[BudgetWalk, ...]
    fault: str | None = None


class BudgetWorker(EngineWorker):
    # Any: documents are whatever JSON holds.
    def __init__(self, vocabulary: EvalVocabulary, documents: Mapping[str, Any]) -> None:
        super().__init__("specdec", _serve, (vocabulary, dict(documents)))

    def compile(self, schema_text: str, options: CompileOptions) -> CompiledBudget:
        try:
            compiled: CompiledBudget = self._ask(("compile", schema_text, options), COMPILE_SECONDS)
        except LostWorkerError as error:
            return CompiledBudget(refusal=str(error), is_fault=True)
        return compiled

    def walks(self, schema_text: str, options: CompileOptions, number: int, seed: int) -> WalksOfSchema:
        """So many walks over a schema that has a minimum."""
        try:
            self._ask(("compile", schema_text, options), COMPILE_SECONDS)
            done: WalksOfSchema = self._ask(("walk", number, seed), _WALK_SECONDS)
        except LostWorkerError as error:
            return WalksOfSchema(walks=(), fault=str(error))
        return done

    def shortest(self, schema_text: str, options: CompileOptions, seconds: float) -> ShortestAnswer:
        """The search for a shorter answer than the minimum, in about so much time."""
        try:
            self._ask(("compile", schema_text, options), COMPILE_SECONDS)
            found: ShortestAnswer = self._ask(("shortest", seconds), 4 * seconds + 10)
        except LostWorkerError as error:
            return ShortestAnswer(num_tokens=None, why=str(error))
        return found


def _serve(connection: Connection, vocabulary: EvalVocabulary, documents: Mapping[str, Any]) -> None:
    """The worker's process."""
    tokens = Vocabulary(vocabulary.token_bytes, vocabulary.eos_token_ids, vocabulary.size)
    engine = SpecdecEngine(documents, tokens)
    walker = BudgetWalker(engine.compiler)
    search = ShortestSearch(tokens)
    connection.send("")
    grammar: Grammar | None = None
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        if request[0] == "compile":
            grammar, compiled = _compile(engine, request[1], request[2])
            connection.send(compiled)
            continue
        assert grammar is not None, "asked of what compiled"
        if request[0] == "walk":
            connection.send(_walk(walker, grammar, request[1], request[2]))
        else:
            connection.send(search.of(grammar, request[1]))


def _compile(engine: SpecdecEngine, text: str, options: CompileOptions) -> tuple[Grammar | None, CompiledBudget]:
    try:
        grammar = engine.grammar(text, options)
    except GrammarError as error:
        return None, CompiledBudget(refusal=str(error))
    except Exception as error:  # noqa: BLE001, any error of one schema is a finding, and the others count
        return None, CompiledBudget(refusal=f"{type(error).__name__}: {error}"[:500], is_fault=True)
    minimum = grammar.minimum_tokens
    if minimum is None:
        return grammar, CompiledBudget(refusal="its answers are too long to plan for")
    return grammar, CompiledBudget(minimum=minimum, is_refused_below=_is_refused(grammar, minimum))


def _is_refused(grammar: Grammar, minimum: int) -> bool:
    try:
        BudgetedGrammar(grammar, minimum - 1)
    except BudgetError as error:
        return error.minimum_tokens == minimum
    return False


def _walk(walker: BudgetWalker, grammar: Grammar, number: int, seed: int) -> WalksOfSchema:
    rng = random.Random(seed)
    minimum = grammar.minimum_tokens
    assert minimum is not None, "walked are schemas that have one"
    walks: list[BudgetWalk] = []
    try:
        for _ in range(number):
            budget = rng.randint(minimum, 3 * minimum)
            walks.append(walker.walk(BudgetedGrammar(grammar, budget), budget, rng))
    except Exception as error:  # noqa: BLE001, as where schemas are compiled; the walks before it count
        return WalksOfSchema(walks=tuple(walks), fault=f"{type(error).__name__}: {error}"[:500])
    return WalksOfSchema(walks=tuple(walks))
