"""`specdec bench engine`: the engine's own steps on a model of random weights, held against what the device does.

It fails where a pass does not compute what it should, or where there is room for nothing; nothing is timed then. How
fast it is fails nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from specdec.config import EngineConfig
from specdec.description import EngineDescription
from specdec.engine import Engine
from specdec.evals.bench_attempt import attempted, until_stopped
from specdec.evals.bench_device import BenchDevice, refuse_interpreter
from specdec.evals.bench_engine_check import NUM_SEQUENCES, NUM_TOKENS, fault_of_passes
from specdec.evals.bench_engine_load import EngineLoad
from specdec.evals.bench_engine_model import RandomWeights, write_shape
from specdec.evals.bench_engine_points import (
    DecodePoint,
    EngineModels,
    PrefillPoint,
    decode_point,
    prefill_point,
    with_gains,
)
from specdec.evals.bench_engine_sweep import BLOCK_SIZE, EngineRun, LoadShape, sweep
from specdec.evals.bench_engine_tables import show
from specdec.evals.bench_limits import DeviceLimits, measure_limits
from specdec.evals.bench_shapes import SHAPES
from specdec.evals.environment import describe_environment, load_warning
from specdec.evals.progress import Steps
from specdec.evals.result import EvalResult
from specdec.evals.terminal import Terminal
from specdec.speculative import SYNTHETIC, SpeculativeConfig


@dataclass(slots=True)
class _Measured:
    """As far as it came."""

    failures: list[str] = field(default_factory=list)
    engine: EngineDescription | None = None
    limits: DeviceLimits | None = None
    decode: list[DecodePoint] = field(default_factory=list)
    prefill: list[PrefillPoint] = field(default_factory=list)


def run_engine(run: EngineRun, terminal: Terminal) -> EvalResult:
    """Build the engine, time it at every point that there is room for, and print the tables.

    Raises ConfigError and MissingDeviceError.
    """
    refuse_interpreter()
    environment = describe_environment()
    left_out: dict[str, str] = {}
    loads = list(sweep(run, left_out))
    measured = _Measured()
    if loads:
        with until_stopped(measured.failures), terminal.progress("engine", 2 + len(loads)) as steps:
            _measure(run, loads, measured, steps)
    else:
        measured.failures.append("nothing is timed: there is room for no point")
    if measured.limits is not None:
        measured.limits.show(terminal)
    decoded = with_gains(measured.decode)
    show(decoded, measured.prefill, terminal)
    warning = load_warning(environment)
    return EvalResult(
        eval_name="engine",
        failures=tuple(measured.failures),
        warnings=(
            *(() if warning is None else (warning,)),
            *(f"{name} is left out: {reason}" for name, reason in left_out.items()),
        ),
        settings=msgspec.structs.asdict(run),
        figures={
            "engine": measured.engine,
            "limits": measured.limits,
            "decode": decoded,
            "prefill": measured.prefill,
            "left_out": left_out,
        },
        environment=msgspec.structs.replace(environment, num_threads=torch.get_num_threads()),
    )


def _measure(run: EngineRun, loads: Sequence[LoadShape], measured: _Measured, steps: Steps) -> None:
    steps.note("weights")
    with _engine(run, loads) as engine:
        steps.advance()
        description = engine.describe()
        # The folder that its shape is written to is gone when this is read.
        measured.engine = msgspec.structs.replace(description, model=run.shape)
        dtype = getattr(torch, description.dtype)
        models = EngineModels(
            target=SHAPES[run.shape],
            draft=None if run.draft_shape is None else SHAPES[run.draft_shape],
            itemsize=dtype.itemsize,
            kv_itemsize=getattr(torch, description.kv_cache_dtype).itemsize,
            acceptance_rates=run.acceptance_rates,
        )
        steps.note("check")
        fault = fault_of_passes(engine)
        if fault is not None:
            measured.failures.append(f"nothing is timed: {fault}")
            return
        steps.note("what the device does at best")
        measured.limits = limits = measure_limits(BenchDevice(torch.device(description.device)), dtype)
        steps.advance()
        own = EngineLoad(engine, seed=run.seed, temperature=run.temperature, faults=measured.failures)
        for load in loads:
            note = _noting(steps, load.label)
            with attempted(load.label, measured.failures):
                if load.phase == "decode":
                    measured.decode.append(_decode(own, load, run, models, limits, note))
                else:
                    note("warm-up")
                    own.prefill(load.context)
                    note(f"{run.repeats} times")
                    runs = [own.prefill(load.context) for _ in range(run.repeats)]
                    measured.prefill.append(prefill_point(runs, models, limits, load.context))
            steps.advance()


@contextmanager
def _engine(run: EngineRun, loads: Sequence[LoadShape]) -> Iterator[Engine]:
    """With room for the largest of the loads."""
    max_batch = max(load.batch for load in loads)
    max_drafts = max(run.nums_drafts)
    with tempfile.TemporaryDirectory(prefix="specdec-bench-") as name:
        folder = write_shape(SHAPES[run.shape], Path(name) / run.shape)
        draft = None if run.draft_shape is None else write_shape(SHAPES[run.draft_shape], Path(name) / "draft")
        config = EngineConfig(
            model=str(folder),
            dtype=run.dtype,
            device=run.device,
            enforce_eager=run.enforce_eager,
            async_scheduling=None if run.async_scheduling else False,
            kv_cache_dtype=run.kv_cache_dtype,
            max_model_len=max(NUM_TOKENS, *(load.model_len for load in loads)),
            max_num_seqs=max_batch,
            # Every sequence's token and drafts, with what its draft model needs for them.
            max_num_batched_tokens=max(run.max_num_batched_tokens, max_batch * (2 * max_drafts + 4)),
            block_size=BLOCK_SIZE,
            num_kv_blocks=max(NUM_SEQUENCES * -(-NUM_TOKENS // BLOCK_SIZE), *(load.num_blocks for load in loads)),
            enable_prefix_caching=False,
            num_compile_workers=0,
            seed=run.seed,
            speculative=SpeculativeConfig(
                method=SYNTHETIC if draft is None else f"{SYNTHETIC}+draft_model",
                model=None if draft is None else str(draft),
                num_speculative_tokens=max_drafts,
                synthetic_acceptance_rates=run.acceptance_rates,
            )
            if max_drafts
            else None,
        )
        engine = Engine(config, load=RandomWeights(run.seed))
        try:
            yield engine
        finally:
            engine.close()


def _decode(
    own: EngineLoad,
    load: LoadShape,
    run: EngineRun,
    models: EngineModels,
    limits: DeviceLimits,
    note: Callable[[str], None],
) -> DecodePoint:
    timed = own.decode(
        batch=load.batch,
        context=load.context,
        num_drafts=load.num_drafts,
        max_tokens=load.max_tokens,
        num_steps=run.num_steps,
        note=note,
    )
    return decode_point(timed, models, limits, batch=load.batch, context=load.context, num_drafts=load.num_drafts)


def _noting(steps: Steps, label: str) -> Callable[[str], None]:
    return lambda text: steps.note(f"{label}: {text}")
