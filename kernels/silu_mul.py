"""SiLU times up: the gated half of SwiGLU (Shazeer 2020, equation 6).

    output[t, f] = silu(gate_up[t, f]) * gate_up[t, F + f]        with silu(x) = x / (1 + exp(-x))

T rows, F intermediate size. Computed in fp32 and rounded once.
"""

from __future__ import annotations

from typing import Final

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton

_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
_TILE: Final = 1024


def silu_mul_reference(gate_up: torch.Tensor, output: torch.Tensor) -> None:
    """The specification, and the CPU path; arguments as in silu_mul."""
    gate, up = gate_up.float().chunk(2, dim=1)
    output.copy_(torch.nn.functional.silu(gate) * up)


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def _silu_mul_kernel(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        gate_up_ptr, output_ptr, gate_up_stride, output_stride, size, TILE: tl.constexpr
    ):
        """One program computes one tile of one row."""
        token = tl.program_id(0).to(tl.int64)
        element = tl.program_id(1) * TILE + tl.arange(0, TILE)
        inside = element < size
        gate_ptr = gate_up_ptr + token * gate_up_stride + element
        gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_ptr + size, mask=inside, other=0.0).to(tl.float32)
        # The exponential of a number above 0 could overflow.
        decayed = tl.exp(-tl.abs(gate))
        product = gate * tl.where(gate < 0.0, decayed, 1.0) / (1.0 + decayed) * up
        tl.store(output_ptr + token * output_stride + element, product.to(output_ptr.dtype.element_ty), mask=inside)


def silu_mul(gate_up: torch.Tensor, output: torch.Tensor) -> None:
    """Write silu(gate) * up into output.

    gate_up: [T, 2 F], the gate before the up half, float32, float16 or bfloat16. output: [T, F] of that dtype. Any
    stride from row to row. Raises ValueError for other shapes, dtypes, devices or strides.
    """
    _check(gate_up, output)
    if output.numel() == 0:
        return
    if not runs_in_triton(gate_up):
        silu_mul_reference(gate_up, output)
        return
    num_tokens, size = output.shape
    with torch.cuda.device_of(gate_up):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _silu_mul_kernel[(num_tokens, triton.cdiv(size, _TILE))](
            gate_up, output, gate_up.stride(0), output.stride(0), size, TILE=_TILE
        )


def _check(gate_up: torch.Tensor, output: torch.Tensor) -> None:
    if gate_up.ndim != 2 or gate_up.shape[1] % 2 or gate_up.dtype not in _DTYPES:
        raise ValueError(
            f"gate_up must be [T, 2 F] float32, float16 or bfloat16; it is {list(gate_up.shape)} {gate_up.dtype}"
        )
    shape = [gate_up.shape[0], gate_up.shape[1] // 2]
    if list(output.shape) != shape or output.dtype != gate_up.dtype:
        raise ValueError(
            f"output must be {shape} {gate_up.dtype} as gate_up; it is {list(output.shape)} {output.dtype}"
        )
    if output.device != gate_up.device:
        raise ValueError(f"output is on {output.device}, gate_up on {gate_up.device}; they must be on one device")
    for name, tensor in {"gate_up": gate_up, "output": output}.items():
        if tensor.shape[1] > 1 and tensor.stride(1) != 1:
            raise ValueError(f"{name} must be contiguous along the last axis; its strides are {tensor.stride()}")
