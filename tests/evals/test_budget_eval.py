"""`specdec eval budget`: walks inside budgets, refusals below the minimum, and the shortest answer by search."""

from __future__ import annotations

import json

import msgspec
import pytest
from tiny_tokenizer import write_tiny_tokenizer
from typer.testing import CliRunner

from specdec.cli import app
from specdec.evals.shortest_answer import ShortestSearch
from specdec.grammars import BudgetedGrammar, GrammarCompiler, Vocabulary

SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "string", "minLength": 2}}, "required": ["a"]},
    {"type": "array", "items": {"type": "integer", "minimum": 100}, "minItems": 2, "uniqueItems": True},
    {"enum": ["long text", "x", 12345]},
    {"pattern": "^(a|b)\\1$"},
]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    write_tiny_tokenizer(folder)
    suite = folder / "cases.jsonl"
    lines = [json.dumps({"name": str(i), "schema": schema, "tests": []}) for i, schema in enumerate(SCHEMAS)]
    suite.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["eval", "budget", "--suite", str(suite), "--vocabulary", str(folder / "tokenizer.json"), "--json"]


def test_walks_close_and_the_minimum_is_held_against_the_shortest_answer(arguments):
    finished = CliRunner().invoke(app, [*arguments, "--walks", "60"])
    assert finished.exit_code == 0, finished.output
    result = json.loads(finished.stdout)
    assert (result["schemas"], result["walks"], result["closed"], result["valid"]) == (3, 60, 60, 60)
    assert (result["dead_ends"], result["overruns"], result["refused_below_minimum"]) == (0, 0, 3)
    assert result["left_out"] == {"refused": 1}
    tightness = result["tightness"]
    assert tightness["decided"] + tightness["undecided"] == 3
    assert tightness["tight"] <= tightness["decided"]


def test_an_overrun_fails_it(arguments, monkeypatch):
    # The worker is another process, so that the fault is planted where its answer arrives.
    from specdec.evals import budget

    walks = budget.BudgetWorker.walks

    def with_one_too_long(*given: object, **named: object) -> object:

        done = walks(*given, **named)
        first = msgspec.structs.replace(done.walks[0], end="overrun")
        return msgspec.structs.replace(done, walks=(first, *done.walks[1:]))

    monkeypatch.setattr(budget.BudgetWorker, "walks", with_one_too_long)
    finished = CliRunner().invoke(app, [*arguments, "--walks", "10", "--search-seconds", "0"])
    assert finished.exit_code == 1
    assert json.loads(finished.stdout)["overruns"] > 0


@pytest.mark.parametrize("schema", SCHEMAS[:3], ids=["object", "array", "enum"])
def test_the_search_finds_what_trying_all_token_sequences_finds(schema):
    words: list[bytes | None] = [b'{"', b'":', b"aa", b'"}', b'","', b"100", b"101", b"]", b'"x"']
    singles: list[bytes | None] = [bytes([byte]) for byte in range(0x20, 0x7F)]
    vocabulary = Vocabulary([*singles, *words, None], [len(singles) + len(words)])
    compiler = GrammarCompiler(vocabulary)
    grammar = compiler.compile_json_schema(schema)
    found = ShortestSearch(vocabulary).of(grammar, 20.0)
    assert found.num_tokens is not None, found.why
    level, num_tokens = {grammar.initial_state}, 0
    while not any(grammar.is_accepting(state) for state in level):
        level = {
            after
            for state in level
            for token_id in range(vocabulary.size)
            if token_id not in vocabulary.eos_token_ids and (after := grammar.advance(state, token_id)) is not None
        }
        num_tokens += 1
        if num_tokens == 7 or len(level) > 20_000:
            assert found.num_tokens >= num_tokens
            return
    assert found.num_tokens == num_tokens
    assert grammar.minimum_tokens >= num_tokens
    BudgetedGrammar(grammar, grammar.minimum_tokens)
