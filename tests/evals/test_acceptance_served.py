"""`specdec eval acceptance --url` against real servers on the tiny model: a specdec, and ones that are none."""

from __future__ import annotations

import json

import pytest
from live_server import serving
from typer.testing import CliRunner

from specdec import Engine, EngineConfig, SpeculativeConfig
from specdec.evals import cli
from specdec.evals.chat_stream import ChatServer
from specdec.server import ServerConfig, chat
from specdec.server.errors import bad_request
from specdec.speculative import NONE

SIZE = ["--num-tasks", "2", "--repeats", "2", "--max-tokens", "12"]


def invoke(url, *arguments):
    finished = CliRunner().invoke(cli.app, ["acceptance", "--url", url, *SIZE, *arguments, "--json"])
    assert finished.stdout.count("\n") == 1, finished.output
    return finished.exit_code, json.loads(finished.stdout), finished.stderr


def arms(shown, group, concurrency=1):
    (found,) = (each for each in shown["groups"] if (each["group"], each["concurrency"]) == (group, concurrency))
    return {arm["arm"]: arm for arm in found["arms"]}


@pytest.fixture(scope="module")
def exact(tiny_model_folder):
    # A fixed number: as many as pay may be none on a machine that does much else.
    speculative = SpeculativeConfig(method="chain", num_speculative_tokens=4)
    config = EngineConfig(model=str(tiny_model_folder), num_kv_blocks=600, exact=True, speculative=speculative)
    with serving(Engine(config)) as server:
        yield server


@pytest.mark.slow
def test_a_specdec_answers_in_every_arm_and_says_whose_drafts_were_accepted_where(exact, tmp_path):
    files = ["--csv", str(tmp_path / "rows.csv"), "--html", str(tmp_path / "report.html")]
    exit_code, shown, tables = invoke(
        *(exact.url, "--spec", "chain", "--spec", "grammar", "--num-speculative-tokens", "4", "--concurrency", "1,3"),
        *("--group", "structured", "--group", "chat", *files),
    )
    assert exit_code == 0, shown["failures"]
    assert shown["settings"]["takes_speculative"]
    for group in ("structured", "chat"):
        for concurrency in (1, 3):
            own = arms(shown, group, concurrency)
            assert list(own) == ["plain", "chain, K=4", "grammar, K=4"]
            assert own["plain"]["rates"]["num_drafts"] == 0
            assert own["plain"]["speedup"] is None
            for arm in own.values():
                rates = arm["rates"]
                ended = rates["num_accepted_tokens"] + rates["num_rejected_tokens"] + rates["num_discarded_tokens"]
                assert ended == rates["num_draft_tokens"]
                assert arm["tokens_per_second"]["median"] > 0
                assert len(arm["milliseconds_to_first_token"]["values"]) == 2
                # Exact arithmetic and coupled verification.
                assert arm["num_differing"] == 0
                assert "".join(token["text"] for token in arm["example"])
    drafting = arms(shown, "structured")["grammar, K=4"]
    assert drafting["validity"]["num_answers"] == 6
    assert drafting["rates"]["forced_share"] > 0
    assert set(drafting["rates"]["by_proposer"]) == {"grammar"}
    tokens = sum(own["num_tokens"] for own in drafting["rates"]["by_region"].values())
    assert tokens == drafting["rates"]["num_generated_tokens"]
    assert "ms to first" in tables
    assert "accepted by what is written" in tables
    assert "milliseconds_to_first_token" in (tmp_path / "rows.csv").read_text().splitlines()[0]
    assert exact.url in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_over_http_the_rates_are_those_of_the_engine_in_process(exact, tiny_model_folder):
    arguments = ["--spec", "grammar+ngram", "--num-speculative-tokens", "3", "--concurrency", "1"]
    arguments += ["--group", "structured"]
    served = invoke(exact.url, *arguments)[1]
    in_process = CliRunner().invoke(
        cli.app, ["acceptance", "--model", str(tiny_model_folder), "--exact", *SIZE, *arguments, "--json"]
    )
    expected = arms(json.loads(in_process.stdout), "structured")
    for name, arm in arms(served, "structured").items():
        assert arm["rates"] == expected[name]["rates"]
        assert arm["rates_by_category"] == expected[name]["rates_by_category"]
        assert arm["example"] == expected[name]["example"]


def test_without_a_method_a_specdec_drafts_as_it_was_started_and_predictions_are_sent(exact):
    exit_code, shown, _ = invoke(exact.url, "--concurrency", "2", "--group", "code_edit, predicted")
    assert exit_code == 0, shown["failures"]
    own = arms(shown, "code_edit, predicted", 2)
    assert list(own) == ["plain", "as served"]
    assert "prediction" in own["as served"]["rates"]["by_proposer"]


def test_no_run_drafts_from_what_another_has_finished(exact):
    shown = invoke(exact.url, "--spec", "suffix", "--group", "chat", "--concurrency", "1", "--temperature", "1")[1]
    rates = arms(shown, "chat")["suffix"]["rates"]
    # The plain run before gave the same answers, and the model's own text has no repetition at this temperature.
    assert rates["num_accepted_tokens"] < 0.2 * rates["num_generated_tokens"]


def ignoring(monkeypatch):
    """The chat endpoint of a server that knows nothing of our extras, and passes over them."""
    requested = chat.requested_speculation
    monkeypatch.setattr(
        chat, "requested_speculation", lambda prediction, *_, **fields: requested(prediction, None, None, **fields)
    )


def refusing(monkeypatch):
    """The same of one that refuses what it does not know."""
    requested = chat.requested_speculation

    def refuse(prediction, params, trace, **fields):
        if params is not None or trace is not None:
            raise bad_request("Unrecognized request argument supplied: speculative", param="speculative")
        return requested(prediction, None, None, **fields)

    monkeypatch.setattr(chat, "requested_speculation", refuse)


@pytest.mark.parametrize("make_foreign", [ignoring, refusing])
@pytest.mark.parametrize("metrics", ["none", "summary"])
def test_another_server_has_one_arm_of_which_is_shown_what_it_reports(
    make_foreign, metrics, tiny_model_folder, monkeypatch, tmp_path
):
    make_foreign(monkeypatch)
    config = ServerConfig(served_model_names=("theirs",), per_request_spec_decode_metrics=metrics, api_keys=("key",))
    files = ["--csv", str(tmp_path / "rows.csv"), "--html", str(tmp_path / "report.html")]
    speculative = SpeculativeConfig(method="grammar", num_speculative_tokens=4)
    engine = Engine(EngineConfig(model=str(tiny_model_folder), num_kv_blocks=600, speculative=speculative))
    with serving(engine, config) as server:
        exit_code, shown, tables = invoke(
            *(server.url, "--api-key", "key", "--model", "theirs", "--spec", "ngram", "--concurrency", "2", *files),
            *("--group", "structured", "--group", "code_edit, predicted"),
        )
    assert exit_code == 0, shown["failures"]
    assert not shown["settings"]["takes_speculative"]
    assert [group["group"] for group in shown["groups"]] == ["structured"]
    own = arms(shown, "structured", 2)
    assert list(own) == ["as served"]
    arm = own["as served"]
    assert arm["rates"] is None
    assert arm["speedup"] is None
    assert arm["rates_by_category"] == {}
    assert arm["validity"]["num_answers"] == 6
    assert arm["milliseconds_to_first_token"]["median"] > 0
    assert "accepted by" not in tables
    if metrics == "none":
        assert arm["reported"] is None
        assert "drafts" not in tables
    else:
        reported = arm["reported"]
        assert sum(reported["num_per_draft"]) == reported["num_drafts"] > 0
        assert sum(i * n for i, n in enumerate(reported["num_per_draft"])) == reported["num_accepted_tokens"]
        assert "drafts, as the server counts them" in tables


def test_a_method_that_the_server_does_not_have_is_a_failure(exact):
    exit_code, shown, _ = invoke(exact.url, "--spec", "draft_model", "--group", "chat", "--concurrency", "1")
    assert exit_code == 1
    assert "has no draft model" in shown["failures"][0]
    assert shown["groups"] == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--exact"], "leave out --draft, --dtype and --exact"), (["--spec", NONE], "nothing to accept")],
)
def test_what_a_server_cannot_be_asked_is_a_mistake(arguments, complaint):
    finished = CliRunner().invoke(
        cli.app, ["acceptance", "--url", "http://127.0.0.1:1", *arguments], env={"COLUMNS": "200"}
    )
    assert finished.exit_code == 2
    assert complaint in finished.output


def test_a_server_that_is_not_there_is_named():
    from specdec.errors import EngineError

    with pytest.raises(EngineError, match="is a server running there"):
        ChatServer("http://127.0.0.1:1", model=None, api_key=None)
    with pytest.raises(EngineError, match="does not answer"):
        ChatServer("http://127.0.0.1:1", model="m", api_key=None)


def test_tasks_that_a_server_does_not_take_are_left_out_by_name(exact, tmp_path):
    path = tmp_path / "schemas.jsonl"
    schemas = {
        "known": {"enum": ["a", "b"]},
        "strange": {"type": "string", "format": "nobody-knows", "maxLength": 3},
        "no instance": {"allOf": [{"type": "string"}, {"type": "null"}]},
    }
    records = [{"name": name, "schema": schema, "tests": []} for name, schema in schemas.items()]
    path.write_text("\n".join(map(json.dumps, records)))
    arguments = ["--spec", "grammar", "--concurrency", "1", "--dataset", str(path)]
    exit_code, shown, _ = invoke(exact.url, *arguments, "--num-tasks", "3")
    assert exit_code == 0, shown["failures"]
    [group] = shown["groups"]
    assert group["num_requests"] == 2
    [left_out] = [each for each in shown["warnings"] if each.startswith("left out")]
    assert "no instance" in left_out
    path.write_text(json.dumps(records[2]))
    exit_code, shown, _ = invoke(exact.url, *arguments)
    assert exit_code == 1
    assert "none of its tasks" in shown["failures"][0]
