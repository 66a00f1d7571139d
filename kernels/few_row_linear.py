"""The matrix product of a few rows: as long as it takes to read the weight, which is read once.

    output[t, o] = sum over i of x[t, i] * weight[o, i] + bias[o]
    gated: output[t, f] = silu(y[t, f]) * y[t, F + f]           of the y above, with silu(x) = x / (1 + exp(-x))

T rows, I inputs, O outputs, F = O / 2. Summed in fp32 and rounded once; of a gated product neither half is rounded
before. A program has some of the outputs for all rows. One row is multiplied by the ordinary units, which have as much
to do as the memory gives them; more are a matrix product, filled up to 16.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from specdec.kernels.dispatch import INTERPRETED, TRITON_RUNS_HERE, runs_in_triton

_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
MAX_ROWS: Final = 16
"""The least that a matrix product of the hardware has; with more, libraries keep up with the memory as well."""
_MANY_OUTPUTS: Final = 4096
"""Of which programs with 64 each are enough to keep an H200's memory busy."""
_VERY_MANY_OUTPUTS: Final = 16384
_MANY_INPUTS: Final = 8192


def few_row_linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, output: torch.Tensor, *, is_gated: bool = False
) -> None:
    """The specification, and the CPU path; arguments as in few_row_linear."""
    y = x.float() @ weight.float().T
    if bias is not None:
        y += bias.float()
    if is_gated:
        gate, up = y.chunk(2, dim=1)
        y = torch.nn.functional.silu(gate) * up
    output.copy_(y)


class _Tiling(NamedTuple):
    """Of a program. Measured on an H200 with Llama 3's weights, and those of a model of a sixteenth of them; some take
    120 kB of shared memory, more than there is on devices of other kinds."""

    outputs: int
    """Rows of the weight that it reads, which are half gates and half what they are for where it is gated."""
    inputs: int
    rows: int
    num_stages: int
    num_warps: int

    @classmethod
    def of(cls, num_rows: int, num_outputs: int, num_inputs: int, *, is_gated: bool) -> _Tiling:
        """num_outputs and num_inputs are the weight's."""
        if num_rows == 1:
            # As many as are a divisor, so that nothing is left over.
            most = 1024 if is_gated or num_inputs > _MANY_INPUTS else 2048
            inputs = next((each for each in (2048, 1024, 512) if each <= most and num_inputs % each == 0), 512)
            return cls(outputs=2, inputs=inputs, rows=1, num_stages=1, num_warps=inputs // (512 if is_gated else 256))
        if num_outputs < _MANY_OUTPUTS:
            return cls(outputs=32 if is_gated else 16, inputs=256, rows=MAX_ROWS, num_stages=4, num_warps=2)
        if is_gated and num_outputs >= _VERY_MANY_OUTPUTS:
            return cls(outputs=128, inputs=128, rows=MAX_ROWS, num_stages=3, num_warps=8)
        num_stages = 4 if num_outputs >= _VERY_MANY_OUTPUTS else 6
        return cls(outputs=64, inputs=128, rows=MAX_ROWS, num_stages=num_stages, num_warps=4)


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def _weights_of(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        weight_ptr, first, element, NUM_INPUTS: tl.constexpr, TILE_INPUTS: tl.constexpr
    ):
        """[outputs, inputs] of a tile, from each output's first; what is beyond the last input is 0."""
        place = weight_ptr + first + element[None, :]
        if NUM_INPUTS % TILE_INPUTS == 0:
            return tl.load(place)
        return tl.load(place, mask=(element < NUM_INPUTS)[None, :], other=0.0)

    @triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
    def _few_row_linear_kernel(  # type: ignore[no-untyped-def]
        x_ptr,
        weight_ptr,
        bias_ptr,
        output_ptr,
        num_rows,
        x_stride,
        output_stride,
        NUM_INPUTS: tl.constexpr,
        NUM_OUTPUTS: tl.constexpr,
        TILE_INPUTS: tl.constexpr,
        TILE_OUTPUTS: tl.constexpr,
        TILE_ROWS: tl.constexpr,
        IS_GATED: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        UPCAST: tl.constexpr,
    ):
        """One program has a tile of outputs, of all rows. NUM_OUTPUTS are those that are written."""
        outputs = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
        is_output = outputs < NUM_OUTPUTS
        # Those that there are not stand for the last: it is loaded once more, and written once.
        first = tl.minimum(outputs, NUM_OUTPUTS - 1).to(tl.int64)[:, None] * NUM_INPUTS
        second = first + NUM_OUTPUTS * NUM_INPUTS
        inputs = tl.arange(0, TILE_INPUTS)
        if TILE_ROWS == 1:
            sums = tl.zeros((TILE_OUTPUTS, TILE_INPUTS), tl.float32)
            up_sums = tl.zeros((TILE_OUTPUTS, TILE_INPUTS), tl.float32)
            for start in range(0, NUM_INPUTS, TILE_INPUTS):
                element = start + inputs
                weight = _weights_of(weight_ptr, first, element, NUM_INPUTS, TILE_INPUTS)
                x = tl.load(x_ptr + element, mask=element < NUM_INPUTS, other=0.0).to(tl.float32)[None, :]
                if IS_GATED:
                    up_weight = _weights_of(weight_ptr, second, element, NUM_INPUTS, TILE_INPUTS)
                    up_sums += up_weight.to(tl.float32) * x
                sums += weight.to(tl.float32) * x
            y = tl.sum(sums, axis=1)
            up = tl.sum(up_sums, axis=1)
            place = output_ptr + outputs
            inside = is_output
        else:
            rows = tl.arange(0, TILE_ROWS)
            is_row = rows < num_rows
            y = tl.zeros((TILE_OUTPUTS, TILE_ROWS), tl.float32)
            up = tl.zeros((TILE_OUTPUTS, TILE_ROWS), tl.float32)
            for start in range(0, NUM_INPUTS, TILE_INPUTS):
                element = start + inputs
                weight = _weights_of(weight_ptr, first, element, NUM_INPUTS, TILE_INPUTS)
                x = tl.load(
                    x_ptr + rows[None, :].to(tl.int64) * x_stride + element[:, None],
                    mask=is_row[None, :] & (element < NUM_INPUTS)[:, None],
                    other=0.0,
                )
                if UPCAST:
                    x = x.to(tl.float32)
                y = tl.dot(weight.to(x.dtype), x, y, input_precision="ieee")
                if IS_GATED:
                    up_weight = _weights_of(weight_ptr, second, element, NUM_INPUTS, TILE_INPUTS)
                    up = tl.dot(up_weight.to(x.dtype), x, up, input_precision="ieee")
            place = output_ptr + rows[None, :].to(tl.int64) * output_stride + outputs[:, None]
            inside = is_row[None, :] & is_output[:, None]
        if HAS_BIAS:
            bias = tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)
            y += bias if TILE_ROWS == 1 else bias[:, None]
            if IS_GATED:
                up_bias = tl.load(bias_ptr + NUM_OUTPUTS + outputs, mask=is_output, other=0.0).to(tl.float32)
                up += up_bias if TILE_ROWS == 1 else up_bias[:, None]
        if IS_GATED:
            # The exponential of a number above 0 could overflow.
            decayed = tl.exp(-tl.abs(y))
            y = y * tl.where(y < 0.0, decayed, 1.0) / (1.0 + decayed) * up
        tl.store(place, y.to(output_ptr.dtype.element_ty), mask=inside)


def few_row_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, output: torch.Tensor, *, is_gated: bool = False
) -> None:
    """Write x times weight, and the bias, into output; gated, silu of its first half times the second.

    x: [T, I], T up to 16, float32, float16 or bfloat16, any stride from row to row. weight: [O, I] and bias: [O],
    contiguous, of that dtype. output: [T, O], or gated [T, O / 2], of that dtype, any stride from row to row.
    Raises ValueError for other shapes, dtypes, devices or strides.
    """
    _check(x, weight, bias, output, is_gated)
    if output.numel() == 0:
        return
    if not runs_in_triton(x):
        few_row_linear_reference(x, weight, bias, output, is_gated=is_gated)
        return
    num_rows, num_inputs = x.shape
    num_outputs = output.shape[1]
    tiling = _Tiling.of(num_rows, weight.shape[0], num_inputs, is_gated=is_gated)
    tile_outputs = tiling.outputs // 2 if is_gated else tiling.outputs
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _few_row_linear_kernel[(triton.cdiv(num_outputs, tile_outputs),)](
            x,
            weight,
            bias,
            output,
            num_rows,
            x.stride(0),
            output.stride(0),
            NUM_INPUTS=num_inputs,
            NUM_OUTPUTS=num_outputs,
            TILE_INPUTS=tiling.inputs,
            TILE_OUTPUTS=tile_outputs,
            TILE_ROWS=tiling.rows,
            IS_GATED=is_gated,
            HAS_BIAS=bias is not None,
            # The interpreter multiplies bfloat16 as if it were integers.
            UPCAST=INTERPRETED and x.dtype == torch.bfloat16,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )


def _check(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, output: torch.Tensor, is_gated: bool
) -> None:
    if x.ndim != 2 or x.dtype not in _DTYPES or x.shape[0] > MAX_ROWS:
        raise ValueError(
            f"x must be [T, I] float32, float16 or bfloat16 of up to {MAX_ROWS} rows; it is {list(x.shape)} {x.dtype}"
        )
    num_rows, num_inputs = x.shape
    if weight.ndim != 2 or weight.shape[1] != num_inputs or (is_gated and weight.shape[0] % 2):
        halves = ", with an even number of outputs" if is_gated else ""
        raise ValueError(f"weight must be [O, {num_inputs}]{halves}; it is {list(weight.shape)}")
    num_weights = weight.shape[0]
    shapes = {
        "weight": (weight, [num_weights, num_inputs]),
        "output": (output, [num_rows, num_weights // 2 if is_gated else num_weights]),
    }
    if bias is not None:
        shapes["bias"] = (bias, [num_weights])
    for name, (tensor, shape) in shapes.items():
        if list(tensor.shape) != shape or tensor.dtype != x.dtype:
            raise ValueError(f"{name} must be {shape} {x.dtype} as x; it is {list(tensor.shape)} {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}; they must be on one device")
        if name != "output" and not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous; its strides are {tensor.stride()}")
    for name, tensor in {"x": x, "output": output}.items():
        if tensor.shape[1] > 1 and tensor.stride(1) != 1:
            raise ValueError(f"{name} must be contiguous along the last axis; its strides are {tensor.stride()}")
