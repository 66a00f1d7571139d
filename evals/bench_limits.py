"""DeviceLimits: what a device does at best, measured at the start of the run whose figures are held against it."""

from __future__ import annotations

import statistics
from typing import Final

import msgspec
import torch

from specdec.evals.bench_device import BenchDevice, Launch
from specdec.evals.bench_work import Work
from specdec.evals.spread import Spread
from specdec.evals.terminal import Terminal
from specdec.linear import linear_method

_COPY_BYTES: Final = {"cuda": 2**30, "cpu": 2**27}
_MATMUL_SIZES: Final = {"cuda": (8192, 8192), "cpu": (512, 2048)}
"""Rows, and input as well as output features."""
_REPEATS: Final = 11


class DeviceLimits(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    copy_gb_per_s: Spread
    """Bytes read and bytes written of one large copy, by whatever copies fastest: on a GPU a kernel, or the driver's
    copy, which may be slower as part of a graph."""
    matmul_tflop_per_s: Spread
    """Of one large product, by the engine's own method for the dtype."""
    dtype: str
    floor_us: Spread
    """Of a call that does next to nothing: shorter times cannot be told from it."""

    def share_of_copy(self, work: Work, ms: float) -> float:
        """1 is all that the memory gives."""
        return work.num_bytes / (ms * 1e6) / self.copy_gb_per_s.median

    def share_of_matmul(self, work: Work, ms: float) -> float:
        return work.num_flops / (ms * 1e9) / self.matmul_tflop_per_s.median

    def show(self, terminal: Terminal) -> None:
        terminal.table(
            f"what {self.device} does at best, measured now: median (range)",
            ("", "rate"),
            [
                ("copy, GB/s read and written", str(self.copy_gb_per_s)),
                (f"product in {self.dtype}, TFLOP/s", _fine(self.matmul_tflop_per_s)),
                ("shortest time, us", str(self.floor_us)),
            ],
        )


@torch.inference_mode()
def measure_limits(bench: BenchDevice, dtype: torch.dtype) -> DeviceLimits:
    """Takes some seconds."""
    kind, device = bench.device.type, bench.device
    copies = _times_of_copies(bench, _COPY_BYTES[kind])
    num_rows, size = _MATMUL_SIZES[kind]
    method = linear_method(exact=False, dtype=dtype, device=device)
    weight = method.prepare(torch.randn(size, size, device=device).to(dtype))
    x = torch.randn(num_rows, size, device=device).to(dtype)
    products = bench.times_ms(lambda: method.apply(x, weight, None), _REPEATS)
    one = torch.empty(1, device=device)
    floors = bench.times_ms(one.zero_, _REPEATS)
    return DeviceLimits(
        device=bench.name,
        copy_gb_per_s=Spread.of([2 * _COPY_BYTES[kind] / (ms * 1e6) for ms in copies]),
        matmul_tflop_per_s=Spread.of([2 * num_rows * size**2 / (ms * 1e9) for ms in products]),
        dtype=str(dtype).removeprefix("torch."),
        floor_us=Spread.of([1000 * ms for ms in floors]),
    )


def _times_of_copies(bench: BenchDevice, num_bytes: int) -> list[float]:
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=bench.device)
    target = torch.empty_like(source)
    ways = [bench.times_ms(lambda: target.copy_(source), _REPEATS)]
    if bench.is_gpu:
        ways += [
            bench.times_ms(lambda: target.copy_(source), _REPEATS, Launch.ONE_BY_ONE),
            bench.times_ms(lambda: torch.neg(source, out=target), _REPEATS),
        ]
    return min(ways, key=statistics.median)


def _fine(spread: Spread) -> str:
    """A processor does a fraction of one."""
    digits = 1 if spread.median >= 10 else 3
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"
