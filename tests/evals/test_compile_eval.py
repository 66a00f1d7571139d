"""`specdec eval compile`: the same answers here and by a worker, times of both, memory at checkpoints, a bomb."""

from __future__ import annotations

import json

import msgspec
import pytest
from tiny_tokenizer import write_tiny_tokenizer
from typer.testing import CliRunner

from specdec.cli import app
from specdec.evals.compile_bomb import BombOutcome
from specdec.evals.compile_service import _growth
from specdec.grammars import compile_pool


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compile")
    write_tiny_tokenizer(folder)
    schemas = [
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
        {"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}},
        {"pattern": "^(a|b)\\1$"},
        True,
    ]
    suite = folder / "cases.jsonl"
    lines = [json.dumps({"name": str(i), "schema": schema, "tests": []}) for i, schema in enumerate(schemas)]
    suite.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["eval", "compile", "--suite", str(suite), "--vocabulary", str(folder / "tokenizer.json"), "--json"]


def test_times_and_memory_are_reported(arguments):
    finished = CliRunner().invoke(app, [*arguments, "--distinct", "20"])
    assert finished.exit_code == 0, finished.output
    result = json.loads(finished.stdout)
    assert {name: times["count"] for name, times in result["compile_ms"].items()} == {
        "here": 3, "service": 3, "added": 3,
    }  # fmt: skip
    assert [one["schemas"] for one in result["memory"]] == list(range(2, 21, 2))
    # A schema in four is refused wherever it is compiled.
    assert result["memory"][-1]["compiled"] == result["memory"][-1]["cached"] == 15


def test_a_worker_that_is_too_slow_fails_it(arguments, monkeypatch):
    monkeypatch.setattr("specdec.evals.compile_service.MAX_ADDED_MS", -1000.0)
    finished = CliRunner().invoke(app, arguments)
    assert finished.exit_code == 1
    assert "a worker adds" in json.loads(finished.stdout)["failures"][0]


def test_a_worker_that_answers_otherwise_fails_it(arguments, monkeypatch):
    monkeypatch.setattr(compile_pool, "_WALL_FACTOR", 0.0)
    finished = CliRunner().invoke(app, arguments)
    assert finished.exit_code == 1
    assert "max_compile_seconds" in json.loads(finished.stdout)["failures"][0]


def test_memory_that_grows_fails_it():
    def checkpoints(*sizes: float) -> list[dict[str, float]]:
        return [{"schemas": float(i), "process_mib": size} for i, size in enumerate(sizes, 1)]

    assert not list(_growth(checkpoints(100, 300, 301, 302)))
    assert list(_growth(checkpoints(100, 300, 301, 320)))


def test_streams_that_stand_still_and_bombs_that_go_off_fail_it():
    outcome = BombOutcome(
        worst_gap_ms_before=30.0, worst_gap_ms_during=90.0, median_gap_ms_before=20.0, median_gap_ms_during=25.0,
        bomb_seconds=3.0, bomb_error="over (max_compile_seconds)", quick_schema_ms=50.0,
    )  # fmt: skip
    assert not list(outcome.failures())

    still = msgspec.structs.replace(outcome, worst_gap_ms_during=400.0)
    assert "stood still" in next(still.failures())
    assert "not ended" in next(msgspec.structs.replace(outcome, bomb_error="it was compiled").failures())
