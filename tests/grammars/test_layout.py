"""Whitespace: compact, pretty and flexible texts of the same values."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import schemas
from budgeted_walks import walk, with_spare_tokens
from checks import accepts, check_state
from vocabularies import small_vocabulary

from specdec.grammars import (
    BudgetedState,
    Grammar,
    GrammarCompiler,
    GrammarError,
    SchemaOptions,
    Vocabulary,
)
from specdec.grammars.judge import Judge, UnjudgeableError

PRETTY = SchemaOptions(whitespace="pretty")
_LAYOUT_WORDS = [
    b'{\n  "', b',\n  "', b',\n    "', b'": ', b'": "', b"\n}", b"\n  }", b"[\n  ", b",\n    ", b"\n  ", b"    ",
    b"],\n",
    b'"\n}', b"1\n", b"1,\n  ", b" }", b" ]", b": ", b" \t", b"\r\n", b', "', b"[ ", b"{ ", b"true\n}",
]  # fmt: skip


def _vocabulary() -> Vocabulary:
    base = small_vocabulary()
    tokens = [base.token_bytes(token_id) for token_id in range(base.size)]
    singles: list[bytes | None] = [b"\t", b"\r"]
    return Vocabulary([*tokens, *singles, *_LAYOUT_WORDS], base.eos_token_ids)


def _flexible(num_spaces: int) -> SchemaOptions:
    return SchemaOptions(whitespace="flexible", max_whitespace=num_spaces)


def _spaced(value: Any, rng: random.Random, num_spaces: int) -> str:
    """The value with random whitespace in every place inside it."""

    def gap() -> str:
        return "".join(rng.choice(" \n\t\r") for _ in range(rng.randint(0, num_spaces)))

    if isinstance(value, dict) and value:
        members = (f"{gap()}{json.dumps(key, ensure_ascii=False)}{gap()}:{gap()}{_spaced(one, rng, num_spaces)}{gap()}"
                   for key, one in value.items())  # fmt: skip
        return "{" + ",".join(members) + "}"
    if isinstance(value, list) and value:
        return "[" + ",".join(f"{gap()}{_spaced(one, rng, num_spaces)}{gap()}" for one in value) + "]"
    if isinstance(value, (dict, list)):
        return json.dumps(value)[0] + gap() + json.dumps(value)[1]
    return json.dumps(value, ensure_ascii=False)


def _walk(compiler: GrammarCompiler, grammar: Grammar, rng: random.Random, *, num_checked: int) -> str:
    def check(state: BudgetedState) -> None:
        check_state(compiler.vocabulary, compiler, grammar, state.state)
        closing = grammar.closing(state.state)
        if closing is not None and closing.data:
            end = grammar.advance_bytes(state.state, closing.data)
            assert end is not None, f"{closing.data!r} does not close {state.state}"
            assert grammar.is_accepting(end), f"{closing.data!r} does not close {state.state}"

    budgeted = with_spare_tokens(grammar, rng.randint(0, 40))
    return walk(compiler, budgeted, rng, check=check, num_checked=num_checked).decode()


@pytest.mark.parametrize("options", [PRETTY, _flexible(1), _flexible(3)], ids=["pretty", "flexible1", "flexible3"])
def test_walks_validate_masks_are_exact_and_every_state_closes(options: SchemaOptions) -> None:
    vocabulary = _vocabulary()
    num_compiled = 0
    for seed in range(40):
        rng = random.Random(seed)
        schema = schemas.random_schema(rng)
        compiler = GrammarCompiler(vocabulary)
        try:
            grammar, judge = compiler.compile_json_schema(schema, options), Judge(schema)
            judge.violation("0")
        except (GrammarError, UnjudgeableError):
            continue
        num_compiled += 1
        for _ in range(3):
            text = _walk(compiler, grammar, rng, num_checked=5)
            why = judge.violation(text)
            assert why is None, f"seed {seed}, {schema}: {text!r}: {why}"
    assert num_compiled > 20


def test_pretty_is_what_json_dumps_writes() -> None:
    compiler = GrammarCompiler(_vocabulary())
    schema = {"anyOf": [{"type": ["boolean", "null"]}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 3},
                        {"type": "object", "maxProperties": 3, "additionalProperties": {"$ref": "#"},
                         "properties": {"a": {"$ref": "#"}}}]}  # fmt: skip
    grammar = compiler.compile_json_schema(schema, PRETTY)
    rng = random.Random(0)
    for _ in range(60):
        text = _walk(compiler, grammar, rng, num_checked=30)
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False)


@pytest.mark.parametrize("seed", range(4))
def test_instances_are_accepted_in_the_layout_and_in_no_other(seed: int) -> None:
    rng = random.Random(seed)
    compiler = GrammarCompiler(_vocabulary())
    pretty, compact = compiler.compile_json_schema(True, PRETTY), compiler.compile_json_schema(True)
    for _ in range(60):
        value = schemas.random_value(rng, 3)
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        if not accepts(compact, text.encode()):
            continue
        laid_out = json.dumps(value, indent=2, ensure_ascii=False)
        assert accepts(pretty, laid_out.encode())
        assert accepts(pretty, text.encode()) == (text == laid_out)
        num_spaces = rng.randint(1, 4)
        flexible = compiler.compile_json_schema(True, _flexible(num_spaces))
        assert accepts(flexible, text.encode())
        assert accepts(flexible, _spaced(value, rng, num_spaces).encode())


def test_whitespace_has_its_bound_and_stays_inside_the_root() -> None:
    grammar = GrammarCompiler(_vocabulary()).compile_json_schema(True, _flexible(2))
    for text in (b"[  1 \n, 2\t]", b'{ "a" : 1 }', b"[ ]", b"{\r\n}", b"[1.5  ]"):
        assert accepts(grammar, text), text
    for text in (
        b"[   1]",
        b"[1   ]",
        b" [1]",
        b"[1] ",
        b" 1",
        b"1 ",
        b'{"a"   :1}',
        b"[1,   2]",
        b"[- 1]",
        b'{"a":   1}',
    ):
        assert not accepts(grammar, text), text


@pytest.mark.parametrize("options", [PRETTY, _flexible(3)], ids=["pretty", "flexible"])
def test_arrays_of_unique_items_are_compact(options: SchemaOptions) -> None:
    compiler = GrammarCompiler(_vocabulary())
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "minItems": 2,
              "items": {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}}},
              "required": ["a"], "additionalProperties": False}  # fmt: skip
    grammar, judge = compiler.compile_json_schema(schema, options), Judge(schema)
    assert any("none in arrays of unique items" in one.reason for one in grammar.report.restrictions)
    assert accepts(grammar, b'{\n  "a": [{"b":1},{"b":2}]\n}')
    assert not accepts(grammar, b'{\n  "a": [ {"b":1},{"b":2}]\n}')
    assert not accepts(grammar, b'{\n  "a": [{"b":1},{"b":1}]\n}')
    rng = random.Random(3)
    for _ in range(10):
        assert judge.violation(_walk(compiler, grammar, rng, num_checked=8)) is None


def test_depth_is_indented() -> None:
    grammar = GrammarCompiler(_vocabulary()).compile_json_schema(True, PRETTY)
    value: Any = 1
    for level in range(20):
        value = {"a": value, "b": []} if level % 2 else [value, {}]
    assert accepts(grammar, json.dumps(value, indent=2).encode())
