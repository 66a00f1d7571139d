"""`specdec eval schema`: suites are read, outcomes are counted, deadlines and crashes cost one schema."""

import json
import lzma

import pytest
from typer.testing import CliRunner

from specdec.cli import app as specdec_app
from specdec.evals import cli
from specdec.evals.engine_worker import WorkerStartError
from specdec.evals.schema_count import SchemaCount
from specdec.evals.schema_engine import CompileOptions
from specdec.evals.schema_labels import SchemaLabels
from specdec.evals.schema_measurement import SchemaMeasurement, percentiles
from specdec.evals.schema_peers import MissingPeerError
from specdec.evals.schema_suite import SuiteError, load_suite
from specdec.evals.schema_worker import Answer, Compiled, SchemaWorker

CLOSED = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]}
CLOSED["additionalProperties"] = False


def case(name, schema, *tests):
    return {"name": name, "schema": schema, "tests": [{"valid": valid, "data": data} for valid, data in tests]}


CASES = [
    # The keys are turned round by the rendering, and 1.0 is accepted as 1.
    case("closed", CLOSED, (True, {"a": "x", "b": 1.0}), (False, {"a": "x"}), (False, {"b": 1, "c": 2})),
    # No label of these is the judge's.
    case("mislabelled", {"type": "null"}, (False, None), (True, 1)),
    # More digits than the grammar spells.
    case("long", {"type": "integer"}, (True, 10**30), (True, "\ud800"), (False, "\ud800")),
    case("refused", {"pattern": "^(a|b)\\1$"}, (True, "aa"), (False, "ab")),
    case("malformed", {"type": "nonsense"}, (True, 1)),
    case("impossible", {"type": "null", "const": 1}, (False, 1), (False, None)),
]


@pytest.fixture
def suite_file(tmp_path):
    path = tmp_path / "cases.jsonl.xz"
    with lzma.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(each) + "\n" for each in CASES)
    return path


def invoke(*arguments):
    finished = CliRunner().invoke(cli.app, ["schema", *map(str, arguments), "--json"])
    assert finished.stdout.count("\n") == 1, finished.output
    return finished.exit_code, json.loads(finished.stdout)


def test_every_outcome_is_counted_once(suite_file):
    exit_code, shown = invoke("--suite", suite_file, "--walks", 12)
    assert exit_code == 0, shown["failures"]
    assert shown["total"] == {
        "tests": 13,
        "right": 6,
        "invalid_accepted": 0,
        "valid_refused": 2,
        "refused_at_compile": 3,
        "disputed": 2,
        "faulted": 0,
        "refused_as_unsatisfiable": 2,
        "schemas": 6,
        "compiled": 3,
        "fully_right": 3,
    }
    assert sum(shown["refusals"].values()) == len(shown["refused"]) == 3
    assert shown["by_keyword"]["(compiled)"]["schemas"] == 3
    assert [(each["test"], each["kind"]) for each in shown["wrong"]] == [
        ("test 0", "valid_refused"),
        ("test 1", "valid_refused"),
    ]
    assert [(each["schema"], each["label"]) for each in shown["contradicted_labels"]] == [
        ("mislabelled", "invalid"),
        ("mislabelled", "valid"),
    ]
    assert [each["schema"] for each in shown["unjudged"]] == ["malformed"]
    assert shown["second_renderings_accepted"] == 1
    assert shown["walks"]["closed"] == shown["walks"]["valid"] == 12
    assert shown["walks"]["not_closed"] == 0
    assert shown["compile_ms"]["p50"] <= shown["compile_ms"]["p95"] <= shown["compile_ms"]["max"]


def test_an_invalid_instance_that_is_accepted_fails_it(tmp_path, monkeypatch):
    """The judge is made to agree with a wrong label: what is left is an engine that accepts what it must not."""
    from specdec.grammars.judge import Judge

    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(case("wrong", {"type": "null"}, (False, None))) + "\n")
    monkeypatch.setattr(Judge, "violation", lambda self, text: "no")
    exit_code, shown = invoke("--suite", path, "--walks", 1)
    assert exit_code == 1
    assert shown["total"]["invalid_accepted"] == 1
    assert "test 0" in shown["failures"][0]
    assert "walk" in shown["failures"][1]
    assert shown["walks"]["valid"] == 0


def test_a_sample_is_drawn_by_its_seed(suite_file):
    suite = load_suite(suite_file)
    drawn = [suite.sampled(3, seed=7).cases, suite.sampled(3, seed=7).cases]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 3
    assert len({tuple(each.name for each in suite.sampled(3, seed=seed).cases) for seed in range(20)}) > 1
    assert suite.sampled(None, 0) is suite is suite.sampled(99, 0)


def official(tmp_path, draft, name, record):
    path = tmp_path / "tests" / draft / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([record]))
    return tmp_path / "tests" / draft


def test_the_official_suite_has_its_dialect_its_documents_and_formats_as_it_says(tmp_path):
    record = {
        "description": "group",
        "schema": {"type": "string", "format": "date"},
        "tests": [{"description": "one", "data": "x", "valid": True}],
    }
    official(tmp_path, "draft7", "optional/format/date", {**record, "schema": True})
    folder = official(tmp_path, "draft7", "format", record)
    (tmp_path / "remotes" / "draft7").mkdir(parents=True)
    (tmp_path / "remotes" / "integer.json").write_text('{"type":"integer"}')
    (tmp_path / "remotes" / "draft7" / "own.json").write_text("true")
    suite = load_suite(folder)
    assert {each.group: (each.format, each.schema) for each in suite.cases} == {
        "format": (
            "annotation",
            {"$schema": "http://json-schema.org/draft-07/schema#", "type": "string", "format": "date"},
        ),
        "optional/format/date": ("assert", True),
    }
    assert suite.documents == {
        "http://localhost:1234/integer.json": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "integer",
        },
        "http://localhost:1234/draft7/own.json": True,
    }
    assert [each.group for each in load_suite(folder / "format.json").cases] == ["format"]


@pytest.mark.parametrize("content", ["{", "[]", '{"name":"x"}', '{"name":"x","schema":true,"tests":[{"valid":1}]}'])
def test_what_is_no_suite_is_a_mistake_that_says_what_was_expected(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(SuiteError, match="line 1"):
        load_suite(path)
    for place in (tmp_path, tmp_path / "missing.jsonl", tmp_path / "draft7"):
        with pytest.raises(SuiteError):
            load_suite(place)
    finished = CliRunner().invoke(cli.app, ["schema", "--suite", str(path)], env={"COLUMNS": "300"})
    assert finished.exit_code == 2
    assert "line 1" in finished.output


def test_a_peer_that_is_missing_says_how_to_get_it(suite_file, monkeypatch):
    import builtins

    import_module = builtins.__import__
    monkeypatch.setattr("specdec.evals.schema_peers.importlib.import_module", lambda name: import_module(f"no_{name}"))
    finished = CliRunner().invoke(
        cli.app, ["schema", "--suite", str(suite_file), "--peer", "xgrammar"], env={"COLUMNS": "300"}
    )
    assert finished.exit_code == 2
    assert "pip install 'specdec-engine[peers]'" in finished.output


def test_a_compile_past_its_deadline_costs_one_schema():
    """Half a millisecond is too short for this schema, in a process that has to be started again."""
    large = json.dumps({"enum": [f"{i:06}" for i in range(9000)]})
    with SchemaWorker("specdec", {}, compile_seconds=0.0005) as worker:
        lost = worker.run(large, CompileOptions(format="assert"), [(b"1",)])
        assert lost.refusal is not None
        assert lost.refusal.is_fault
        assert "over" in lost.refusal.reason
    with SchemaWorker("specdec", {}) as worker:
        running = worker._running
        running[0].kill()
        running[0].join()
        assert "exit code" in worker.run("true", CompileOptions(format="assert"), [(b"1",)]).refusal.message
        found = worker.run('{"type":"string"}', CompileOptions(format="assert"), [(b'"1"',), (b"1", b'"1'), (b"2",)])
    assert found.refusal is None
    assert [each.rendering for each in found.answers] == [0, None, None]
    assert found.answers[1].refusal == "byte 0 is not allowed:  >>> 1"


class LosingWorker:
    """Compiles everything, and answers nothing."""

    def run(self, schema_text, options, renderings):
        lost = Answer(rendering=None, refusal="answer took over 60 s", is_fault=True)
        return Compiled(milliseconds=1.0, refusal=None, answers=(lost,) * len(renderings))


def test_an_instance_without_an_answer_is_a_fault_whatever_its_label(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(case("lost", {"type": "null"}, (True, None), (False, 1), (True, 2))) + "\n")
    labels = SchemaLabels.of(load_suite(path), lambda: None)
    measurement = SchemaMeasurement.of(labels.cases, LosingWorker(), lambda _: None)
    total = measurement.total
    assert (total.tests, total.faulted, total.right, total.valid_refused, total.disputed) == (3, 3, 0, 0, 0)
    assert total.fully_right == 0
    assert (len(measurement.faults), measurement.wrong, measurement.disputed) == (3, [], [])


def test_a_worker_that_does_not_start_again_ends_the_eval_with_one_line(suite_file, monkeypatch):
    monkeypatch.setattr("specdec.evals.engine_worker._START_SECONDS", 0.0)
    finished = CliRunner().invoke(specdec_app, ["eval", "schema", "--suite", str(suite_file)])
    assert finished.exit_code == 1
    assert "did not start within 0 s" in finished.output
    assert "Traceback" not in finished.output


def test_a_worker_that_is_lost_and_ends_on_its_way_up_is_named():
    with SchemaWorker("specdec", {}) as worker:
        worker._running[0].kill()
        worker._running[0].join()
        worker.run("true", CompileOptions(format="assert"), [])
        # A module that is there and is no engine: the process ends with an error before it serves.
        worker._engine_name, worker._arguments = "json", ("json", {})
        with pytest.raises(WorkerStartError, match="loads json ended before it was ready"):
            worker.run("true", CompileOptions(format="assert"), [])


def test_counts_add_up():
    count = SchemaCount()
    count.add(["right", "disputed"], is_compiled=True, is_rightly_unsatisfiable=False)
    count.add(["right", "valid_refused"], is_compiled=True, is_rightly_unsatisfiable=False)
    count.add(["right", "faulted"], is_compiled=True, is_rightly_unsatisfiable=False)
    count.add(["refused_at_compile"], is_compiled=False, is_rightly_unsatisfiable=True)
    assert (count.tests, count.right, count.schemas, count.compiled, count.fully_right) == (7, 4, 4, 3, 2)
    assert (count.valid_refused, count.disputed, count.faulted) == (1, 1, 1)
    assert count.refused_as_unsatisfiable == 1


def test_percentiles_are_values_that_were_measured():
    assert percentiles([]) == {"p50": None, "p95": None, "max": None}
    assert percentiles([float(i) for i in range(1, 101)]) == {"p50": 50.0, "p95": 95.0, "max": 100.0}
    assert percentiles([3.0]) == {"p50": 3.0, "p95": 3.0, "max": 3.0}


def test_a_missing_peer_is_named_when_its_worker_starts():
    from specdec.evals import schema_peers

    try:
        schema_peers.import_peer("xgrammar")
    except MissingPeerError:
        with pytest.raises(MissingPeerError, match="peers"):
            SchemaWorker("xgrammar", {}).__enter__()
    else:
        pytest.skip("it is installed")
