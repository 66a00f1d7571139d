"""`specdec eval hostile`: a table for people, JSON for programs, and a failure where a bound does not hold."""

import json
import sys

import pytest
from typer.testing import CliRunner

from specdec.evals.cli import app

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by the means of Linux")


def _run(*arguments):
    return CliRunner().invoke(app, ["hostile", *arguments], env={"COLUMNS": "160", "NO_COLOR": "1"})


def test_each_schema_has_its_answer_its_time_and_its_memory():
    result = _run("--name", "cyclic", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["passed"]
    assert {one["name"] for one in found["schemas"]} == {"cyclic anyOf", "cyclic allOf", "cyclic if"}
    for one in found["schemas"]:
        assert one["error"] == "InvalidSchemaError"
        assert 0 < one["compile_seconds"] < 6
        assert 2**20 < one["peak_bytes"] < 2**30


def test_a_name_that_no_schema_has_fails():
    result = _run("--name", "no such schema")
    assert result.exit_code == 1
    assert "no schema of the suite" in result.output
