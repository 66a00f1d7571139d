"""Finite languages, written out: every order of keys, and masks against the prefixes of all texts."""

from __future__ import annotations

import itertools
import random
from typing import Any

from checks import allowed_ids

from specdec.grammars import GrammarCompiler, GrammarState, SchemaOptions, UnsatisfiableSchemaError, Vocabulary


def orders(value: Any) -> list[Any]:
    """The value with the keys of each object in it in every order."""
    if isinstance(value, list):
        return [list(items) for items in itertools.product(*map(orders, value))]
    if isinstance(value, dict):
        return [
            dict(zip(keys, items, strict=True))
            for keys in itertools.permutations(value)
            for items in itertools.product(*(orders(value[key]) for key in keys))
        ]
    return [value]


def compare_masks(
    schema: dict[str, Any], texts: set[bytes], vocabulary: Vocabulary, options: SchemaOptions, rng: random.Random
) -> None:
    """The masks allow exactly the tokens that go on as one of the texts."""
    compiler = GrammarCompiler(vocabulary)
    try:
        grammar = compiler.compile_json_schema(schema, options)
    except UnsatisfiableSchemaError:
        assert not texts
        return
    prefixes = {text[:length] for text in texts for length in range(len(text) + 1)}
    tokens = [(id_, data) for id_ in range(vocabulary.size) if (data := vocabulary.token_bytes(id_)) is not None]
    pending: list[tuple[GrammarState, bytes]] = [(grammar.initial_state, b"")]
    visited = {b""}
    for state, text in pending:
        expected = {id_ for id_, data in tokens if text + data in prefixes}
        if text in texts:
            expected |= set(vocabulary.eos_token_ids)
        assert set(allowed_ids(compiler, grammar, state)) == expected, (schema, text)
        followers = [(id_, text + data) for id_, data in tokens if text + data in prefixes]
        for id_, longer in rng.sample(followers, min(len(followers), 12)):
            if longer not in visited and len(visited) < 150:
                visited.add(longer)
                after = grammar.advance(state, id_)
                assert after is not None
                pending.append((after, longer))
