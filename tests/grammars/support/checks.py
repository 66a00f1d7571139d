"""What a grammar must satisfy, checked without looking inside it."""

from __future__ import annotations

import json
import random
from typing import Any

from jsonschema import Draft202012Validator
from schemas import mutated, num_renderings, random_value, renderings

from specdec.grammars import Grammar, GrammarCompiler, GrammarState, Vocabulary
from specdec.grammars.masks import shared_position

_CLOSERS_FIRST = b'"}]0123456789,:'
_ALPHABET = [
    bytes([byte])
    for byte in dict.fromkeys(
        _CLOSERS_FIRST + bytes(range(0x61, 0x7B)) + b"\x80\x98\x9f\xa8\xa9\xc3\xf0" + bytes(range(0x20, 0x7F))
    )
]


def strict_loads(text: bytes) -> Any:
    """json.loads that fails on repeated keys, lone surrogates and non-finite numbers."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        assert len(keys) == len(pairs), f"repeated key in {text!r}"
        return keys

    def fail(name: str) -> None:
        raise AssertionError(f"{name} in {text!r}")

    value = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=fail)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return value


def allowed_ids(compiler: GrammarCompiler, grammar: Grammar, state: GrammarState) -> list[int]:
    row = compiler.mask_table.rows[grammar.mask_row(state)].tolist()
    return [id_ for id_ in range(len(row) * 32) if row[id_ >> 5] >> (id_ & 31) & 1]


def completion(grammar: Grammar, state: GrammarState, max_states: int = 20_000) -> bytes | None:
    """A text that ends the state's, by depth-first search over bytes that tries to close before it opens.

    It opens no more than eight frames above those that are open, else optional recursion would never end.
    """
    max_depth = 8 + _depth(state)
    stack = [(state, b"")]
    seen: set[object] = set()
    while stack and len(seen) < max_states:
        current, text = stack.pop()
        if grammar.is_accepting(current):
            return text
        # Free keys that differ in their text alone lead to the same places.
        place = (shared_position(current.position, grammar._automaton), current.stack)
        if place not in seen:
            seen.add(place)
            for byte in reversed(_ALPHABET):
                after = grammar.advance_bytes(current, byte)
                if after is not None and _depth(after) <= max_depth:
                    stack.append((after, text + byte))
    return None


def _depth(state: GrammarState) -> int:
    return 0 if state.stack is None else state.stack.depth


def check_state(vocabulary: Vocabulary, compiler: GrammarCompiler, grammar: Grammar, state: GrammarState) -> None:
    """Mask and advance agree on every id, and the mask is not empty."""
    allowed = set(allowed_ids(compiler, grammar, state))
    assert allowed, f"empty mask at {state}"
    accepted = {id_ for id_ in range(vocabulary.size) if grammar.advance(state, id_) is not None}
    assert allowed == accepted, {id_: vocabulary.token_bytes(id_) for id_ in allowed.symmetric_difference(accepted)}
    ends = allowed & set(vocabulary.eos_token_ids)
    assert bool(ends) == (grammar.is_accepting(state) or grammar.is_terminated(state))
    assert grammar.only_eos(state) == (allowed == set(vocabulary.eos_token_ids))


def random_walk(
    vocabulary: Vocabulary, compiler: GrammarCompiler, grammar: Grammar, rng: random.Random, *, num_checked: int = 0
) -> bytes:
    """A text the grammar ends: random tokens for a while, then a shortest completion."""
    state, text = grammar.initial_state, b""
    for step in range(rng.randint(1, 25)):
        if step < num_checked:
            check_state(vocabulary, compiler, grammar, state)
        ids = [id_ for id_ in allowed_ids(compiler, grammar, state) if id_ not in vocabulary.eos_token_ids]
        if not ids or (grammar.is_accepting(state) and rng.random() < 0.3):
            break
        long = [id_ for id_ in ids if len(vocabulary.token_bytes(id_) or b"") > 1]
        id_ = rng.choice(long if long and rng.random() < 0.5 else ids)
        text += vocabulary.token_bytes(id_) or b""
        after = grammar.advance(state, id_)
        assert after is not None, f"the mask allowed {text!r}, advance did not"
        state = after
    rest = completion(grammar, state)
    assert rest is not None, f"dead end after {text!r}"
    return text + rest


def accepts(grammar: Grammar, text: bytes) -> bool:
    state = grammar.advance_bytes(grammar.initial_state, text)
    return state is not None and grammar.is_accepting(state)


def check_against_validator(
    vocabulary: Vocabulary,
    compiler: GrammarCompiler,
    schema: Any,
    rng: random.Random,
    *,
    num_walks: int = 3,
    num_instances: int = 12,
    num_checked: int = 0,
) -> None:
    """Closed walks are instances; a value is an instance iff some rendering of it is accepted."""
    grammar = compiler.compile_json_schema(schema)
    validator = Draft202012Validator(schema)
    values = []
    for _ in range(num_walks):
        text = random_walk(vocabulary, compiler, grammar, rng, num_checked=num_checked)
        values.append(strict_loads(text))
        assert validator.is_valid(values[-1]), f"{text!r} is no instance of {schema}"
    for index in range(num_instances):
        value = mutated(rng, rng.choice(values)) if index % 3 else random_value(rng)
        if num_renderings(value) > 500:
            continue
        accepted = [text for text in renderings(value) if accepts(grammar, text)]
        # A number that the grammar would spell with more digits than it generates is the one thing not refutable.
        assert bool(accepted) == validator.is_valid(value) or _beyond_digits(value), (schema, value, accepted)


def _beyond_digits(value: Any) -> bool:
    return any(len(word.strip("{}[],:")) > 16 or "e+" in word for word in json.dumps(value).replace(",", " ").split())
