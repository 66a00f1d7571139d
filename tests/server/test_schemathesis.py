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

SCHEMATHESIS = Path(os.environ.get("SPECDEC_CLIENTS", ".venv-clients")) / "bin" / "schemathesis"


@pytest.mark.clients
@pytest.mark.parametrize("keys", [(), ("secret",)], ids=["open", "guarded"])
def test_no_made_up_request_is_answered_with_a_5xx(
    make_engine: Callable[..., Engine], tmp_path: Path, keys: tuple[str, ...]
) -> None:
    assert SCHEMATHESIS.exists(), f"{SCHEMATHESIS} is not there; `make test-clients` installs it"
    with serving(make_engine(), ServerConfig(served_model_names=("tiny",), api_keys=keys)) as server:
        header = [f"--header=authorization: Bearer {key}" for key in keys]
        finished = subprocess.run(
            [SCHEMATHESIS.absolute(), "run", server.url + "/openapi.json", "--checks=not_a_server_error",
             "--max-examples=60", "--seed=1", "--request-timeout=60", "--no-color", "--generation-database=none",
             *header],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-2000:]
        num_cases = int(re.search(r"(\d+) generated", finished.stdout)[1])
        assert num_cases > 100, finished.stdout
        headers = {"authorization": f"Bearer {''.join(keys)}"}
        assert httpx.get(server.url + "/v1/models", headers=headers).status_code == 200
        wait_until(lambda: server.num_blocks_in_use() == 0, "every block to be freed")
