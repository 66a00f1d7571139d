"""Random walks under a budget: each ends in a complete text, and in time."""

from __future__ import annotations

import random
from collections.abc import Callable

from checks import allowed_ids

from specdec.grammars import BudgetedGrammar, BudgetedState, Grammar, GrammarCompiler


def with_spare_tokens(grammar: Grammar, num_spare_tokens: int) -> BudgetedGrammar:
    """A budget of so many tokens more than the shortest answer takes."""
    minimum = grammar.minimum_tokens
    assert minimum is not None, "short answers are enough"
    return BudgetedGrammar(grammar, minimum + num_spare_tokens)


def walk(
    compiler: GrammarCompiler,
    budgeted: BudgetedGrammar,
    rng: random.Random,
    *,
    check: Callable[[BudgetedState], None],
    num_checked: int,
) -> bytes:
    """The text of a random walk to its end; the first states are checked."""
    vocabulary = compiler.vocabulary
    state, text, num_tokens = budgeted.initial_state, b"", 0
    while not budgeted.only_eos(state):
        if num_tokens < num_checked:
            check(state)
        ids = allowed_ids(compiler, budgeted, state)
        assert ids, f"empty mask at {state} after {text!r}"
        token_id = rng.choice(ids)
        if token_id in vocabulary.eos_token_ids:
            break
        after = budgeted.advance(state, token_id)
        assert after is not None, f"{vocabulary.token_bytes(token_id)!r} is allowed after {text!r} but does not advance"
        state, text, num_tokens = after, text + (vocabulary.token_bytes(token_id) or b""), num_tokens + 1
    assert budgeted.is_accepting(state), f"{text!r} is not complete"
    assert num_tokens <= budgeted.initial_state.remaining
    return text
