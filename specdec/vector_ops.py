"""VectorOps: what a layer works out between products and attention, in kernels of our own for a CPU's vector units.

    norm(x)[t, i] = x[t, i] / sqrt(mean over j of x[t, j]^2 + eps) * weight[i]
    rotated[t, n, i] = head[i] * cos[p, i] + head[(i + D / 2) mod D] * signed_sin[p, i],    p the position of row t
    silu_mul[t, i] = gate[t, i] / (1 + exp(-gate[t, i])) * up[t, i]

in fp32 and rounded once, but for the sum that is normed, which is rounded before. torch takes several calls for each,
most of which cost more than what they work out for a few rows. A row's output is the same in any batch, bit for bit.

T rows, E hidden size, F intermediate size, N heads to rotate, D head size, P positions of the tables.
"""

from __future__ import annotations

import functools
import struct
from typing import Final, NamedTuple

import torch
from torch import Tensor

from specdec.layer_code import norm_code, rotate_code, silu_code
from specdec.machine_code import MachineCode, is_available
from specdec.processor import max_lanes

_SHARED_NUMBERS: Final = 2**16
"""From so many on they are worth the microseconds that it takes to call the other threads."""


class Rotation(NamedTuple):
    positions: Tensor
    """int64 [T]"""
    cos: Tensor
    signed_sin: Tensor
    """[P, 1, D]"""


class VectorOps:
    """LayerOps for x86 processors with AVX2, and any sizes and dtypes that a CPU's model has."""

    @staticmethod
    def runs_here() -> bool:
        return is_available()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """As LayerOps says."""
        x = _with_numbers_together(x)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        job = (0, x.data_ptr(), x.stride(0) * x.itemsize, 0, 0, 0, weight.data_ptr(), y.data_ptr(), _bits(eps))
        _norm(x.shape[1], x.dtype, has_added=False).run("norm", (*job, x.shape[0]), num_threads=_num_threads(x))
        return y

    def add_rms_norm(self, x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """As LayerOps says."""
        assert added.shape == x.shape
        assert added.dtype is x.dtype
        x, added = _with_numbers_together(x), _with_numbers_together(added)
        size = x.itemsize
        sums, y = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
        job = (
            *(0, x.data_ptr(), x.stride(0) * size, added.data_ptr(), added.stride(0) * size),
            *(sums.data_ptr(), weight.data_ptr(), y.data_ptr(), _bits(eps), x.shape[0]),
        )
        _norm(x.shape[1], x.dtype, has_added=True).run("norm", job, num_threads=_num_threads(x))
        return sums, y

    def rotation(self, positions: Tensor, cos: Tensor, signed_sin: Tensor) -> Rotation:
        """As LayerOps says. Raises IndexError for a position that the tables have not."""
        assert positions.dtype is torch.int64
        assert cos.shape == signed_sin.shape
        assert cos.dtype is signed_sin.dtype
        if positions.numel():
            # Nobody would notice what lies behind the tables.
            first, last = (int(each) for each in positions.aminmax())
            if first < 0 or last >= cos.shape[0]:
                raise IndexError(f"positions go from {first} to {last}, and the tables have {cos.shape[0]}")
        return Rotation(positions.contiguous(), cos.contiguous(), signed_sin.contiguous())

    def rotate(self, heads: Tensor, rotation: Rotation) -> Tensor:
        """As LayerOps says; they are overwritten."""
        num_rows, num_heads, head_size = heads.shape
        assert heads.stride(2) == 1, "a head's numbers lie together"
        assert (len(rotation.positions), rotation.cos.shape[2], rotation.cos.dtype) == (
            num_rows,
            head_size,
            heads.dtype,
        )
        size = heads.itemsize
        job = (
            *(0, heads.data_ptr(), heads.stride(0) * size, heads.stride(1) * size),
            *(part.data_ptr() for part in rotation),
            *(num_heads, num_rows),
        )
        _rotate(head_size, heads.dtype).run("rotate", job, num_threads=_num_threads(heads))
        return heads

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """As LayerOps says."""
        gate_up = _with_numbers_together(gate_up)
        num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        y = torch.empty(num_rows, size, dtype=gate_up.dtype, device=gate_up.device)
        job = (0, gate_up.data_ptr(), gate_up.stride(0) * gate_up.itemsize, y.data_ptr(), num_rows)
        _silu(size, gate_up.dtype).run("silu_mul", job, num_threads=_num_threads(gate_up))
        return y


def _with_numbers_together(rows: Tensor) -> Tensor:
    """rows [T, I], the same with a row's numbers one behind the other."""
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _num_threads(rows: Tensor) -> int:
    """One or all: to call some of them, GNU's runtime ends the others, and makes them anew for the next product."""
    return torch.get_num_threads() if len(rows) > 1 and rows.numel() >= _SHARED_NUMBERS else 1


def _bits(number: float) -> int:
    """Of the nearest float."""
    return int.from_bytes(struct.pack("<f", number), "little")


@functools.cache
def _norm(size: int, dtype: torch.dtype, *, has_added: bool) -> MachineCode:
    return MachineCode(norm_code(size, dtype, max_lanes(), has_added=has_added), "norm")


@functools.cache
def _rotate(size: int, dtype: torch.dtype) -> MachineCode:
    return MachineCode(rotate_code(size, dtype, max_lanes()), "rotate")


@functools.cache
def _silu(size: int, dtype: torch.dtype) -> MachineCode:
    return MachineCode(silu_code(size, dtype, max_lanes()), "silu_mul")
