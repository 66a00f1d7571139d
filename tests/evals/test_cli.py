"""`specdec eval` on the tiny model: JSON on standard output, verdicts as exit codes, and faults that are found."""

import csv
import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from specdec.engine import Engine
from specdec.evals import cli
from specdec.evals.step_profile import PARTS, StepProfile
from specdec.linear import Linear
from specdec.sequence import SpeculationCounts
from specdec.tokenizer import Detokenizer

pytestmark = pytest.mark.usefixtures("compiled_here")


def invoke(*arguments):
    """Exit code and the JSON of a command."""
    finished = CliRunner().invoke(cli.app, [*arguments, "--json"])
    assert finished.stdout.count("\n") == 1, finished.output
    return finished.exit_code, json.loads(finished.stdout)


@pytest.fixture
def misspelt(monkeypatch):
    """A detokeniser that loses quotation marks."""
    push = Detokenizer.push
    monkeypatch.setattr(Detokenizer, "push", lambda self, ids: push(self, ids).replace('"', ""))


def test_help_and_mistakes_need_no_torch():
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom specdec.evals.cli import app\n"
        "for arguments in (['--help'], ['acceptance', '--help'], ['throughput', '--batch', 'x', '--nonsense']):\n"
        "    CliRunner().invoke(app, arguments)\n"
        "print('torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["equivalence", "acceptance", "throughput", "constrained"])
def test_every_command_has_help_in_groups(name):
    finished = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "160"})
    assert finished.exit_code == 0
    for group in ("Model", "Workload", "Output"):
        assert group in finished.output


# Acceptance


def acceptance(folder, num_tasks, *more):
    size = ["--num-tasks", str(num_tasks), "--repeats", "2", "--max-tokens", "12", "--concurrency", "1,3"]
    return invoke("acceptance", "--model", str(folder), *size, *more)


@pytest.mark.slow
def test_acceptance_reports_rates_speeds_and_validity(tiny_model_folder, tmp_path):
    files = ["--csv", str(tmp_path / "rows.csv"), "--html", str(tmp_path / "report.html")]
    exit_code, shown = acceptance(
        *(tiny_model_folder, 2, "--spec", "chain", "--spec", "ngram", "--num-speculative-tokens", "4", *files),
    )
    assert exit_code == 0, shown["failures"]
    groups = {(group["group"], group["concurrency"]): group for group in shown["groups"]}
    for name in ("structured", "structured, no schema", "free text", "chat", "summarising", "translation", "code_edit"):
        for concurrency in (1, 3):
            group = groups[name, concurrency]
            assert [arm["arm"] for arm in group["arms"]] == ["plain", "chain, K=4", "ngram, K=4"]
            for arm in group["arms"]:
                rates = arm["rates"]
                ended = rates["num_accepted_tokens"] + rates["num_rejected_tokens"] + rates["num_discarded_tokens"]
                assert ended == rates["num_draft_tokens"]
                assert rates["num_generated_tokens"] > 0
                parts = [own["num_draft_tokens"] for own in rates["by_proposer"].values()]
                assert sum(parts) == rates["num_draft_tokens"]
                parts = [own["num_draft_tokens"] for own in arm["rates_by_category"].values()]
                assert sum(parts) == rates["num_draft_tokens"]
                assert "".join(token["text"] for token in arm["example"])
            plain, chain, _ = group["arms"]
            assert plain["speedup"] is None
            assert plain["rates"]["num_draft_tokens"] == 0
            assert len(chain["speedup"]["values"]) == 2
    structured = groups["structured", 1]["arms"][1]
    assert structured["validity"]["num_answers"] == 4
    assert structured["rates"]["forced_share"] > 0
    tokens = sum(own["num_tokens"] for own in structured["rates"]["by_region"].values())
    assert tokens == structured["rates"]["num_generated_tokens"]
    assert groups["chat", 1]["arms"][1]["validity"] is None
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert len(rows) == 3 * len(groups)
    assert {row["arm"] for row in rows} == {"plain", "chain, K=4", "ngram, K=4"}
    report = (tmp_path / "report.html").read_text()
    assert report.count("<svg") == 4
    drafting = {
        (group["group"], arm["arm"])
        for group in groups.values()
        for arm in group["arms"]
        if arm["rates"]["num_draft_tokens"]
    }
    assert ("structured", "ngram, K=4") in drafting
    assert report.count("<div class=answer>") == len(drafting)
    assert "http" not in re.sub(r"http://(www\.w3\.org|purl\.org|creativecommons\.org)", "", report).replace(
        "https://matplotlib.org", ""
    )


def test_schemas_that_are_not_taken_are_left_out_by_name(tiny_model_folder, tmp_path):
    path = tmp_path / "schemas.jsonl"
    schemas = {
        "known": {"enum": ["a", "b"]},
        "strange": {"type": "string", "format": "nobody-knows", "maxLength": 3},
        "no instance": {"allOf": [{"type": "string"}, {"type": "null"}]},
    }
    records = [{"name": name, "schema": schema, "tests": []} for name, schema in schemas.items()]
    path.write_text("\n".join(map(json.dumps, records)))
    exit_code, shown = acceptance(tiny_model_folder, 3, "--dataset", str(path))
    assert exit_code == 0, shown["failures"]
    [group] = [each for each in shown["groups"] if each["concurrency"] == 1]
    assert group["num_requests"] == 2
    left_out = [each for each in shown["warnings"] if each.startswith("left out")]
    assert len(left_out) == 1
    assert "no instance" in left_out[0]
    path.write_text(json.dumps(records[2]))
    exit_code, shown = acceptance(tiny_model_folder, 1, "--dataset", str(path))
    assert exit_code == 1
    assert "none of its tasks" in shown["failures"][0]


@pytest.mark.slow
def test_a_model_draft_that_is_not_masked_drafts_what_is_forbidden(tiny_model_folder, tiny_draft_folder):
    exit_code, shown = acceptance(
        *(tiny_model_folder, 2, "--draft", str(tiny_draft_folder), "--spec", "draft_model", "--compare-masks"),
        *("--group", "structured", "--num-speculative-tokens", "3", "--exact"),
    )
    assert exit_code == 0, shown["failures"]
    _, masked, unmasked = shown["groups"][0]["arms"]
    assert (masked["arm"], unmasked["arm"]) == ("draft_model, K=3", "draft_model, K=3, unmasked")
    assert masked["rates"]["num_forbidden_tokens"] == 0 < unmasked["rates"]["num_forbidden_tokens"]
    assert masked["num_differing"] == unmasked["num_differing"] == 0


def test_the_target_as_its_own_draft_is_accepted_whole(tiny_model_folder):
    exit_code, shown = acceptance(
        *(tiny_model_folder, 1, "--draft", str(tiny_model_folder), "--spec", "draft_model", "--exact"),
        # There is one task.
        *("--num-speculative-tokens", "4", "--concurrency", "1"),
    )
    assert exit_code == 0
    for group in shown["groups"]:
        rates = group["arms"][1]["rates"]
        assert rates["by_proposer"]["draft_model"]["acceptance_rate"] == 1.0
        # A prediction may be wrong.
        assert group["group"] == "code_edit, predicted" or rates["acceptance_rate"] == 1.0
        assert group["group"] == "code_edit, predicted" or rates["mean_acceptance_length"] > 2
        assert group["arms"][1]["num_differing"] == 0


def test_tasks_of_ones_own_are_a_group(tiny_model_folder, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a b a b a b"}\n{"prompt": "one of two", "schema": {"enum": ["one", "two"]}}\n')
    exit_code, shown = acceptance(tiny_model_folder, 5, "--dataset", str(path))
    assert exit_code == 0
    assert [(group["group"], group["num_requests"]) for group in shown["groups"]] == [("mine", 2)] * 2


def test_a_control_is_a_plain_arm_held_against_the_plain_arm(tiny_model_folder, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a b a b a b"}\n{"prompt": "one of two", "schema": {"enum": ["one", "two"]}}\n')
    exit_code, shown = acceptance(tiny_model_folder, 2, "--dataset", str(path), "--spec", "ngram", "--control")
    assert exit_code == 0, shown["failures"]
    for group in shown["groups"]:
        assert [arm["arm"] for arm in group["arms"]] == ["plain", "plain, again", "ngram"]
        control = group["arms"][1]
        assert control["rates"]["num_draft_tokens"] == 0
        assert control["num_differing"] == 0
        assert len(control["speedup"]["values"]) == 2


def test_rounds_may_share_the_tasks_out(tiny_model_folder, tmp_path):
    path = tmp_path / "mine.jsonl"
    schema = {"enum": ["one", "two"]}
    path.write_text("".join(json.dumps({"prompt": "a b " * n, "schema": schema}) + "\n" for n in (1, 2, 3)))
    exit_code, shown = acceptance(tiny_model_folder, 3, "--dataset", str(path), "--parts", "2", "--repeats", "3")
    assert exit_code == 0, shown["failures"]
    for group in shown["groups"]:
        assert group["num_requests"] == 3
        for arm in group["arms"]:
            assert arm["rates"]["num_generated_tokens"] > 0
            assert arm["validity"]["num_answers"] == 2 + 1 + 2
        assert len(group["arms"][1]["speedup"]["values"]) == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--parts", "3", "--repeats", "2"], "leave tasks of 3 parts unanswered"),
        (["--parts", "2", "--url", "http://127.0.0.1:1"], "a server answers all tasks"),
        (["--control", "--url", "http://127.0.0.1:1"], "name one by --spec"),
        (["--group", "poems"], "there is no group 'poems' of tasks"),
        (["--spec", "eagle"], "speculative method 'eagle' is unknown"),
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--concurrency", "0"], "no list of numbers"),
        (["--csv", "/nowhere/at/all.csv"], "there is no folder"),
    ],
)
def test_a_mistake_in_acceptances_parameters_is_named(tiny_model_folder, arguments, complaint):
    finished = CliRunner().invoke(
        cli.app, ["acceptance", "--model", str(tiny_model_folder), *arguments], env={"COLUMNS": "200"}
    )
    assert finished.exit_code != 0
    assert complaint in finished.output + str(finished.exception)


def test_counts_that_do_not_add_up_fail_acceptance(monkeypatch, tiny_model_folder):
    freeze = SpeculationCounts.freeze

    def lose_one(self):
        import msgspec

        stats = freeze(self)
        return msgspec.structs.replace(stats, num_discarded_tokens=stats.num_discarded_tokens - 1)

    monkeypatch.setattr(SpeculationCounts, "freeze", lose_one)
    exit_code, shown = acceptance(tiny_model_folder, 1, "--spec", "ngram")
    assert exit_code == 1
    assert "drafted" in shown["failures"][0]


def test_acceptance_without_a_proposer_is_a_mistake(tiny_model_folder):
    finished = CliRunner().invoke(cli.app, ["acceptance", "--model", str(tiny_model_folder), "--spec", "none"])
    assert finished.exit_code == 2


# Stress


@pytest.mark.slow
def test_everything_at_once_holds(tiny_model_folder, tiny_draft_folder):
    exit_code, shown = invoke(
        *("stress", "--model", str(tiny_model_folder), "--draft", str(tiny_draft_folder)),
        *("--num-requests", "150", "--max-tokens", "48", "--seed", "3"),
    )
    assert exit_code == 0, shown["failures"]
    assert shown["num_valid"] + shown["num_aborted"] == 150
    assert shown["num_aborted"] > 0
    assert shown["num_preemptions"] > 0
    assert len(shown["requests_by"]["method"]) == 7
    assert set(shown["speculation"]["by_proposer"]) == {"grammar", "prediction", "suffix", "ngram", "draft_model"}


@pytest.mark.usefixtures("misspelt")
def test_stress_reports_answers_that_do_not_validate(tiny_model_folder):
    exit_code, shown = invoke("stress", "--model", str(tiny_model_folder), "--num-requests", "12", "--max-tokens", "32")
    assert exit_code == 1
    assert shown["num_violations"] > 0


# Constrained answers


def constrained(*more):
    return invoke("constrained", "--num-requests", "12", "--max-tokens", "100", "--temperature", "1.2", *more)


@pytest.fixture(scope="module")
def live(tiny_model_folder, compiled_here):
    from live_server import serving

    from specdec import EngineConfig

    with serving(Engine(EngineConfig(model=str(tiny_model_folder), num_kv_blocks=600, check_outputs=True))) as server:
        yield server


def test_every_finished_answer_validates(tiny_model_folder):
    exit_code, shown = constrained("--model", str(tiny_model_folder), "--spec", "ngram")
    assert exit_code == 0
    assert shown["num_violations"] == 0
    assert shown["num_valid"] > 0
    assert shown["num_valid"] + shown["num_cut_by_length"] == shown["num_answers"] == 12
    assert set(shown["finish_reasons"]) <= {"stop", "length"}


@pytest.mark.usefixtures("misspelt")
def test_answers_that_do_not_validate_fail_it(tiny_model_folder):
    exit_code, shown = constrained("--model", str(tiny_model_folder))
    assert exit_code == 1
    assert shown["num_violations"] > 0
    assert shown["violations"][0]["why"]


def test_a_server_is_asked_over_the_openai_api(live):
    exit_code, shown = constrained("--url", live.url)
    assert exit_code == 0, shown["failures"]
    assert shown["num_valid"] + shown["num_cut_by_length"] == 12
    assert shown["num_generated_tokens"] > 0


def test_a_server_keeps_tight_budgets(live):
    exit_code, shown = constrained("--url", live.url, "--tight-budgets")
    assert exit_code == 0, shown["failures"]
    assert (shown["num_valid"], shown["num_cut_by_length"], shown["num_unanswered"]) == (12, 0, 0)
    assert shown["mean_max_tokens"] > 1


def test_tight_budgets_are_asked_of_servers_alone():
    finished = CliRunner().invoke(cli.app, ["constrained", "--tight-budgets"])
    assert finished.exit_code == 2
    assert "--url" in finished.output


def test_a_refusal_of_the_server_is_a_failure(live):
    exit_code, shown = constrained("--url", live.url, "--model", "another")
    assert exit_code == 1
    assert shown["num_unanswered"] == 12


# Throughput


def test_throughput_times_each_batch_and_shows_where_the_time_goes(tiny_model_folder):
    exit_code, shown = invoke(
        *["throughput", "--model", str(tiny_model_folder), "--dtype", "float32", "--peer", "none"],
        *["--batch", "1,3", "--repeats", "2", "--new-tokens", "6"],
    )
    assert exit_code == 0
    assert [batch["batch"] for batch in shown["batches"]] == [1, 3]
    for batch in shown["batches"]:
        assert len(batch["tokens_per_second"]["values"]) == 2
        assert batch["num_new_tokens"] == 6 * batch["batch"]
        assert [part["part"] for part in batch["profile"]] == list(PARTS)
        assert sum(part["share"] for part in batch["profile"]) == pytest.approx(1.0)


@pytest.mark.slow
def test_the_peer_makes_the_same_tokens(tiny_model_folder):
    exit_code, shown = invoke(
        *["throughput", "--model", str(tiny_model_folder), "--dtype", "float32"],
        *["--batch", "1,3", "--repeats", "1", "--new-tokens", "8"],
    )
    assert exit_code == 0
    for batch in shown["batches"]:
        assert batch["mean_same_prefix"] == 1.0
        assert batch["ratio"]["median"] > 0


def test_a_profile_leaves_the_engine_as_it_was(tiny_model_folder):
    from specdec import EngineConfig

    engine = Engine(EngineConfig(model=str(tiny_model_folder), num_kv_blocks=20))
    before = Engine.step, Linear.__call__
    with StepProfile().recording(engine):
        assert Engine.step is not before[0]
    assert (Engine.step, Linear.__call__) == before
