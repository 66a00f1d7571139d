"""What the tests of evals on the tiny model have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def compiled_here() -> Iterator[None]:
    """Engines that commands build compile on their own thread: processes would be started with each of them."""
    from specdec.grammars import GrammarCompiler

    def compiler(*given: object, num_workers: int, **fields: object) -> GrammarCompiler:
        return GrammarCompiler(*given, **fields)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specdec.engine.GrammarCompiler", compiler)
        yield
