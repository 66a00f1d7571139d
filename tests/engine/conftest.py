"""Where tests of the device's path run: by the kernels' references, in Triton's interpreter, or on a GPU.

Triton reads TRITON_INTERPRET when a kernel is defined, so a process runs either the references or the interpreter:
test_device_path_interpreted.py runs some files again with the variable set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from specdec.kernels.dispatch import INTERPRETED

if TYPE_CHECKING:
    from specdec import EngineConfig

PLACES = [pytest.param("cpu", id="interpreter" if INTERPRETED else "cpu")]
if not INTERPRETED:
    PLACES.append(pytest.param("cuda", id="gpu", marks=pytest.mark.gpu))


@pytest.fixture(scope="module", params=PLACES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """`make test-gpu` looks into the files whose functions ask for it."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture
def num_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many torch has, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config_of(tiny_model_folder: Path, tiny_draft_folder: Path) -> Callable[..., EngineConfig]:
    """`kernel_engines.config_of` with the tiny models."""
    import kernel_engines

    return functools.partial(kernel_engines.config_of, tiny_model_folder, tiny_draft_folder)
