"""The product of a few rows, by few_row_linear and by the library, with each of a model's weights.

T rows, I inputs, O outputs, as the weight has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.evals.bench_kernel_cell import (
    TOLERANCE,
    KernelCell,
    KernelOp,
    KernelSetting,
    difference,
    first_difference,
)
from specdec.evals.bench_work import Work
from specdec.kernels.few_row_linear import MAX_ROWS, few_row_linear, few_row_linear_reference
from specdec.kernels.silu_mul import silu_mul

_CHECKED = ((1, 33, 576), (1, 40, 4096), (1, 40, 9216), (5, 4160, 130), (16, 20, 1000), (3, 16448, 64))
"""Rows, outputs and inputs, of each kind of tiling."""


def _weights(setting: KernelSetting) -> Iterator[tuple[str, int, int, bool]]:
    """Name, outputs, inputs, and whether it is gated."""
    shape = setting.shape
    heads_size = shape.num_attention_heads * shape.head_dim
    yield "qkv", heads_size + 2 * shape.num_key_value_heads * shape.head_dim, shape.hidden_size, False
    yield "output", shape.hidden_size, heads_size, False
    yield "gate and up", 2 * shape.intermediate_size, shape.hidden_size, True
    yield "down", shape.hidden_size, shape.intermediate_size, False
    yield "head", shape.vocab_size, shape.hidden_size, False


def _operands(
    setting: KernelSetting, num_rows: int, num_outputs: int, num_inputs: int, is_gated: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, I], weight [O, I] and output [T, O], or half as wide where it is gated."""
    x = setting.random(num_rows, num_inputs)
    weight = setting.random(num_outputs, num_inputs, seed=1) / math.sqrt(num_inputs)
    width = num_outputs // 2 if is_gated else num_outputs
    return x, weight, torch.full((num_rows, width), math.nan, dtype=setting.dtype, device=setting.device)


def _check(setting: KernelSetting) -> str | None:
    found = []
    for num_rows, num_outputs, num_inputs in _CHECKED:
        for is_gated in (False, True):
            num_weights = 2 * num_outputs if is_gated else num_outputs
            x, weight, output = _operands(setting, num_rows, num_weights, num_inputs, is_gated)
            expected = torch.full_like(output, math.nan)
            few_row_linear(x, weight, None, output, is_gated=is_gated)
            few_row_linear_reference(x, weight, None, expected, is_gated=is_gated)
            what = f"{num_rows} rows by [{num_weights}, {num_inputs}]" + (", gated" if is_gated else "")
            found.append(difference(what, output, expected, TOLERANCE[setting.dtype]))
    return first_difference(found)


def _cells(setting: KernelSetting) -> list[KernelCell]:
    itemsize = setting.dtype.itemsize
    cells = []
    for name, num_outputs, num_inputs, is_gated in _weights(setting):
        for num_rows in sorted({1, min(setting.num_drafts + 1, MAX_ROWS), MAX_ROWS}):
            width = num_outputs // 2 if is_gated else num_outputs
            num_numbers = num_outputs * num_inputs + num_rows * (num_inputs + width)
            work = Work(num_numbers * itemsize, 2 * num_rows * num_outputs * num_inputs)
            for prepare, way in ((_own, ""), (_library_s, ", by the library")):
                call = partial(prepare, setting, num_rows, num_outputs, num_inputs, is_gated)
                # Random numbers are drawn in fp32, and kept beside what they become.
                cells.append(KernelCell(f"{name}, rows {num_rows}{way}", work, 4 * work.num_bytes, call))
    return cells


def _own(
    setting: KernelSetting, num_rows: int, num_outputs: int, num_inputs: int, is_gated: bool
) -> Callable[[], object]:
    x, weight, output = _operands(setting, num_rows, num_outputs, num_inputs, is_gated)
    return lambda: few_row_linear(x, weight, None, output, is_gated=is_gated)


def _library_s(
    setting: KernelSetting, num_rows: int, num_outputs: int, num_inputs: int, is_gated: bool
) -> Callable[[], object]:
    """With our activation behind it, which is then a pass of its own over what it gave."""
    x, weight, output = _operands(setting, num_rows, num_outputs, num_inputs, is_gated)
    if is_gated:
        return lambda: silu_mul(F.linear(x, weight), output)
    return lambda: F.linear(x, weight)


PRODUCT_OPS = (KernelOp("few_row_linear", _check, _cells, None),)
