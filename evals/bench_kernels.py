"""`specdec bench kernels`: each op's time, what it moves, and its share of what the device does at best.

An op that differs from its reference is not timed, and fails the run. How fast the others are fails nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import torch

from specdec.evals.bench_attempt import attempted, until_stopped
from specdec.evals.bench_device import BenchDevice
from specdec.evals.bench_kernel_cache import CACHE_OPS
from specdec.evals.bench_kernel_captured import CAPTURED_OPS
from specdec.evals.bench_kernel_cell import KernelCell, KernelOp, KernelSetting
from specdec.evals.bench_kernel_products import PRODUCT_OPS
from specdec.evals.bench_kernel_rows import ROW_OPS
from specdec.evals.bench_kernel_sampling import SAMPLING_OPS
from specdec.evals.bench_kernel_verification import VERIFICATION_OPS
from specdec.evals.bench_limits import DeviceLimits, measure_limits
from specdec.evals.bench_shapes import SHAPES
from specdec.evals.bench_work import Work
from specdec.evals.environment import describe_environment, load_warning
from specdec.evals.result import EvalResult
from specdec.evals.spread import Spread
from specdec.evals.terminal import Terminal

_EVERY_OP: Final = (*ROW_OPS, *PRODUCT_OPS, *SAMPLING_OPS, *CAPTURED_OPS, *VERIFICATION_OPS, *CACHE_OPS)
OPS: Final = {op.name: op for op in _EVERY_OP}
"""Attention last: behind an address that is wrong a GPU does nothing more for the process."""


class KernelRun(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured."""

    ops: tuple[str, ...]
    shape: str
    dtype: str
    device: str
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    num_prompt_tokens: int
    num_drafts: int
    vocab_size: int
    num_stages: tuple[int, ...]
    num_warps: tuple[int, ...]
    repeats: int


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    cell: str
    ms: Spread
    work: Work
    share_of_copy: float
    """Of the measured bandwidth."""
    share_of_matmul: float | None
    """Of the measured rate; None for an op without a matrix product."""


class OpResult(msgspec.Struct, frozen=True, kw_only=True):
    op: str
    measured: str
    """`kernel`, or what the engine runs in its place on a CPU."""
    cells: list[CellResult]


def run_kernels(run: KernelRun, terminal: Terminal) -> EvalResult:
    """Check and time every op, and print the tables. Raises MissingDeviceError."""
    environment = describe_environment()
    bench = BenchDevice.named(run.device)
    setting = KernelSetting(
        bench=bench,
        dtype=getattr(torch, run.dtype),
        shape=SHAPES[run.shape],
        batches=run.batches,
        contexts=run.contexts,
        num_prompt_tokens=run.num_prompt_tokens,
        num_drafts=run.num_drafts,
        vocab_size=run.vocab_size,
        num_stages=run.num_stages,
        num_warps=run.num_warps,
    )
    left_out = {name: _WITHOUT_CPU_FORM for name in run.ops if not bench.is_gpu and OPS[name].on_cpu is None}
    ops = [OPS[name] for name in run.ops if name not in left_out]
    cells = {op.name: op.cells(setting) for op in ops}
    results: list[OpResult] = []
    failures: list[str] = []
    limits: DeviceLimits | None = None
    with (
        until_stopped(failures),
        terminal.progress("kernels", 1 + sum(1 + len(each) for each in cells.values())) as steps,
        torch.inference_mode(),
    ):
        if ops:
            steps.note("what the device does at best")
            limits = measure_limits(bench, setting.dtype)
        steps.advance()
        for op in ops:
            steps.note(f"{op.name}: check")
            fault = _fault_of(op, setting)
            steps.advance()
            if fault is not None:
                failures.append(f"{op.name} is not timed: it differs from its reference: {fault}")
                continue
            assert limits is not None, "there is an op"
            timed: list[CellResult] = []
            # As far as it comes.
            results.append(OpResult(op=op.name, measured=_measured(op, bench), cells=timed))
            for cell in cells[op.name]:
                steps.note(f"{op.name}: {cell.label}")
                with attempted(f"{op.name}, {cell.label},", failures):
                    _time(op, cell, setting, limits, run.repeats, left_out, timed)
                steps.advance()
    if limits is not None:
        limits.show(terminal)
    _show(results, terminal)
    warning = load_warning(environment)
    return EvalResult(
        eval_name="kernels",
        failures=tuple(failures),
        warnings=(
            *(() if warning is None else (warning,)),
            *(f"{name} is left out: {reason}" for name, reason in left_out.items()),
        ),
        settings=msgspec.structs.asdict(run),
        figures={"limits": limits, "ops": results, "left_out": left_out},
        environment=msgspec.structs.replace(environment, num_threads=torch.get_num_threads()),
    )


_WITHOUT_CPU_FORM: Final = "a CPU engine has no single function for it; `specdec bench engine` times it in the step"


def _fault_of(op: KernelOp, setting: KernelSetting) -> str | None:
    """What differs. An op that raises is as wrong as one that computes something else."""
    try:
        return op.check(setting)
    except Exception as error:  # noqa: BLE001, whatever it is, the other ops are measured
        return f"{type(error).__name__}: {error}"


def _time(
    op: KernelOp,
    cell: KernelCell,
    setting: KernelSetting,
    limits: DeviceLimits,
    repeats: int,
    left_out: dict[str, str],
    timed: list[CellResult],
) -> None:
    """Add the cell to those that are timed, or to those that cannot be, or that there is no room for."""
    bench = setting.bench
    if cell.obstacle is not None:
        left_out[f"{op.name}, {cell.label}"] = cell.obstacle
        return
    if not bench.has_room_for(cell.num_allocated_bytes):
        gib = cell.num_allocated_bytes / 2**30
        left_out[f"{op.name}, {cell.label}"] = f"its tensors take up to {gib:.1f} GiB, more than is free"
        return
    ms = Spread.of(bench.times_ms(cell.prepare(), repeats, cell.launch))
    timed.append(
        CellResult(
            cell=cell.label,
            ms=ms,
            work=cell.work,
            share_of_copy=limits.share_of_copy(cell.work, ms.median),
            share_of_matmul=limits.share_of_matmul(cell.work, ms.median) if cell.work.num_flops else None,
        )
    )
    bench.release()


def _measured(op: KernelOp, bench: BenchDevice) -> str:
    return "kernel" if bench.is_gpu or op.on_cpu is None else op.on_cpu


def _show(results: Sequence[OpResult], terminal: Terminal) -> None:
    for result in results:
        terminal.table(
            f"{result.op}, by {result.measured}" if result.measured != "kernel" else result.op,
            ("", "us: median (range)", "MB", "GB/s", "of copy", "GFLOP", "TFLOP/s", "of product"),
            [
                (
                    cell.cell,
                    f"{1000 * cell.ms.median:.1f} ({1000 * cell.ms.low:.1f} to {1000 * cell.ms.high:.1f})",
                    f"{cell.work.num_bytes / 1e6:.3f}",
                    f"{cell.work.num_bytes / (cell.ms.median * 1e6):.1f}",
                    f"{100 * cell.share_of_copy:.1f} %",
                    *_products(cell),
                )
                for cell in result.cells
            ],
        )


def _products(cell: CellResult) -> tuple[str, str, str]:
    if cell.share_of_matmul is None:
        return "-", "-", "-"
    num_flops = cell.work.num_flops
    return (
        f"{num_flops / 1e9:.3f}",
        f"{num_flops / (cell.ms.median * 1e9):.3f}",
        f"{100 * cell.share_of_matmul:.1f} %",
    )
