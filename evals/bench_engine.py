"""`specdec bench engine`: the engine's own steps on a model of random weights, held against what the device does.

It fails where a pass does not compute what it should; nothing is timed then. How fast it is fails nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec
import torch

from specdec.config import EngineConfig
from specdec.engine import Engine
from specdec.evals.bench_device import BenchDevice
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
from specdec.evals.bench_engine_tables import show
from specdec.evals.bench_limits import DeviceLimits, measure_limits
from specdec.evals.bench_shapes import SHAPES
from specdec.evals.bench_work import kv_bytes_per_token, weight_bytes
from specdec.evals.environment import describe_environment, load_warning
from specdec.evals.progress import Steps
from specdec.evals.result import EvalResult
from specdec.evals.terminal import Terminal
from specdec.speculative import SYNTHETIC, SpeculativeConfig

Phase = Literal["decode", "prefill"]
PHASES: Final[tuple[Phase, ...]] = ("decode", "prefill")
_BLOCK_SIZE: Final = 16


class EngineRun(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured."""

    shape: str
    draft_shape: str | None
    dtype: Literal["bfloat16", "float16", "float32"]
    device: Literal["auto", "cpu", "cuda"]
    phases: tuple[Phase, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    nums_drafts: tuple[int, ...]
    acceptance_rates: tuple[float, ...]
    temperature: float
    num_steps: int
    """Of decoding, timed at each point."""
    repeats: int
    """Of each prompt."""
    max_num_batched_tokens: int
    seed: int


class _Load(msgspec.Struct, frozen=True, kw_only=True):
    """One point, and what it takes."""

    phase: Phase
    batch: int
    context: int
    num_drafts: int
    max_tokens: int

    @property
    def label(self) -> str:
        if self.phase == "prefill":
            return f"prompt of {self.context}"
        return f"decode, batch {self.batch}, context {self.context}, K={self.num_drafts}"

    @property
    def model_len(self) -> int:
        return self.context + self.max_tokens

    @property
    def num_blocks(self) -> int:
        return self.batch * -(-self.model_len // _BLOCK_SIZE) + 1


def run_engine(run: EngineRun, terminal: Terminal) -> EvalResult:
    """Build the engine, time it at every point that it has room for, and print the tables. Raises ConfigError."""
    environment = describe_environment()
    left_out: dict[str, str] = {}
    loads = list(_with_room(run, _loads(run), left_out))
    failures: list[str] = []
    decoded: list[DecodePoint] = []
    prefilled: list[PrefillPoint] = []
    limits: DeviceLimits | None = None
    with terminal.progress("engine", 2 + len(loads)) as steps, _engine(run, loads, steps) as engine:
        description = engine.describe()
        models = EngineModels(
            target=SHAPES[run.shape],
            draft=None if run.draft_shape is None else SHAPES[run.draft_shape],
            itemsize=getattr(torch, description.dtype).itemsize,
            acceptance_rates=run.acceptance_rates,
        )
        steps.advance()
        steps.note("check")
        fault = fault_of_passes(engine)
        if fault is not None:
            failures.append(f"nothing is timed: {fault}")
        else:
            steps.note("what the device does at best")
            limits = measure_limits(BenchDevice(torch.device(description.device)), getattr(torch, description.dtype))
            steps.advance()
            own = EngineLoad(engine, seed=run.seed, temperature=run.temperature)
            for load in loads:
                note = _noting(steps, load.label)
                if load.phase == "decode":
                    decoded.append(_decode(own, load, run, models, limits, note))
                else:
                    note("warm-up")
                    own.prefill(load.context)
                    note(f"{run.repeats} times")
                    runs = [own.prefill(load.context) for _ in range(run.repeats)]
                    prefilled.append(prefill_point(runs, models, limits, load.context))
                steps.advance()
        num_threads = description.num_threads
    decoded = with_gains(decoded)
    if limits is not None:
        limits.show(terminal)
    show(decoded, prefilled, terminal)
    warning = load_warning(environment)
    return EvalResult(
        eval_name="engine",
        failures=tuple(failures),
        warnings=(
            *(() if warning is None else (warning,)),
            *(f"{name} is left out: {reason}" for name, reason in left_out.items()),
        ),
        settings=msgspec.structs.asdict(run),
        figures={
            "engine": description,
            "limits": limits,
            "decode": decoded,
            "prefill": prefilled,
            "left_out": left_out,
        },
        environment=msgspec.structs.replace(environment, num_threads=num_threads),
    )


def _loads(run: EngineRun) -> Iterator[_Load]:
    if "decode" in run.phases:
        for context in run.contexts:
            for batch in run.batches:
                for num_drafts in run.nums_drafts:
                    max_tokens = EngineLoad.max_tokens(
                        batch=batch,
                        context=context,
                        num_drafts=num_drafts,
                        num_steps=run.num_steps,
                        budget=run.max_num_batched_tokens,
                    )
                    yield _Load(
                        phase="decode", batch=batch, context=context, num_drafts=num_drafts, max_tokens=max_tokens
                    )
    if "prefill" in run.phases:
        for context in run.contexts:
            yield _Load(phase="prefill", batch=1, context=context, num_drafts=0, max_tokens=1)


def _with_room(run: EngineRun, loads: Iterator[_Load], left_out: dict[str, str]) -> Iterator[_Load]:
    """Those whose sequences the models have positions and the device has memory for."""
    shapes = [SHAPES[name] for name in (run.shape, run.draft_shape) if name is not None]
    itemsize = getattr(torch, run.dtype).itemsize
    has_gpu = run.device != "cpu" and torch.cuda.is_available()
    bench = BenchDevice(torch.device("cuda" if has_gpu else "cpu"))
    num_weight_bytes = sum(weight_bytes(shape, itemsize) for shape in shapes)
    for load in loads:
        max_model_len = min(shape.max_position_embeddings for shape in shapes)
        num_kv_bytes = load.num_blocks * _BLOCK_SIZE * sum(kv_bytes_per_token(shape, itemsize) for shape in shapes)
        if load.model_len > max_model_len:
            left_out[load.label] = f"it takes {load.model_len} positions, and the models have {max_model_len}"
        elif not bench.has_room_for(num_weight_bytes + num_kv_bytes):
            gib = (num_weight_bytes + num_kv_bytes) / 2**30
            left_out[load.label] = f"weights, keys and values take {gib:.1f} GiB, more than is free"
        else:
            yield load


@contextmanager
def _engine(run: EngineRun, loads: list[_Load], steps: Steps) -> Iterator[Engine]:
    """With room for the largest of the loads."""
    steps.note("weights")
    max_batch = max((load.batch for load in loads), default=1)
    max_drafts = max(run.nums_drafts)
    with tempfile.TemporaryDirectory(prefix="specdec-bench-") as name:
        folder = write_shape(SHAPES[run.shape], Path(name) / run.shape)
        draft = None if run.draft_shape is None else write_shape(SHAPES[run.draft_shape], Path(name) / "draft")
        config = EngineConfig(
            model=str(folder),
            dtype=run.dtype,
            device=run.device,
            max_model_len=max((load.model_len for load in loads), default=NUM_TOKENS),
            max_num_seqs=max_batch,
            # Every sequence's token and drafts, with what its draft model needs for them.
            max_num_batched_tokens=max(run.max_num_batched_tokens, max_batch * (2 * max_drafts + 4)),
            block_size=_BLOCK_SIZE,
            num_kv_blocks=max(NUM_SEQUENCES * -(-NUM_TOKENS // _BLOCK_SIZE), *(load.num_blocks for load in loads), 2),
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
    load: _Load,
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
