"""Law: does speculation leave the law of what is sampled as plain decoding has it?

Texts of a few tokens over small vocabularies, from a target and a draft that are tables. The plain law is written out;
samples are drafted and verified by the engine's own sampler and verifier, one seed each. The total variation between
the two is held against its noise floor: what as many samples of the plain law itself come to on average.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from specdec.evals.environment import describe_environment
from specdec.evals.law_cell import Cell, all_cells
from specdec.evals.law_samples import draw_samples
from specdec.evals.law_world import World
from specdec.evals.progress import Steps
from specdec.evals.result import EvalResult
from specdec.evals.terminal import Terminal

MAX_RATIO = 3.0
"""Of total variation to noise floor, where the law is as it should be."""
MIN_FAULT_RATIO = 10.0
"""The same, where a fault was planted, of FULL_SAMPLES; of fewer, floors are higher and the ratio lower."""
FULL_SAMPLES = 200_000


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    cell: Cell
    num_texts: int
    """That the law allows."""
    total_variation: float
    noise_floor: float
    ratio: float
    num_draft_tokens: int
    num_accepted_tokens: int
    seconds: float


def run_law(*, num_samples: int, seed: int, terminal: Terminal, cells: Sequence[Cell] | None = None) -> EvalResult:
    """Sample every cell and print the table."""
    environment = describe_environment()
    cells = all_cells() if cells is None else cells
    results: list[CellResult] = []
    # Sequences come and go by the hundred thousand, and none is part of a cycle.
    gc.freeze()
    try:
        with terminal.progress("law", len(cells)) as steps:
            for cell in cells:
                results.append(_run(cell, num_samples, seed, steps))
                steps.advance()
    finally:
        gc.unfreeze()
    columns = ("cell", "verification", "texts", "accepted", "total variation", "noise floor", "ratio", "s")
    terminal.table(f"law, {num_samples:,} samples a cell", columns, map(_row, results))
    min_fault_ratio = max(MAX_RATIO, MIN_FAULT_RATIO * math.sqrt(min(1.0, num_samples / FULL_SAMPLES)))
    sound = [result.ratio for result in results if result.cell.fault is None]
    faulty = [result.ratio for result in results if result.cell.fault is not None]
    return EvalResult(
        eval_name="law",
        failures=tuple(_failures(results, min_fault_ratio)),
        warnings=(),
        settings={
            "samples": num_samples,
            "seed": seed,
            "max_ratio": MAX_RATIO,
            "min_fault_ratio": min_fault_ratio,
        },
        figures={
            "largest_ratio": max(sound, default=None),
            "smallest_fault_ratio": min(faulty, default=None),
            "cells": results,
        },
        environment=environment,
    )


def noise_floor(law: NDArray[np.float64], num_samples: int) -> float:
    """Mean total variation between a law and as many samples of it: half the sum of the mean deviations of binomials.

    n samples hit an outcome of probability p on average 2 (1 - p) b(m) m / n away from p, with m the first integer
    above n p and b the binomial probability of m (De Moivre; Diaconis and Zabell 1991, Statistical Science 6).
    """
    floor = 0.0
    for probability in law[(law > 0.0) & (law < 1.0)].tolist():
        m = math.floor(num_samples * probability) + 1
        log_binomial = (
            math.lgamma(num_samples + 1)
            - math.lgamma(m + 1)
            - math.lgamma(num_samples - m + 1)
            + m * math.log(probability)
            + (num_samples - m) * math.log1p(-probability)
        )
        floor += (1.0 - probability) * m / num_samples * math.exp(log_binomial)
    return floor


def _run(cell: Cell, num_samples: int, seed: int, steps: Steps) -> CellResult:
    steps.note(_label(cell))
    start = time.perf_counter()
    world = World(cell)
    law = world.law()
    samples = draw_samples(
        cell,
        world,
        num_samples=num_samples,
        seed=seed,
        on_batch=lambda num_drawn: steps.note(f"{_label(cell)}: {num_drawn:,} samples"),
    )
    total_variation = 0.5 * float(np.abs(samples.counts / num_samples - law).sum())
    floor = noise_floor(law, num_samples)
    return CellResult(
        cell=cell,
        num_texts=int((law > 0.0).sum()),
        total_variation=total_variation,
        noise_floor=floor,
        ratio=total_variation / floor,
        num_draft_tokens=samples.num_drafted,
        num_accepted_tokens=samples.num_accepted,
        seconds=time.perf_counter() - start,
    )


def _failures(results: Sequence[CellResult], min_fault_ratio: float) -> Iterator[str]:
    for result in results:
        figures = f"total variation {result.total_variation:.4f} is {result.ratio:.2f} times the noise floor"
        if result.cell.fault is None and result.ratio > MAX_RATIO:
            yield f"{_label(result.cell)}: {figures}; it may be {MAX_RATIO:g} times"
        if result.cell.fault is not None and result.ratio < min_fault_ratio:
            yield f"{_label(result.cell)}: {figures}; a fault must show as {min_fault_ratio:.2f} times"
        if result.cell.drafted_by != "nobody" and not 0 < result.num_accepted_tokens < result.num_draft_tokens:
            yield (
                f"{_label(result.cell)}: {result.num_accepted_tokens} of {result.num_draft_tokens} draft tokens were "
                "accepted; some must be, and some not"
            )


def _row(result: CellResult) -> tuple[str, ...]:
    cell = result.cell
    return (
        cell.name if cell.fault is None else f"fault: {cell.fault}",
        "none" if cell.drafted_by == "nobody" else cell.verification,
        str(result.num_texts),
        f"{result.num_accepted_tokens / result.num_draft_tokens:.2f}" if result.num_draft_tokens else "",
        f"{result.total_variation:.5f}",
        f"{result.noise_floor:.5f}",
        f"{result.ratio:.2f}",
        f"{result.seconds:.0f}",
    )


def _label(cell: Cell) -> str:
    return f"{cell.name}, {cell.verification}" + ("" if cell.fault is None else f", {cell.fault}")
