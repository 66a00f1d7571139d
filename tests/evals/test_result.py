"""Results: one JSON object, a verdict, and files that do not overwrite each other."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.evals.environment import describe_environment, load_warning
from specdec.evals.result import EvalResult
from specdec.evals.spread import Spread
from specdec.evals.terminal import Terminal


def result_of(**fields):
    defaults = {"eval_name": "sample", "failures": (), "warnings": (), "settings": {}, "figures": {"tokens": 7}}
    return EvalResult(**(defaults | {"environment": describe_environment()} | fields))


def test_json_carries_figures_verdict_and_environment():
    shown = json.loads(result_of(failures=("it broke",)).encode())
    assert (shown["eval"], shown["passed"], shown["tokens"], shown["failures"]) == ("sample", False, 7, ["it broke"])
    assert shown["environment"]["versions"]["torch"]
    assert shown["environment"]["num_processors"] >= 1


def test_results_of_the_same_minute_are_all_kept(tmp_path):
    paths = {result_of(figures={"tokens": i}).save(tmp_path) for i in range(3)}
    assert len(paths) == 3
    assert sorted(json.loads(path.read_text())["tokens"] for path in paths) == [0, 1, 2]


def test_another_folder_for_results_can_be_named(tmp_path):
    program = "from specdec.evals.result import RESULTS_FOLDER; print(RESULTS_FOLDER)"
    environment = os.environ | {"SPECDEC_RESULTS_FOLDER": str(tmp_path)}
    command = [sys.executable, "-P", "-c", program]
    named = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert named.stdout.strip() == str(tmp_path)


def test_a_busy_machine_is_named_and_a_quiet_one_is_not():
    environment = describe_environment()

    def at(load):
        import msgspec

        return load_warning(msgspec.structs.replace(environment, num_processors=4, load_average=(load, 0.0, 0.0)))

    assert at(0.5) is None
    assert "busy" in at(3.0)


def test_with_json_standard_output_is_one_object_and_nothing_else(capsys):
    terminal = Terminal(json=True)
    terminal.table("t", ("a", "b"), [("x", "1")])
    terminal.finish(result_of(failures=("[brackets] are text",), warnings=("w",)))
    out, err = capsys.readouterr()
    assert json.loads(out)["eval"] == "sample"
    assert out.count("\n") == 1
    assert "[brackets] are text" in err
    assert "FAILED" in err


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=9))
def test_a_median_lies_within_its_range(values):
    spread = Spread.of(values)
    assert spread.low <= spread.median <= spread.high
    assert spread.values == tuple(values)


def test_a_median_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_a_copy_that_is_no_checkout_is_told_its_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("SPECDEC_COMMIT", raising=False)
    assert describe_environment().commit is None
    monkeypatch.setenv("SPECDEC_COMMIT", "0d74514")
    assert describe_environment().commit == "0d74514"


def test_a_copy_in_the_checkout_of_another_commit_is_told_its_own(monkeypatch):
    monkeypatch.setenv("SPECDEC_COMMIT", "0d74514")
    assert describe_environment().commit == "0d74514"
