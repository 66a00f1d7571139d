"""LayerOps: what a layer works out between its matrix products and its attention.

T rows, E hidden size, F intermediate size, N heads to rotate, D head size, P positions of the tables.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.kernels.rms_norm import add_rms_norm, rms_norm
from specdec.kernels.rope import rope
from specdec.kernels.silu_mul import silu_mul

Rotation = TypeVar("Rotation")


class LayerOps(Protocol[Rotation]):
    """A Rotation is what all layers of one pass share of their tokens' positions."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, E], weight [E] -> [T, E]."""
        ...

    def add_rms_norm(self, x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x, added [T, E] -> their sum and its norm, both [T, E]; x may be overwritten with the sum."""
        ...

    def rotation(self, positions: Tensor, cos: Tensor, signed_sin: Tensor) -> Rotation:
        """positions int64 [T], tables [P, 1, D]."""
        ...

    def rotate(self, heads: Tensor, rotation: Rotation) -> Tensor:
        """heads [T, N, D] -> the same, rotated; may be overwritten."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """gate_up [T, 2 F] -> silu(gate) * up, [T, F]."""
        ...


class TorchOps:
    """The library's: the path of CPUs that vector_ops.py has no code for."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(self, x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x + added
        return x, F.rms_norm(x, weight.shape, weight, eps)

    def rotation(self, positions: Tensor, cos: Tensor, signed_sin: Tensor) -> tuple[Tensor, Tensor]:
        return cos[positions], signed_sin[positions]

    def rotate(self, heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        cos, signed_sin = rotation
        return heads * cos + heads.roll(heads.shape[-1] // 2, dims=-1) * signed_sin

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up


class KernelOps:
    """The kernels, in place where they can be: the GPU path."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        output = torch.empty_like(x)
        rms_norm(x, weight, output, eps=eps)
        return output

    def add_rms_norm(self, x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        add_rms_norm(added, x, weight, added, eps=eps)
        return x, added

    def rotation(self, positions: Tensor, cos: Tensor, signed_sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return positions, cos, signed_sin

    def rotate(self, heads: Tensor, rotation: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        rope(heads, *rotation)
        return heads

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        output = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=gate_up.dtype, device=gate_up.device)
        silu_mul(gate_up, output)
        return output
