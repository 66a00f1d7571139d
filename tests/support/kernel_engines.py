"""Engines that run by the kernels, wherever their tensors are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from specdec import Engine, EngineConfig, build
from specdec.backend import KernelBackend


@contextmanager
def kernels_on(device: torch.device) -> Iterator[None]:
    """Engines that are built within run by the kernels on the device: on a CPU by their references, or interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(build, "_device", lambda _: device)
            patch.setattr(build, "backend_of", KernelBackend)
        yield


def kernel_engine(device: torch.device, config: EngineConfig) -> Engine:
    """On a CPU or on a GPU."""
    with kernels_on(device):
        return Engine(config)
