"""Products with 16-bit weights that lie in panels, in a kernel of our own for a CPU's vector units.

    y[t, o] = bias[o] + sum over i of x[t, i] * weight[o, i],    summed in fp32, i ascending, and rounded once

So y[t, o] depends on row t alone, whatever rows are beside it: bit for bit what any other batch gives.

T rows, I input features, O output features. A panel holds the weights of S = 16 consecutive output features (32 with
AVX-512), features beyond the last being zeros, and is read from the front to the back, for up to 6 rows of x at a time
(12 with AVX-512). More rows are parted evenly, so that a panel comes from memory once and from the cache afterwards.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.machine_code import MachineCode, Scratch
from specdec.panel_code import INPUTS_UNIT, max_group_rows, panel_code, panel_size
from specdec.processor import Lanes, max_lanes

_MAX_BLOCK_NUMBERS: Final = 2**16
"""Of x, that a thread holds in fp32 at a time, about: a quarter of a MiB, half of what its second cache holds."""
_CHUNKS_PER_THREAD: Final = 8
"""A thread whose core is taken away leaves its share to the others, in parts of so many."""

_scratch = Scratch()


@dataclass(frozen=True, slots=True)
class Panels:
    """A weight [O, I], packed."""

    packed: Tensor
    """bfloat16 [P, I / 2, S, 2], pairs of inputs side by side; float16 [P, I / 2, 2, S]; I is filled up with zeros to
    a multiple of 8. Memory of its own, which torch begins at a multiple of 64 bytes."""
    no_bias: Tensor
    """Zeros, float32 [S P]."""
    num_inputs: int
    num_outputs: int
    num_columns: int
    """S P."""
    lanes: int
    """Floats of a register: half of S."""

    @classmethod
    def of(cls, weight: Tensor, *, lanes: Lanes | None = None) -> Panels:
        """weight [O, I], bfloat16 or float16, on the CPU; `lanes` as many as the processor has, unless given.

        Raises ValueError for other weights, and where I is 0.
        """
        if (
            weight.ndim != 2
            or not weight.shape[1]
            or weight.device.type != "cpu"
            or weight.dtype not in (torch.bfloat16, torch.float16)
        ):
            raise ValueError(
                "weight must be [O, I] with I above 0, bfloat16 or float16, on the CPU; it is "
                f"{list(weight.shape)} {weight.dtype} on {weight.device}"
            )
        lanes = lanes or max_lanes()
        # Now, not in the first product.
        _machine_code(weight.dtype, lanes)
        num_outputs, num_inputs = weight.shape
        filled = F.pad(weight, (0, -num_inputs % INPUTS_UNIT, 0, -num_outputs % panel_size(lanes)))
        parts = filled.view(-1, panel_size(lanes), filled.shape[1] // 2, 2)
        order = (0, 2, 1, 3) if weight.dtype is torch.bfloat16 else (0, 2, 3, 1)
        no_bias = torch.zeros(len(filled), dtype=torch.float32, device="cpu")
        return cls(parts.permute(order).contiguous(), no_bias, num_inputs, num_outputs, len(filled), lanes)


def panel_product_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The specification: x [T, I], weight [O, I] not yet packed, bias [O] -> [T, O]."""
    start = torch.zeros(weight.shape[0], dtype=torch.float32) if bias is None else bias.float()
    sums = start.expand(x.shape[0], -1)
    for i in range(x.shape[1]):
        # In double precision the product is exact, so that the sum is rounded once, as a fused operation does it.
        sums = torch.addcmul(sums.double(), x[:, i, None].double(), weight[:, i].double()).float()
    return sums.to(x.dtype)


def panel_product(x: Tensor, weight: Panels, bias: Tensor | None) -> Tensor:
    """x [T, I] of the weight's dtype, bias [O] -> [T, O] of that dtype, by as many threads as torch's operators take.

    Raises ValueError for other shapes, dtypes or devices.
    """
    dtype = weight.packed.dtype
    if x.ndim != 2 or x.shape[1] != weight.num_inputs or x.dtype is not dtype or x.device.type != "cpu":
        raise ValueError(
            f"x must be [T, {weight.num_inputs}] {dtype} on the CPU; it is {list(x.shape)} {x.dtype} on {x.device}"
        )
    if bias is not None and (bias.shape != (weight.num_outputs,) or bias.dtype is not dtype or bias.device != x.device):
        raise ValueError(
            f"bias must be [{weight.num_outputs}] {dtype} on the CPU; "
            f"it is {list(bias.shape)} {bias.dtype} on {bias.device}"
        )
    num_rows, num_threads = x.shape[0], torch.get_num_threads()
    y = torch.empty(num_rows, weight.num_columns, dtype=dtype, device=x.device)
    if x.shape[1] % INPUTS_UNIT:
        x = F.pad(x, (0, -x.shape[1] % INPUTS_UNIT))
    elif x.stride(1) != 1:
        x = x.contiguous()
    start = weight.no_bias if bias is None else F.pad(bias.float(), (0, weight.num_columns - weight.num_outputs))
    if num_rows and weight.num_columns:
        shares, scratch_size = _shares(num_rows, num_threads, *weight.packed.shape[:2], weight.lanes)
        pointers = (weight.packed.data_ptr(), start.data_ptr(), y.data_ptr(), _scratch.of(scratch_size))
        job = (0, 0, x.data_ptr(), x.stride(0), *pointers, *shares)
        _machine_code(dtype, weight.lanes).run("work", job, num_threads=num_threads)
    return y if weight.num_columns == weight.num_outputs else y[:, : weight.num_outputs]


@functools.lru_cache(maxsize=4096)
def _shares(
    num_rows: int, num_threads: int, num_panels: int, num_pairs: int, lanes: int
) -> tuple[tuple[int, ...], int]:
    """How threads share a product, in the order of SHARES in panel_code.py, and how much scratch memory they take."""
    block_rows = _block_rows(num_rows, 2 * num_pairs, max_group_rows(lanes))
    chunk_panels = max(1, num_panels // (_CHUNKS_PER_THREAD * num_threads))
    num_chunks = -(-num_panels // chunk_panels)
    stride = block_rows * 2 * num_pairs
    counts = (num_panels, num_pairs, num_panels * panel_size(lanes), num_rows, block_rows, num_chunks)
    return (*counts, num_chunks * -(-num_rows // block_rows), chunk_panels, stride), num_threads * stride


def _block_rows(num_rows: int, num_features: int, group_rows: int) -> int:
    """Rows that a thread converts at a time: all of them, or an even share that is a multiple of a group."""
    num_blocks = -(-num_rows * num_features // _MAX_BLOCK_NUMBERS)
    if num_blocks == 1:
        return num_rows
    share = -(-num_rows // num_blocks)
    return min(num_rows, -(-share // group_rows) * group_rows)


@functools.cache
def _machine_code(dtype: torch.dtype, lanes: int) -> MachineCode:
    return MachineCode(panel_code(dtype, lanes), "work")
