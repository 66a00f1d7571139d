"""The ops that work on each token's row by itself: rms_norm, rope, silu_mul.

T rows. On a CPU the engine runs code of its own in their place (vector_ops.py), or torch's functions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specdec.backend import CpuBackend
from specdec.evals.bench_kernel_cell import (
    TOLERANCE,
    KernelCell,
    KernelOp,
    KernelSetting,
    difference,
    first_difference,
)
from specdec.evals.bench_work import Work
from specdec.kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from specdec.kernels.rope import rope, rope_reference
from specdec.kernels.silu_mul import silu_mul, silu_mul_reference
from specdec.models import llama
from specdec.models.layer_ops import LayerOps, TorchOps
from specdec.vector_ops import VectorOps

_NUM_CHECKED_ROWS = (1, 3, 17)
_NUM_POSITIONS = 4096


@functools.cache
def cpu_ops() -> VectorOps | TorchOps:
    """What an engine on a CPU calls."""
    return CpuBackend(torch.device("cpu")).layer_ops()


def _norm(
    setting: KernelSetting, x: Tensor, weight: Tensor, residual: Tensor | None, output: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The sum of x and residual, where there is one, and its norm, or that of x: all [T, E].

    On a GPU residual becomes the sum, and output the norm.
    """
    eps = setting.shape.rms_norm_eps
    if not setting.bench.is_gpu:
        if residual is None:
            return None, cpu_ops().rms_norm(x, weight, eps)
        return cpu_ops().add_rms_norm(residual, x, weight, eps)
    if residual is None:
        rms_norm(x, weight, output, eps=eps)
    else:
        add_rms_norm(x, residual, weight, output, eps=eps)
    return residual, output


def _check_norm(setting: KernelSetting) -> str | None:
    found = []
    hidden_size, eps = setting.shape.hidden_size, setting.shape.rms_norm_eps
    weight = setting.random(hidden_size, seed=1)
    for num_rows in _NUM_CHECKED_ROWS:
        x = setting.random(num_rows, hidden_size)
        output, expected = torch.full_like(x, math.nan), torch.full_like(x, math.nan)
        _, actual = _norm(setting, x, weight, None, output)
        rms_norm_reference(x, weight, expected, eps=eps)
        found.append(difference(f"the norm of {num_rows} rows", actual, expected, TOLERANCE[setting.dtype]))
        residual = setting.random(num_rows, hidden_size, seed=2)
        total, actual = _norm(setting, x, weight, residual.clone(), output.fill_(math.nan))
        add_rms_norm_reference(x, residual, weight, expected, eps=eps)
        assert total is not None, "there is a residual"
        found.append(difference(f"the residual of {num_rows} rows", total, residual, TOLERANCE[setting.dtype]))
        found.append(difference(f"the norm of {num_rows} sums", actual, expected, TOLERANCE[setting.dtype]))
    return first_difference(found)


def _norm_cells(setting: KernelSetting) -> list[KernelCell]:
    hidden_size = setting.shape.hidden_size

    def prepare(num_rows: int, has_residual: bool) -> Callable[[], object]:
        x, weight = setting.random(num_rows, hidden_size), setting.random(hidden_size, seed=1)
        # Zeros: it is added to with every call.
        residual = torch.zeros_like(x) if has_residual else None
        output = torch.empty_like(x)
        return lambda: _norm(setting, x, weight, residual, output)

    cells = []
    for num_rows in setting.row_counts():
        for has_residual in (False, True):
            # Read and written: x and the output, and the residual both ways.
            num_elements = num_rows * hidden_size * (4 if has_residual else 2) + hidden_size
            num_bytes = num_elements * setting.dtype.itemsize
            label = f"rows {num_rows}" + (", with residual" if has_residual else "")
            cells.append(_cell(label, Work(num_bytes), prepare, num_rows, has_residual))
    return cells


def _rotate(setting: KernelSetting, heads: Tensor, positions: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """heads [T, H, D], rotated: on a GPU in place."""
    if setting.bench.is_gpu:
        rope(heads, positions, cos, signed_sin)
        return heads
    # Any: each has a rotation of its own.
    ops: LayerOps[Any] = cpu_ops()
    return ops.rotate(heads, ops.rotation(positions, cos, signed_sin))


def _rotary(setting: KernelSetting) -> tuple[Tensor, Tensor]:
    return llama.rotary_tables(setting.shape, _NUM_POSITIONS, setting.dtype, setting.device)


def _heads(setting: KernelSetting, num_rows: int) -> Tensor:
    """[T, H_q + H, D]: queries and keys of one product, beside its values."""
    shape = setting.shape
    num_rotated = shape.num_attention_heads + shape.num_key_value_heads
    return setting.random(num_rows, num_rotated + shape.num_key_value_heads, shape.head_dim)[:, :num_rotated]


def _positions(setting: KernelSetting, num_rows: int) -> Tensor:
    # None is 0, where nothing turns.
    return (torch.arange(num_rows, device=setting.device) * 7 + 3) % _NUM_POSITIONS


def _check_rope(setting: KernelSetting) -> str | None:
    found = []
    cos, signed_sin = _rotary(setting)
    for num_rows in _NUM_CHECKED_ROWS:
        heads, positions = _heads(setting, num_rows), _positions(setting, num_rows)
        expected = heads.clone()
        actual = _rotate(setting, heads, positions, cos, signed_sin)
        rope_reference(expected, positions, cos, signed_sin)
        found.append(difference(f"heads of {num_rows} rows", actual, expected, TOLERANCE[setting.dtype]))
    return first_difference(found)


def _rope_cells(setting: KernelSetting) -> list[KernelCell]:
    shape = setting.shape

    def prepare(num_rows: int) -> Callable[[], object]:
        heads, positions = _heads(setting, num_rows), _positions(setting, num_rows)
        cos, signed_sin = _rotary(setting)
        return lambda: _rotate(setting, heads, positions, cos, signed_sin)

    cells = []
    for num_rows in setting.row_counts():
        # Heads both ways, and half a row of each of the tables.
        num_rotated = shape.num_attention_heads + shape.num_key_value_heads
        num_elements = num_rows * (2 * num_rotated + 1) * shape.head_dim
        work = Work(num_elements * setting.dtype.itemsize + 8 * num_rows)
        cells.append(_cell(f"rows {num_rows}", work, prepare, num_rows))
    return cells


def _silu(setting: KernelSetting, gate_up: Tensor, output: Tensor) -> Tensor:
    """silu(gate) * up [T, F], of gate_up [T, 2 F]; on a GPU in output."""
    if not setting.bench.is_gpu:
        return cpu_ops().silu_mul(gate_up)
    silu_mul(gate_up, output)
    return output


def _check_silu(setting: KernelSetting) -> str | None:
    found = []
    for num_rows in _NUM_CHECKED_ROWS:
        gate_up = setting.random(num_rows, 2 * setting.shape.intermediate_size)
        output = torch.full_like(gate_up[:, : setting.shape.intermediate_size], math.nan)
        expected = torch.full_like(output, math.nan)
        actual = _silu(setting, gate_up, output)
        silu_mul_reference(gate_up, expected)
        found.append(difference(f"{num_rows} rows", actual, expected, TOLERANCE[setting.dtype]))
    return first_difference(found)


def _silu_cells(setting: KernelSetting) -> list[KernelCell]:
    size = setting.shape.intermediate_size

    def prepare(num_rows: int) -> Callable[[], object]:
        gate_up = setting.random(num_rows, 2 * size)
        output = torch.empty(num_rows, size, dtype=setting.dtype, device=setting.device)
        return lambda: _silu(setting, gate_up, output)

    cells = []
    for num_rows in setting.row_counts():
        work = Work(3 * num_rows * size * setting.dtype.itemsize)
        cells.append(_cell(f"rows {num_rows}", work, prepare, num_rows))
    return cells


def _cell(
    label: str, work: Work, prepare: Callable[..., Callable[[], object]], num_rows: int, *options: bool
) -> KernelCell:
    # Random numbers are drawn in fp32, and kept beside what they become.
    return KernelCell(label, work, 4 * work.num_bytes, lambda: prepare(num_rows, *options))


ROW_OPS = (
    KernelOp("rms_norm", _check_norm, _norm_cells, "LayerOps.rms_norm"),
    KernelOp("rope", _check_rope, _rope_cells, "LayerOps.rotate"),
    KernelOp("silu_mul", _check_silu, _silu_cells, "LayerOps.silu_mul"),
)
