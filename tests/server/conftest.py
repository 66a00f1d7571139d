"""A server of each kind on the tiny model for all tests that only talk to it; those that break one start their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import patient_http  # noqa: F401
import pytest

if TYPE_CHECKING:
    from live_server import LiveServer
    from served_process import Served

    from specdec import Engine

OVER_BOTH_TRANSPORTS = {
    "test_chat", "test_completions", "test_openai_client", "test_text_constraints", "test_constraints"
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def patient_checks() -> Iterator[None]:
    """No check of an answer runs out of its time on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specdec.output_check.CHECK_SECONDS", 60.0)
        yield


@pytest.fixture(scope="session")
def make_engine(tiny_model_folder: Path) -> Callable[..., Engine]:
    from specdec import Engine, EngineConfig

    def make(**fields: object) -> Engine:
        """With processes that compile where a test is about them: they would be started with every engine."""
        sizes = {"num_kv_blocks": 600, "num_compile_workers": 0, **fields}
        return Engine(EngineConfig(model=str(tiny_model_folder), check_outputs=True, **sizes))

    return make


@pytest.fixture(scope="session")
def thread_live(make_engine: Callable[..., Engine]) -> Iterator[LiveServer]:
    from live_server import serving

    with serving(make_engine(num_compile_workers=2)) as server:
        yield server


@pytest.fixture(scope="session")
def process_live(tiny_model_folder: Path) -> Iterator[LiveServer]:
    from live_server import serving

    from specdec import EngineConfig, EngineProcess

    config = EngineConfig(model=str(tiny_model_folder), num_kv_blocks=600, check_outputs=True)
    with serving(EngineProcess.launch(config)) as server:
        yield server


@pytest.fixture(scope="session")
def exact(make_engine: Callable[..., Engine], tiny_draft_folder: Path) -> Iterator[LiveServer]:
    """Has a draft model, and gives the same tokens whatever is computed beside them."""
    from live_server import serving

    from specdec.server import ServerConfig
    from specdec.speculative import SpeculativeConfig

    speculative = SpeculativeConfig(model=str(tiny_draft_folder))
    config = ServerConfig(served_model_names=("tiny",), per_request_spec_decode_metrics="summary")
    with serving(make_engine(speculative=speculative, exact=True), config) as server:
        yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What only talks to a server talks to both kinds, in the modules that stand for the rest."""
    if "live" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[2] in OVER_BOTH_TRANSPORTS:
        metafunc.parametrize("live", ["thread_live", "process_live"], indirect=True, ids=["thread", "process"])


@pytest.fixture
def live(request: pytest.FixtureRequest) -> LiveServer:
    return request.getfixturevalue(getattr(request, "param", "thread_live"))


@pytest.fixture
def client(live: LiveServer) -> Iterator[httpx.Client]:
    from live_server import TIMEOUT_S

    with httpx.Client(base_url=live.url, timeout=TIMEOUT_S) as client:
        yield client


@pytest.fixture
def served(tiny_model_folder: Path) -> Iterator[Callable[..., Served]]:
    from served_process import Served

    started: list[Served] = []

    def start(**fields: object) -> Served:
        started.append(Served(tiny_model_folder, **fields))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate(timeout=60)
