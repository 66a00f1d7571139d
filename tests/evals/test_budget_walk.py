"""Budget walks: they close in any budget, and whatever promise a grammar breaks is told and fails the eval."""

import json
import random
import re

import pytest
from tiny_tokenizer import write_tiny_tokenizer
from typer.testing import CliRunner

from specdec.evals import cli
from specdec.evals.budget_walk import WALK_STYLES, BudgetWalker
from specdec.evals.schema_engine import CompileOptions, SpecdecEngine
from specdec.grammars import BudgetedGrammar

SCHEMAS = {
    "named": {
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 3}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    },
    "list": {"type": "array", "items": {"enum": ["a", "b", 10, None]}, "minItems": 2, "uniqueItems": True},
    "choice": {"anyOf": [{"type": "string", "pattern": "^[0-9a-f]{4}$"}, {"const": {"a": [1, 2]}}]},
    "refused": {"pattern": "^(a|b)\\1$"},
}
NAMED = SCHEMAS["named"]


@pytest.fixture
def suite_file(tmp_path):
    path = tmp_path / "cases.jsonl"
    lines = [json.dumps({"name": name, "schema": schema, "tests": []}) for name, schema in SCHEMAS.items()]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def vocabulary_file(tmp_path):
    write_tiny_tokenizer(tmp_path)
    return tmp_path / "tokenizer.json"


def invoke(*arguments):
    finished = CliRunner().invoke(cli.app, ["budget", *map(str, arguments), "--json"])
    assert finished.stdout.count("\n") == 1, finished.output
    return finished.exit_code, json.loads(finished.stdout)


def grammar_of(engine, schema):
    return engine.grammar(json.dumps(schema), CompileOptions(format="assert"))


def test_the_same_seed_gives_the_same_walks_and_the_search_can_be_left_out(suite_file, vocabulary_file):
    arguments = ["--suite", suite_file, "--vocabulary", vocabulary_file, "--walks", 9, "--search-seconds", 0]
    shown = [invoke(*arguments, "--seed", seed)[1] for seed in (3, 3, 4)]
    assert "tightness" not in shown[0]
    assert shown[0]["tokens"] == shown[1]["tokens"]
    assert shown[0]["styles"] == shown[1]["styles"]


def test_a_suite_without_a_schema_that_compiles_fails(tmp_path, vocabulary_file):
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps({"name": "refused", "schema": SCHEMAS["refused"], "tests": []}))
    exit_code, shown = invoke("--suite", path, "--vocabulary", vocabulary_file)
    assert exit_code == 1
    assert "no schema" in shown["failures"][0]


def test_a_walk_that_does_not_validate_fails_it(suite_file, vocabulary_file, monkeypatch):
    from specdec.grammars.judge import Judge

    monkeypatch.setattr(Judge, "violation", lambda self, text: "no")
    arguments = ["--suite", suite_file, "--vocabulary", vocabulary_file, "--walks", 3, "--search-seconds", 0]
    exit_code, shown = invoke(*arguments)
    assert exit_code == 1
    assert (shown["closed"], shown["valid"]) == (3, 0)
    assert "does not validate" in shown["failures"][0]


def test_a_budget_below_the_minimum_that_is_not_refused_fails_it(suite_file, vocabulary_file, monkeypatch):
    from specdec.evals.budget_worker import BudgetWorker, CompiledBudget

    lenient = CompiledBudget(minimum=2, is_refused_below=False)
    monkeypatch.setattr(BudgetWorker, "compile", lambda self, text, options: lenient)
    exit_code, shown = invoke("--suite", suite_file, "--vocabulary", vocabulary_file, "--walks", 0, "--schemas", 1)
    assert exit_code == 1
    assert shown["refused_below_minimum"] == 0
    assert "a budget of 1 is not refused with 2" in shown["failures"][0]


class Faulty:
    """A budgeted grammar that breaks one promise."""

    def __init__(self, budgeted, **methods):
        self._budgeted = budgeted
        self._methods = methods

    def __getattr__(self, name):
        return self._methods.get(name) or getattr(self._budgeted, name)


def test_each_style_of_walk_closes_in_the_smallest_budget_and_in_a_larger_one():
    engine = SpecdecEngine({})
    walker, grammar = BudgetWalker(engine.compiler), grammar_of(engine, NAMED)
    rng = random.Random(5)
    for budget in (grammar.minimum_tokens, 3 * grammar.minimum_tokens):
        walks = [walker.walk(BudgetedGrammar(grammar, budget), budget, rng) for _ in range(30)]
        assert {walk.style for walk in walks} == set(WALK_STYLES)
        for walk in walks:
            assert walk.end == "closed"
            assert walk.num_tokens <= budget
            assert re.fullmatch(r'\{"name":".{3,}","age":-?\d+.*\}', walk.text.decode(errors="replace"), re.DOTALL)


def test_a_walk_tells_what_is_wrong_with_a_grammar():
    engine = SpecdecEngine({})
    walker, grammar = BudgetWalker(engine.compiler), grammar_of(engine, NAMED)
    budgeted = BudgetedGrammar(grammar, 60)
    empty = engine.compiler.mask_table.intern(engine.compiler.mask_table.eos_words * 0)
    faults = {
        "dead_end": {"mask_row": lambda state: empty},
        "disagreement": {"advance": lambda state, token_id: None},
        "overrun": {"only_eos": lambda state: state is not budgeted.initial_state},
    }
    for end, methods in faults.items():
        assert walker.walk(Faulty(budgeted, **methods), 60, random.Random(1)).end == end
    assert walker.walk(budgeted, 3, random.Random(1)).end == "overrun"
