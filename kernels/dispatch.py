"""Where a kernel runs: Triton on CUDA tensors and in Triton's interpreter, torch on the CPU."""

from __future__ import annotations

import importlib.util
import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton reads the variable when a kernel is defined, so it counts from the first import on."""

HAS_TRITON = importlib.util.find_spec("triton") is not None

TRITON_RUNS_HERE = HAS_TRITON and (INTERPRETED or torch.cuda.is_available())
"""Whether the Triton kernels are defined; importing triton takes 0.4 s, which a CPU process need not pay."""


def runs_in_triton(tensor: torch.Tensor) -> bool:
    """Whether a kernel given this tensor runs in Triton; RuntimeError for a CUDA tensor without triton."""
    if tensor.is_cuda and not TRITON_RUNS_HERE:
        raise RuntimeError("a CUDA tensor needs the triton package; install triton, or run on the CPU")
    return TRITON_RUNS_HERE and (tensor.is_cuda or INTERPRETED)
