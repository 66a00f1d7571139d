"""What this machine's processor has that products and kernels are chosen by."""

from __future__ import annotations

import torch

# Of bfloat16 oneDNN's own question is true wherever it can convert such numbers.
_has_bf16 = torch.cpu._is_avx512_bf16_supported  # noqa: SLF001
_has_fp16 = torch.ops.mkldnn._is_mkldnn_fp16_supported  # noqa: SLF001


def max_lanes() -> int:
    """Floats of its largest registers, of those that kernels are written for: 8 (AVX2) or 16 (AVX-512)."""
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


def multiplies(dtype: torch.dtype) -> bool:
    """Whether it has instructions for products of such numbers, which an x86 has for bfloat16 and float16 seldom."""
    if dtype is torch.bfloat16:
        return bool(_has_bf16())
    return dtype is not torch.float16 or bool(_has_fp16())
