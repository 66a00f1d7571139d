"""`specdec bench engine --beside transformers`: the same work by the engine and by transformers, in turns, as a ratio.

Both have the same weights in the same memory, get the same prompts in tokens, and decode the same number greedily.
A way through the library whose answers differ by more than rounding is not reported, and fails the run.
"""

from __future__ import annotations

import importlib.util
import random
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import torch

from specdec.config import EngineConfig
from specdec.description import EngineDescription
from specdec.engine import Engine
from specdec.evals.bench_attempt import attempted, until_stopped
from specdec.evals.bench_beside_check import difference_of_logits, fault_of_answers
from specdec.evals.bench_beside_points import BesidePoint, SidePoint, SideTimes, WayPoint, show
from specdec.evals.bench_beside_sides import WAYS, Answers, EngineSide, Side
from specdec.evals.bench_device import BenchDevice, MissingDeviceError, refuse_interpreter
from specdec.evals.bench_engine_check import NUM_SEQUENCES, NUM_TOKENS, fault_of_passes
from specdec.evals.bench_engine_model import KeptWeights, RandomWeights, write_shape
from specdec.evals.bench_shapes import SHAPES
from specdec.evals.bench_work import embedding_bytes, kv_bytes_per_token, weight_bytes
from specdec.evals.comparison import same_tokens
from specdec.evals.continuous_peer import ContinuousPeer
from specdec.evals.environment import describe_environment, load_warning
from specdec.evals.peer import TransformersPeer, model_of_weights
from specdec.evals.progress import Steps
from specdec.evals.result import EvalResult
from specdec.evals.terminal import Terminal

_BLOCK_SIZE: Final = 16
_PEER_CACHES: Final = 4
"""How often the library may hold a batch's keys and values: lengthening them copies them, and batching has its own."""


class BesideRun(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured."""

    shape: str
    dtype: Literal["bfloat16", "float16", "float32"]
    device: Literal["auto", "cpu", "cuda"]
    ways: tuple[str, ...]
    """Names of WAYS."""
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    num_new_tokens: int
    repeats: int
    max_num_batched_tokens: int
    seed: int


@dataclass(slots=True)
class _Measured:
    """As far as it came."""

    failures: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    """Its name, as of the card."""
    engine: EngineDescription | None = None
    logits_difference: float | None = None
    points: list[BesidePoint] = field(default_factory=list)


def run_beside(run: BesideRun, terminal: Terminal) -> EvalResult:
    """Build both sides, check that they agree, time them in turns, and print the table.

    Raises ConfigError and MissingDeviceError.
    """
    refuse_interpreter()
    if importlib.util.find_spec("transformers") is None:
        raise MissingDeviceError("there is nothing to run beside: the package transformers is not installed")
    environment = describe_environment()
    measured = _Measured()
    sizes = [size for size in _sizes(run) if _has_room(run, *size, measured.left_out)]
    if sizes:
        with (
            until_stopped(measured.failures),
            terminal.progress("beside", 1 + len(sizes) * (1 + run.repeats)) as steps,
        ):
            _measure(run, sizes, measured, steps)
    else:
        measured.failures.append("nothing is timed: there is room for no point")
    show(measured.points, terminal)
    warning = load_warning(environment)
    return EvalResult(
        eval_name="beside",
        failures=tuple(measured.failures),
        warnings=(
            *(() if warning is None else (warning,)),
            *(f"{name} is left out: {reason}" for name, reason in measured.left_out.items()),
        ),
        settings=msgspec.structs.asdict(run),
        figures={
            "device": measured.device,
            "engine": measured.engine,
            "logits_difference": measured.logits_difference,
            "points": measured.points,
            "left_out": measured.left_out,
        },
        environment=msgspec.structs.replace(environment, num_threads=torch.get_num_threads()),
    )


def _sizes(run: BesideRun) -> list[tuple[int, int]]:
    return [(batch, context) for context in run.contexts for batch in run.batches]


def _label(batch: int, context: int) -> str:
    return f"batch {batch}, context {context}"


def _has_room(run: BesideRun, batch: int, context: int, left_out: dict[str, str]) -> bool:
    shape, itemsize = SHAPES[run.shape], getattr(torch, run.dtype).itemsize
    model_len = context + run.num_new_tokens
    num_bytes = weight_bytes(shape, itemsize) + embedding_bytes(shape, itemsize)
    num_bytes += (1 + _PEER_CACHES) * batch * model_len * kv_bytes_per_token(shape, itemsize)
    has_gpu = run.device != "cpu" and torch.cuda.is_available()
    if model_len > shape.max_position_embeddings:
        left_out[_label(batch, context)] = (
            f"it takes {model_len} positions, and the model has {shape.max_position_embeddings}"
        )
        return False
    if not BenchDevice(torch.device("cuda" if has_gpu else "cpu")).has_room_for(num_bytes):
        left_out[_label(batch, context)] = (
            f"weights, and keys and values of both sides, take {num_bytes / 2**30:.1f} GiB, more than is free"
        )
        return False
    return True


def _measure(run: BesideRun, sizes: Sequence[tuple[int, int]], measured: _Measured, steps: Steps) -> None:
    steps.note("weights")
    weights = KeptWeights(RandomWeights(run.seed))
    with tempfile.TemporaryDirectory(prefix="specdec-bench-") as name:
        folder = write_shape(SHAPES[run.shape], Path(name) / run.shape)
        engine = Engine(_config(run, folder, sizes), load=weights)
        with closing(engine):
            measured.device = BenchDevice(engine.runner.device).name
            description = engine.describe()
            # The folder that its shape is written to is gone when this is read.
            measured.engine = msgspec.structs.replace(description, model=run.shape)
            model = model_of_weights(folder, weights.slots, dtype=getattr(torch, description.dtype))
            steps.note("check")
            fault = fault_of_passes(engine)
            if fault is None:
                measured.logits_difference, fault = difference_of_logits(engine, model)
            if fault is not None:
                measured.failures.append(f"nothing is timed: {fault}")
                return
            steps.advance()
            for batch, context in sizes:
                with attempted(_label(batch, context), measured.failures):
                    _measure_point(run, engine, model, batch, context, measured, steps)


def _config(run: BesideRun, folder: Path, sizes: Sequence[tuple[int, int]]) -> EngineConfig:
    model_len = max(NUM_TOKENS, *(context + run.num_new_tokens for _, context in sizes))
    blocks = [batch * -(-(context + run.num_new_tokens) // _BLOCK_SIZE) + 1 for batch, context in sizes]
    max_batch = max(batch for batch, _ in sizes)
    return EngineConfig(
        model=str(folder),
        dtype=run.dtype,
        device=run.device,
        max_model_len=model_len,
        max_num_seqs=max_batch,
        max_num_batched_tokens=max(run.max_num_batched_tokens, max_batch),
        block_size=_BLOCK_SIZE,
        num_kv_blocks=max(NUM_SEQUENCES * -(-NUM_TOKENS // _BLOCK_SIZE), *blocks),
        enable_prefix_caching=False,
        num_compile_workers=0,
        seed=run.seed,
        speculative=None,
    )


@dataclass(slots=True)
class _Way:
    """One that gave the answers it should, with what it gave and took."""

    side: TransformersPeer | ContinuousPeer
    tokens: Answers
    times: SideTimes = field(default_factory=SideTimes)


# Any: transformers ships no types that strict checking accepts.
def _measure_point(
    run: BesideRun, engine: Engine, model: Any, batch: int, context: int, measured: _Measured, steps: Steps
) -> None:
    label = _label(batch, context)
    prompts = _prompts(run, engine, batch, context)
    steps.note(f"{label}: warm-up and check")
    own, own_times = EngineSide(engine), SideTimes()
    own_tokens = _warmed_up(own, prompts, run.num_new_tokens)
    fault = _fault_of(model, prompts, own_tokens)
    if fault is not None:
        measured.failures.append(f"{label} is not timed: of ours, {fault}")
        return
    with ExitStack() as opened:
        ways = _opened(run, engine, model, prompts, label, measured, opened)
        steps.advance()
        for _ in range(run.repeats):
            steps.note(f"{label}: ours")
            _time(own, prompts, run.num_new_tokens, own_times)
            for name, way in ways.items():
                steps.note(f"{label}: {name}")
                _time(way.side, prompts, run.num_new_tokens, way.times)
            steps.advance()
    own_point = SidePoint.of(own_times, batch, run.num_new_tokens)
    measured.points.append(
        BesidePoint(
            batch=batch,
            context=context,
            num_new_tokens=run.num_new_tokens,
            own=own_point,
            ways=tuple(
                WayPoint.of(
                    way=name,
                    attention=way.side.attention,
                    own=(own_times, own_point),
                    other=way.times,
                    batch=batch,
                    num_new_tokens=run.num_new_tokens,
                    same=same_tokens(own_tokens, way.tokens),
                )
                for name, way in ways.items()
            ),
        )
    )
    BenchDevice(engine.runner.device).release()


def _opened(
    run: BesideRun,
    engine: Engine,
    model: Any,
    prompts: Sequence[Sequence[int]],
    label: str,
    measured: _Measured,
    opened: ExitStack,
) -> dict[str, _Way]:
    """The ways that run here and give the answers they should; the others are named."""
    ways: dict[str, _Way] = {}
    for name in run.ways:
        try:
            side = WAYS[name](
                model,
                batch=len(prompts),
                model_len=len(prompts[0]) + run.num_new_tokens,
                max_batch_tokens=engine.describe().max_num_batched_tokens,
            )
            if isinstance(side, ContinuousPeer):
                opened.callback(side.close)
            tokens = _warmed_up(side, prompts, run.num_new_tokens)
        except Exception as error:  # noqa: BLE001, whatever a version lacks, the other ways are timed
            measured.left_out[f"{name}, {label}"] = f"{type(error).__name__}: {error}"
            continue
        fault = _fault_of(model, prompts, tokens)
        if fault is None:
            ways[name] = _Way(side, tokens)
        else:
            measured.failures.append(f"{name}, {label} is not timed: {fault}")
    return ways


def _prompts(run: BesideRun, engine: Engine, batch: int, context: int) -> list[list[int]]:
    """Of random tokens; 0 is the end of a sequence."""
    source = random.Random(run.seed)
    return [source.choices(range(1, engine.tokenizer.vocab_size), k=context) for _ in range(batch)]


def _warmed_up(side: Side, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> Answers:
    """Everything that is timed later has run once; what it gave is what is checked."""
    side.generate(prompts, 1)
    return side.generate(prompts, num_new_tokens)[0]


def _fault_of(model: Any, prompts: Sequence[Sequence[int]], tokens: Answers) -> str | None:
    return fault_of_answers(model, [(prompts[i], tokens[i]) for i in sorted({0, len(prompts) - 1})])


def _time(side: Side, prompts: Sequence[Sequence[int]], num_new_tokens: int, times: SideTimes) -> None:
    times.to_first_token.append(side.generate(prompts, 1)[1])
    times.whole.append(side.generate(prompts, num_new_tokens)[1])
