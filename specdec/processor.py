"""What this machine's processor has that the code for a layer's parts is chosen by."""

from __future__ import annotations

from typing import Literal

import torch

Lanes = Literal[8, 16]
"""Floats of a register: AVX2's, and AVX-512's."""


def max_lanes() -> Lanes:
    """Of its largest registers, of those that kernels are written for."""
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


def has_products_of(dtype: torch.dtype) -> bool:
    """Whether an x86 has instructions that multiply numbers of a dtype, rather than convert them; elsewhere False.

    oneDNN is of no help: of bfloat16 and float16 it says yes wherever it can convert them.
    """
    if dtype is torch.bfloat16:
        return torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001
    if dtype is torch.float16:
        return bool(torch.cpu.get_capabilities().get("avx512_fp16"))
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
