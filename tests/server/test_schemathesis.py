"""schemathesis over our own OpenAPI document: whatever it makes up, no answer is a 5xx."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from live_server import serving, wait_until

from specdec import Engine
from specdec.server import ServerConfig

SCHEMATHESIS = Path(os.environ.get("SPECDEC_CLIENTS", ".venv-clients")) / "schemathesis" / "bin" / "schemathesis"

HOOKS = """
import schemathesis

@schemathesis.hook
def map_body(context, body):
    # Most names are of no model, which is said before anything else is looked at.
    if isinstance(body, dict) and len(str(body)) % 4:
        return {**body, "model": "tiny"}
    return body
"""


@pytest.mark.clients
@pytest.mark.parametrize("keys", [(), ("secret",)], ids=["open", "guarded"])
def test_no_made_up_request_is_answered_with_a_5xx(
    make_engine: Callable[..., Engine], tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: tuple[str, ...]
) -> None:
    assert SCHEMATHESIS.exists(), f"{SCHEMATHESIS} is not there; `make test-clients` installs it"
    (tmp_path / "hooks.py").write_text(HOOKS)
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONSAFEPATH": ""}
    header = {"authorization": f"Bearer {key}" for key in keys[:1]}  # noqa: B035, one or none
    with serving(make_engine(), ServerConfig(served_model_names=("tiny",), api_keys=keys)) as server:
        finished = subprocess.run(
            [SCHEMATHESIS.absolute(), "run", server.url + "/openapi.json", "--checks=not_a_server_error",
             "--max-examples=60", "--seed=1", "--request-timeout=60", "--no-color", "--generation-database=none",
             *(f"--header={name}: {value}" for name, value in header.items())],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-2000:]
        num_cases = int(re.search(r"(\d+) generated", finished.stdout)[1])
        assert num_cases > 100, finished.stdout
        with capsys.disabled():
            print(f"\nschemathesis, {'with a key' if keys else 'without keys'}: {num_cases} cases, no server error")
        metrics = httpx.get(server.url + "/metrics", headers=header).text
        statuses = re.findall(r'handler="/v1/(?:chat/)?completions".*status="(\d+)"', metrics)
        assert {"200", "400", "404"} <= set(statuses)
        wait_until(lambda: server.num_blocks_in_use() == 0, "every block to be freed")
