"""Libraries that people call a server with, each in an environment of its own, against `specdec serve`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tool_templates import QWEN, write_model_with_tools

ENVIRONMENTS = Path(os.environ.get("SPECDEC_CLIENTS", ".venv-clients"))
SCRIPTS = Path(__file__).parent.parent / "clients"
SPECDEC = str(Path(sys.executable).with_name("specdec"))
CLIENTS = ["instructor", "pydantic-ai", "langchain-openai", "litellm"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, _ = write_model_with_tools(tmp_path_factory.mktemp("clients") / "model", QWEN, max_position_embeddings=8192)
    command = [SPECDEC, "serve", str(folder), "--port", "0", "--served-model-name", "tiny", "--check-outputs"]
    environment = {name: value for name, value in os.environ.items() if name != "SPECDEC_API_KEY"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            yield next(found[1] for line in server.stderr if (found := re.search(r"ready +(\S+)/v1 in", line)))
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, bool]]]:
    """Which features of each client work; printed at the end."""
    rows: dict[str, dict[str, bool]] = {}
    yield rows
    features = list(dict.fromkeys(feature for row in rows.values() for feature in row))
    marks = {True: "works", False: "FAILS", None: "-"}
    lines = [["", *rows], *([feature, *(marks[row.get(feature)] for row in rows.values())] for feature in features)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        reporter.write_line("")
        for line in lines:
            cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
            reporter.write_line("  ".join(cells).rstrip())


@pytest.mark.clients
@pytest.mark.parametrize("client", CLIENTS)
def test_all_that_a_client_offers_works(client: str, url: str, table: dict[str, dict[str, bool]]) -> None:
    python = ENVIRONMENTS / client / "bin" / "python"
    assert python.exists(), f"{python} is not there; `make test-clients` installs it"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI"))}
    finished = subprocess.run(
        [python.absolute(), SCRIPTS / f"with_{client.replace('-', '_')}.py", url, "tiny"],
        env=environment, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    outcomes = [json.loads(line) for line in finished.stdout.splitlines()]
    assert len(outcomes) > 4
    table[outcomes[0]["client"]] = {outcome["feature"]: outcome["problem"] is None for outcome in outcomes}
    assert [outcome["feature"] + ": " + outcome["problem"] for outcome in outcomes if outcome["problem"]] == []
