"""What the README says works: its examples run, what it names exists."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from specdec.cli import app
from specdec.server import ServerConfig
from specdec.server.run import CUT_OFF_S, IDLE_CONNECTION_S

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
OPENAI_EXAMPLE, PREDICTION_EXAMPLE, ENGINE_EXAMPLE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SPECDEC = str(Path(sys.executable).with_name("specdec"))


def test_every_target_of_make_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README + CONTRIBUTING, re.MULTILINE))
    assert {"serve", "test"} <= named <= targets


def test_every_command_that_is_named_exists():
    named = set(re.findall(r"\bspecdec (serve|run|pull|eval|version)\b", README))
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout
    assert {"serve", "run", "pull", "eval"} == named
    assert [command for command in named if not re.search(rf"│ {command} +\w", text)] == []


def test_every_path_that_is_linked_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 8
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_flag_of_the_deployment_page_exists():
    text = DEPLOYMENT + (ROOT / "Containerfile").read_text(encoding="utf-8")
    of_others = {"init", "cpus", "memory", "stop-timeout", "no-cache-dir", "index-url", "system", "uid", "home-dir",
                 "from", "format", "interval", "timeout", "start-period", "retries"}  # fmt: skip
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", text)) - of_others
    assert {"host", "api-key-file", "kv-cache-memory", "log-format"} <= named
    text = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).stdout
    assert [flag for flag in sorted(named) if not re.search(rf"--{flag}\b", text)] == []


def test_the_timeouts_of_the_deployment_page_fit_those_of_the_server():
    longest_end_s = ServerConfig().shutdown_grace_s + CUT_OFF_S
    assert longest_end_s < int(re.search(r"TimeoutStopSec=(\d+)", DEPLOYMENT)[1])
    pod_end_s = int(re.search(r"terminationGracePeriodSeconds: (\d+)", DEPLOYMENT)[1])
    assert longest_end_s + int(re.search(r'\[sleep, "(\d+)"\]', DEPLOYMENT)[1]) < pod_end_s
    for idle in re.findall(r"keepalive(?:_timeout)? (\d+)s", DEPLOYMENT):
        assert int(idle) < IDLE_CONNECTION_S
    assert f"{IDLE_CONNECTION_S} s" in DEPLOYMENT
    assert 2 * ServerConfig().keep_alive_interval_s < 60


def printed_beside_a_server(example, *flags):
    """What an example prints that talks to `specdec serve` with these flags."""
    server = subprocess.Popen([SPECDEC, "serve", "--port", "0", *flags], stderr=subprocess.PIPE, text=True)
    try:
        url = next(found[1] for line in server.stderr if (found := re.search(r"ready +(\S+)/v1 in", line)))
        program = example.replace("http://127.0.0.1:8000", url)
        assert program != example
        return subprocess.check_output([sys.executable, "-P", "-c", program], text=True, timeout=300)
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


@pytest.mark.model
def test_the_example_with_a_prediction_prints_what_became_of_it():
    # As many drafts as pay may be none on a machine that does much else.
    usage, passes = printed_beside_a_server(PREDICTION_EXAMPLE, "--num-speculative-tokens", "8").splitlines()
    num_accepted = int(re.search(r"accepted_prediction_tokens=(\d+)", usage)[1])
    num_tokens, num_passes = map(int, re.fullmatch(r"(\d+) tokens in (\d+) passes", passes).groups())
    assert num_accepted > 0
    assert num_passes <= num_tokens - num_accepted


@pytest.mark.model
def test_the_openai_example_prints_json_that_satisfies_its_schema():
    printed = printed_beside_a_server(OPENAI_EXAMPLE, "--spec", "ngram")
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
              "required": ["city", "country"], "additionalProperties": False}  # fmt: skip
    jsonschema.validate(json.loads(printed), schema)


@pytest.mark.model
def test_the_engine_example_prints_the_model_it_asked_for():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    program = [sys.executable, "-P", "-W", "error", "-c", ENGINE_EXAMPLE]
    printed = subprocess.check_output(program, text=True, env=environment, timeout=300)
    assert re.fullmatch(r"city='[^']+' country='[^']+'\n", printed)


@pytest.mark.model
def test_a_prompt_on_the_command_line_is_answered_and_speculation_changes_nothing(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"capital": {"type": "string", "maxLength": 40}}, '
                      '"required": ["capital"], "additionalProperties": false}')  # fmt: skip
    command = [SPECDEC, "run", "--exact", "-p", "What is the capital of France?", "--schema", str(schema)]
    plain, drafted = (
        subprocess.check_output([*command, *flags], text=True, timeout=300) for flags in ([], ["--spec", "ngram"])
    )
    assert list(json.loads(plain)) == ["capital"]
    assert drafted == plain
