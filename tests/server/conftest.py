"""One server on the tiny model for all tests that only talk to it; those that break one start their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from live_server import LiveServer

    from specdec import Engine


@pytest.fixture(scope="session")
def make_engine(tiny_model_folder: Path) -> Callable[..., Engine]:
    from specdec import Engine, EngineConfig

    def make(**fields: object) -> Engine:
        return Engine(EngineConfig(model=str(tiny_model_folder), num_kv_blocks=600, check_outputs=True, **fields))

    return make


@pytest.fixture(scope="session")
def live(make_engine: Callable[..., Engine]) -> Iterator[LiveServer]:
    from live_server import serving

    with serving(make_engine()) as server:
        yield server


@pytest.fixture
def client(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=30.0) as client:
        yield client
