"""What a grammar must satisfy, checked without looking inside it."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from all_keywords import STRINGS, random_value
from schemas import mutated, num_renderings, renderings

from specdec.grammars import (
    Grammar,
    GrammarCompiler,
    GrammarState,
    SchemaOptions,
    UnsatisfiableSchemaError,
    Vocabulary,
)
from specdec.grammars.formats import NUMBER_FORMATS, format_language, format_outer
from specdec.grammars.judge import Judge
from specdec.grammars.masks import shared_position
from specdec.grammars.options import DEFAULT_OPTIONS
from specdec.grammars.patterns import pattern_language

_MAX_COMPLETION_BYTES = 160
# Values, and the start of a key that patterns ask for.
_SHORT_VALUES = [
    b"null", b"true", b"0", b"0.5", b'""', b"[]", b'[""]', b"[0]", b"[0,0]", b"{}", b'{"a":0}', b'{"a":"x"}', b'"q":',
]  # fmt: skip
_CLOSERS = [b'"', b"}", b"]"]
_ALPHABET = [
    bytes([byte])
    for byte in dict.fromkeys(
        b"0123456789,:\n" + bytes(range(0x61, 0x7B)) + b"\x80\x98\x9f\xa8\xa9\xc3\xf0" + bytes(range(0x20, 0x7F))
    )
]


def allowed_ids(compiler: GrammarCompiler, grammar: Grammar, state: GrammarState) -> list[int]:
    row_id = grammar.mask_row(state)
    # Asking for a row may replace the table's array by a larger one, so the array is read afterwards.
    row = compiler.mask_table.rows[row_id].tolist()
    return [id_ for id_ in range(len(row) * 32) if row[id_ >> 5] >> (id_ & 31) & 1]


def completion(grammar: Grammar, state: GrammarState, hints: Sequence[bytes] = ()) -> bytes | None:
    """A text that ends the state's; None where a search over bytes and hints finds none.

    First depth-first, closing before opening, with few frames above those that are open, else optional recursion would
    never end; then, for frames that ask for a rare key or item, at random, and by the number of bytes and hints.
    """
    hints = [*hints, *_SHORT_VALUES]
    words = [*_CLOSERS, *hints, *_ALPHABET]
    for max_frames in (0, 1, 3):
        text = _search(grammar, state, words, _depth(state) + max_frames, 120)
        if text is not None:
            return text
    rng = random.Random(0)
    for _ in range(2000):
        text = _random_completion(grammar, state, [_CLOSERS, hints, words], _depth(state) + 4, rng)
        if text is not None:
            return text
    return _search(grammar, state, words, _depth(state) + 8, 40_000, shortest_first=True)


def _random_completion(
    grammar: Grammar, state: GrammarState, kinds: list[list[bytes]], max_depth: int, rng: random.Random
) -> bytes | None:
    text = b""
    while not grammar.is_accepting(state):
        first = rng.choice(kinds)
        for word in (*rng.sample(first, len(first)), *rng.sample(kinds[-1], len(kinds[-1]))):
            after = grammar.advance_bytes(state, word)
            if after is not None and _depth(after) <= max_depth:
                state, text = after, text + word
                break
        else:
            return None
        if len(text) > _MAX_COMPLETION_BYTES:
            return None
    return text


def _search(
    grammar: Grammar,
    state: GrammarState,
    words: list[bytes],
    max_depth: int,
    max_expanded: int,
    *,
    shortest_first: bool = False,
) -> bytes | None:
    pending: list[tuple[int, int, GrammarState, bytes]] = [(0, 0, state, b"")]
    found: set[object] = set()
    num_pushed = 0
    while pending and len(found) < max_expanded:
        cost, _, current, text = heapq.heappop(pending)
        if grammar.is_accepting(current):
            return text
        # Free keys that differ in their text alone lead to the same places.
        place = (shared_position(current.position, grammar._automaton), current.stack)
        if place in found or len(text) > _MAX_COMPLETION_BYTES:
            continue
        found.add(place)
        for word in words if shortest_first else reversed(words):
            after = grammar.advance_bytes(current, word)
            if after is not None and _depth(after) <= max_depth:
                num_pushed += 1
                order = cost + 1 + 2 * _depth(after) if shortest_first else -num_pushed
                heapq.heappush(pending, (order, num_pushed, after, text + word))
    return None


def hints(schema: Any) -> list[bytes]:
    """Whole values and keys that a schema may ask for, those that a search byte by byte would find late."""
    keywords = _keywords(schema)
    values = [value for one in keywords.get("enum", ()) if isinstance(one, list) for value in one]
    values += keywords.get("const", ())
    texts = [text for value in values if num_renderings(value) <= 8 for text in renderings(value)]
    texts += [json.dumps(text, ensure_ascii=False).encode() for text in STRINGS]
    texts += [text + b":" for text in texts if text.startswith(b'"')]
    return list(dict.fromkeys(text for text in texts if len(text) > 2))


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
    vocabulary: Vocabulary,
    compiler: GrammarCompiler,
    grammar: Grammar,
    rng: random.Random,
    *,
    schema: Any = True,
    num_checked: int = 0,
) -> bytes:
    """A text the grammar ends: random tokens for a while, then a completion; the schema only gives hints to it."""
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
    rest = completion(grammar, state, hints(schema))
    assert rest is not None, f"dead end after {text!r}"
    return text + rest


def accepts(grammar: Grammar, text: bytes) -> bool:
    state = grammar.advance_bytes(grammar.initial_state, text)
    return state is not None and grammar.is_accepting(state)


def check_against_judge(
    vocabulary: Vocabulary,
    compiler: GrammarCompiler,
    schema: Any,
    rng: random.Random,
    *,
    num_walks: int = 3,
    num_instances: int = 12,
    num_checked: int = 0,
    options: SchemaOptions = DEFAULT_OPTIONS,
) -> None:
    """Closed walks are instances; a value is an instance iff some rendering of it is accepted.

    A schema that is refused for having no instance has none among the values tried.
    """
    judge = Judge(schema)
    try:
        grammar = compiler.compile_json_schema(schema, options)
    except UnsatisfiableSchemaError:
        for _ in range(num_instances):
            value = random_value(rng)
            if judge.violation(json.dumps(value)) is None:
                assert is_approximated(schema, value), f"no instance of {schema}, it says; yet {value!r} is one"
        return
    values = []
    for _ in range(num_walks):
        text = random_walk(vocabulary, compiler, grammar, rng, schema=schema, num_checked=num_checked)
        violation = judge.violation(text.decode())
        assert violation is None, f"{text!r} is no instance of {schema}: {violation}"
        values.append(json.loads(text))
    for value in nearby_values(rng, values, num_instances):
        check_value(grammar, judge, schema, value)


def check_negation(
    vocabulary: Vocabulary,
    compiler: GrammarCompiler,
    definitions: dict[str, Any],
    rng: random.Random,
    *,
    num_walks: int = 2,
    num_instances: int = 9,
) -> None:
    """No text is accepted by the part r of the definitions and by its negation; every value is by one of them."""
    schema = {"$ref": "#/$defs/r", "$defs": definitions}
    sides = [_compiled(compiler, one) for one in (schema, {"not": {"$ref": "#/$defs/r"}, "$defs": definitions})]
    values = []
    for side, other in (sides, sides[::-1]):
        for _ in range(num_walks if side is not None else 0):
            assert side is not None
            text = random_walk(vocabulary, compiler, side, rng, schema=schema)
            assert other is None or not accepts(other, text), f"{text!r} is an instance of {schema} and of its negation"
            values.append(json.loads(text))
    for value in nearby_values(rng, values, num_instances):
        num_accepting = sum(
            any(accepts(side, text) for text in renderings(value)) for side in sides if side is not None
        )
        assert num_accepting < 2, f"{value!r} is an instance of {schema} and of its negation"
        assert num_accepting or is_approximated({"not": schema}, value), f"{value!r}: neither {schema} nor its negation"


def _compiled(compiler: GrammarCompiler, schema: Any) -> Grammar | None:
    try:
        return compiler.compile_json_schema(schema)
    except UnsatisfiableSchemaError:
        return None


def nearby_values(rng: random.Random, values: list[Any], count: int) -> Iterator[Any]:
    """Random values and changed ones, with not too many renderings."""
    for index in range(count):
        value = mutated(rng, rng.choice(values), random_value) if values and index % 3 else random_value(rng)
        if num_renderings(value) <= 100:
            yield value


def check_value(grammar: Grammar, judge: Judge, schema: Any, value: Any) -> None:
    accepted = [text for text in renderings(value) if accepts(grammar, text)]
    for text in accepted:
        # By the text: in draft 4 one number may be an integer in one of its spellings alone.
        violation = judge.violation(text.decode())
        assert violation is None, f"{text!r} is no instance of {schema}: {violation}"
    if not accepted and not is_approximated(schema, value):
        assert judge.violation(json.dumps(value)) is not None, f"{value!r} is refused by {schema}"


def is_approximated(schema: Any, value: Any) -> bool:
    """Whether a restriction that the report names may keep a value from being generated though it is an instance."""
    if _beyond_digits(value):
        return True
    keywords = _keywords(schema)
    if True in keywords.get("uniqueItems", ()) and (_NEGATING & keywords.keys() or _has_open_item(value)):
        return True
    patterns = [pattern_language(source) for source in keywords.get("pattern", ()) if isinstance(source, str)]
    patterns += [pattern_language(source) for one in keywords.get("patternProperties", ()) for source in one]
    languages = [(pair.inner, pair.outer) for pair in patterns]
    formats = keywords.get("format", ())
    if any(name in NUMBER_FORMATS for name in formats) and any(_numerals(value)):
        # The judge knows none of them.
        return True
    for name in formats:
        inner, outer = format_language(name), format_outer(name)
        if inner is not None and outer is not None:
            languages.append((inner, outer))
    texts = list(_texts(value))
    return any((text in inner) != (text in outer) for inner, outer in languages for text in texts)


def _has_open_item(value: Any, *, is_inside: bool = False) -> bool:
    """Whether an array holds, at any depth, an object with several keys; they may be too many undeclared ones."""
    if isinstance(value, list):
        return any(_has_open_item(child, is_inside=True) for child in value)
    if isinstance(value, dict):
        return (is_inside and len(value) > 1) or any(
            _has_open_item(child, is_inside=is_inside) for child in value.values()
        )
    return False


_NEGATING = {"not", "oneOf", "if", "contains", "unevaluatedItems", "unevaluatedProperties"}
_DATA = {"enum", "const", "required", "dependentRequired"}


def _keywords(schema: Any) -> dict[str, list[Any]]:
    """The values of every keyword at all places of the schema, and of every key of `properties` and the like."""
    found: dict[str, list[Any]] = {}
    pending = [schema]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            for keyword, value in one.items():
                found.setdefault(keyword, []).append(value)
                if keyword not in _DATA:
                    pending.append(value)
        elif isinstance(one, list):
            pending += one
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for child in value if isinstance(value, (list, dict)) else ():
        yield from _texts(child)
    if isinstance(value, dict):
        yield from _texts(list(value.values()))


def _beyond_digits(value: Any) -> bool:
    return any(len(word.strip("{}[],:")) > 16 or "e" in word for word in _numerals(value))


def _numerals(value: Any) -> Iterator[str]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield json.dumps(value)
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numerals(child)
