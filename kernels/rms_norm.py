"""RMSNorm (Zhang, Sennrich 2019, equation 4), of an input or of what it comes to with the residual stream.

    output[t] = x[t] / sqrt(mean(x[t] ** 2) + eps) * weight
    add_rms_norm: residual[t] += x[t] first, and residual in the place of x

T rows, E hidden size. Computed in fp32 and rounded once; the sum with the residual is rounded to its dtype before
it is normed, so that what is normed is what the next layer adds to.
"""

from __future__ import annotations

from typing import Final

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton

_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, *, eps: float) -> None:
    """The specification, and the CPU path; arguments as in rms_norm."""
    row = x.float()
    output.copy_(row * torch.rsqrt(row.square().mean(dim=1, keepdim=True) + eps) * weight.float())


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, *, eps: float
) -> None:
    """The specification, and the CPU path; arguments as in add_rms_norm."""
    residual.copy_(residual.float() + x.float())
    rms_norm_reference(residual, weight, output, eps=eps)


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def _rms_norm_kernel(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        x_ptr,
        residual_ptr,
        weight_ptr,
        output_ptr,
        x_stride,
        residual_stride,
        output_stride,
        eps,
        HIDDEN_SIZE: tl.constexpr,
        TILE: tl.constexpr,
        HAS_RESIDUAL: tl.constexpr,
    ):
        """One program norms one row."""
        token = tl.program_id(0).to(tl.int64)
        element = tl.arange(0, TILE)
        inside = element < HIDDEN_SIZE
        row = tl.load(x_ptr + token * x_stride + element, mask=inside, other=0.0).to(tl.float32)
        # Now, so that it comes while the row is summed up.
        weight = tl.load(weight_ptr + element, mask=inside, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            residual = residual_ptr + token * residual_stride + element
            row += tl.load(residual, mask=inside, other=0.0).to(tl.float32)
            rounded = row.to(residual_ptr.dtype.element_ty)
            tl.store(residual, rounded, mask=inside)
            row = rounded.to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(row * row, axis=0) / HIDDEN_SIZE + eps)
        output = output_ptr + token * output_stride + element
        tl.store(output, (row * scale * weight).to(output_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, *, eps: float) -> None:
    """Write the norm of x into output, which may be x.

    x, output: [T, E] of one dtype, float32, float16 or bfloat16, any stride from row to row. weight: [E] of that
    dtype. Raises ValueError for other shapes, dtypes, devices or strides.
    """
    _check(x, weight, {"output": output})
    if x.numel() == 0:
        return
    if not runs_in_triton(x):
        rms_norm_reference(x, weight, output, eps=eps)
        return
    _launch(x, None, weight, output, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, *, eps: float
) -> None:
    """Add x to residual, in place, and write the norm of that into output, which may be x but not residual.

    x, residual, output: [T, E] of one dtype, float32, float16 or bfloat16, any stride from row to row. weight: [E]
    of that dtype. Raises ValueError for other shapes, dtypes, devices or strides.
    """
    _check(x, weight, {"residual": residual, "output": output})
    if x.numel() == 0:
        return
    if not runs_in_triton(x):
        add_rms_norm_reference(x, residual, weight, output, eps=eps)
        return
    _launch(x, residual, weight, output, eps)


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, output: torch.Tensor, eps: float
) -> None:
    num_tokens, hidden_size = x.shape
    tile = triton.next_power_of_2(hidden_size)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _rms_norm_kernel[(num_tokens,)](
            x,
            residual,
            weight,
            output,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            output.stride(0),
            eps,
            HIDDEN_SIZE=hidden_size,
            TILE=tile,
            HAS_RESIDUAL=residual is not None,
            num_warps=min(16, max(1, tile // 512)),
        )


def _check(x: torch.Tensor, weight: torch.Tensor, others: dict[str, torch.Tensor]) -> None:
    if x.ndim != 2 or x.dtype not in _DTYPES:
        raise ValueError(f"x must be [T, E] float32, float16 or bfloat16; it is {list(x.shape)} {x.dtype}")
    for name, tensor, shape in [("weight", weight, x.shape[1:]), *((name, t, x.shape) for name, t in others.items())]:
        if tensor.shape != shape or tensor.dtype != x.dtype:
            raise ValueError(f"{name} must be {list(shape)} {x.dtype} as x; it is {list(tensor.shape)} {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}; they must be on one device")
    for name, tensor in {"x": x, "weight": weight, **others}.items():
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous along the last axis; its strides are {tensor.stride()}")
