"""Schema walks: texts that a grammar ends, inside a budget or by choosing tokens that close."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from specdec.evals.schema_engine import EOS_TOKEN_ID
from specdec.grammars import BudgetedGrammar, Grammar, GrammarCompiler

_MAX_FREE_TOKENS = 60
"""Tokens of a budget beyond the fewest that the grammar guarantees."""
_MAX_TOKENS = 3000
_CLOSING = (b"}", b"]", b'"', b"null", b"true", b"false", b"0", b"1", b'""', b"[]", b"{}", b":", b",")
"""Outside a string, the tokens that lead to the end soonest come first."""
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789")


def closed_walk(compiler: GrammarCompiler, grammar: Grammar, rng: random.Random) -> bytes | None:
    """The text of a walk to its end; None where the grammar's texts are too long to plan for.

    RuntimeError where a mask and `advance` disagree, a mask is empty, or the budget is spent before the text is
    complete.
    """
    minimum = grammar.minimum_tokens
    if minimum is None:
        return None
    budgeted = BudgetedGrammar(grammar, minimum + rng.randrange(_MAX_FREE_TOKENS))
    state = budgeted.initial_state
    text = bytearray()
    while not budgeted.only_eos(state):
        allowed = _allowed_ids(compiler, budgeted.mask_row(state))
        if not allowed:
            raise RuntimeError(f"no token is allowed after {bytes(text)!r}")
        token_id = rng.choice(allowed)
        if token_id == EOS_TOKEN_ID:
            break
        successor = budgeted.advance(state, token_id)
        if successor is None:
            raise RuntimeError(f"token {token_id} is allowed after {bytes(text)!r} but does not advance")
        state = successor
        text += compiler.vocabulary.token_bytes(token_id) or b""
    if not budgeted.is_accepting(state):
        raise RuntimeError(f"the budget is spent and the text is not complete: {bytes(text)!r}")
    return bytes(text)


def walk(compiler: GrammarCompiler, grammar: Grammar, rng: random.Random, *, num_free: int) -> Iterator[bytes | None]:
    """The tokens of a walk, the first ones mostly free and the others chosen to close it; None is end-of-sequence.

    It ends there, or after 3,000 tokens. RuntimeError where a mask and `advance` disagree, or a mask is empty.
    """
    state = grammar.initial_state
    text = bytearray()
    place = _Place()
    for position in range(_MAX_TOKENS):
        allowed = _allowed_ids(compiler, grammar.mask_row(state))
        if not allowed:
            raise RuntimeError(f"no token is allowed after {bytes(text)!r}")
        is_free = position < num_free and rng.random() < 0.85
        token_id = rng.choice(allowed) if is_free else _closing_id(compiler, allowed, place, rng)
        if token_id == EOS_TOKEN_ID:
            yield None
            return
        successor = grammar.advance(state, token_id)
        if successor is None:
            raise RuntimeError(f"token {token_id} is allowed after {bytes(text)!r} but does not advance")
        state = successor
        token = compiler.vocabulary.token_bytes(token_id) or b""
        text += token
        place.move(token)
        yield token


class _Place:
    """Where in JSON's text a walk is: closing a string is not closing an array."""

    def __init__(self) -> None:
        self.is_in_string = False
        self.is_escaped = False

    def move(self, token: bytes) -> None:
        for byte in token:
            if self.is_escaped:
                self.is_escaped = False
            elif self.is_in_string and byte == ord("\\"):
                self.is_escaped = True
            elif byte == ord('"'):
                self.is_in_string = not self.is_in_string


def _allowed_ids(compiler: GrammarCompiler, row: int) -> list[int]:
    words = np.asarray(compiler.mask_table.rows[row])
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return [int(token_id) for token_id in np.flatnonzero(bits)]


def _closing_id(compiler: GrammarCompiler, allowed: list[int], place: _Place, rng: random.Random) -> int:
    if EOS_TOKEN_ID in allowed:
        return EOS_TOKEN_ID
    if place.is_in_string:
        if ord('"') in allowed and not place.is_escaped:
            return ord('"')
        letters = [token_id for token_id in allowed if token_id in _LETTERS]
        return rng.choice(letters or allowed)
    by_bytes = {compiler.vocabulary.token_bytes(token_id): token_id for token_id in allowed}
    return next((by_bytes[token] for token in _CLOSING if token in by_bytes), None) or rng.choice(allowed)
