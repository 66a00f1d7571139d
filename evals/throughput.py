"""Throughput: tokens per second of plain decoding, beside transformers' `generate`, and a profile of a step.

Both sides get the same prompts in tokens and make the same number of new tokens, greedily, never stopping early;
prefill counts. They take turns in one process. Nothing is cached from run to run on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import torch

from specdec.config import EngineConfig
from specdec.engine import Engine
from specdec.evals.comparison import same_tokens
from specdec.evals.driver import build_engine, drive, model_folder, request_of
from specdec.evals.environment import describe_environment, load_warning
from specdec.evals.peer import TransformersPeer, model_of_folder
from specdec.evals.progress import Steps
from specdec.evals.result import EvalResult, model_label
from specdec.evals.spread import Spread
from specdec.evals.step_profile import PartTime, StepProfile
from specdec.evals.terminal import Terminal
from specdec.evals.workload import load_workload
from specdec.request import Request, SamplingParams

_MAX_KV_BYTES = 256 * 2**20
_NUM_WARM_UP_TOKENS = 4


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size."""

    batch: int
    num_prompt_tokens: int
    num_new_tokens: int
    """Over the whole batch."""
    tokens_per_second: Spread
    peer_tokens_per_second: Spread | None
    ratio: Spread | None
    """Ours to the peer's, of each pair of neighbouring runs."""
    mean_same_prefix: float | None
    """New tokens until the two first differ, as a share of all; low precision parts them at near ties."""
    profile_ms_per_step: float
    profile_num_steps: int
    profile: tuple[PartTime, ...]


def run_throughput(
    *,
    model: str,
    dtype: Literal["auto", "bfloat16", "float16", "float32"],
    exact: bool,
    with_peer: bool,
    batches: Sequence[int],
    repeats: int,
    num_new_tokens: int,
    terminal: Terminal,
) -> EvalResult:
    """Time each batch size and print the tables. Nothing fails it: its figures are judged by who asked for them."""
    environment = describe_environment()
    engine = build_engine(
        EngineConfig(
            model=model,
            dtype=dtype,
            exact=exact,
            max_num_seqs=max(16, *batches),
            kv_cache_memory=_MAX_KV_BYTES,
            enable_prefix_caching=False,
            speculative=None,
        )
    )
    description = engine.describe()
    environment = msgspec.structs.replace(environment, num_threads=description.num_threads)
    peer = None
    if with_peer:
        peer = TransformersPeer(model_of_folder(model_folder(model), dtype=getattr(torch, description.dtype)))
    results = []
    with terminal.progress("throughput", len(batches) * (repeats * (1 if peer is None else 2) + 1)) as steps:
        for batch in batches:
            steps.note(f"batch {batch}")
            requests = _requests(engine, batch, num_new_tokens)
            results.append(_measure(engine, peer, requests, repeats, num_new_tokens, steps))
    _show(results, terminal)
    warning = load_warning(environment)
    return EvalResult(
        eval_name="throughput",
        failures=(),
        warnings=() if warning is None else (warning,),
        settings={
            "model": model_label(model),
            "dtype": description.dtype,
            "exact": exact,
            "peer": "transformers" if with_peer else "none",
            "repeats": repeats,
            "num_new_tokens": num_new_tokens,
        },
        figures={"batches": results},
        environment=environment,
    )


def _requests(engine: Engine, batch: int, num_new_tokens: int) -> list[Request]:
    """Different prompts, as alike in length as the workload allows: padding is not what is measured."""
    params = SamplingParams(temperature=0.0, max_tokens=num_new_tokens, ignore_eos=True)
    # Whoever is given a prediction drafts from it, whatever the engine does otherwise.
    tasks = [task.without_prediction() for task in load_workload("free_text")]
    requests = [request_of(engine, task, params) for task in tasks]
    requests.sort(key=lambda request: len(request.prompt_token_ids))
    middle = len(requests) // 2
    first = max(0, middle - batch // 2)
    chosen = requests[first : first + batch]
    while len(chosen) < batch:
        chosen.append(request_of(engine, tasks[len(chosen) % len(tasks)], params))
    return chosen


def _measure(
    engine: Engine,
    peer: TransformersPeer | None,
    requests: Sequence[Request],
    repeats: int,
    num_new_tokens: int,
    steps: Steps,
) -> BatchResult:
    prompts = [request.prompt_token_ids for request in requests]
    total = len(requests) * num_new_tokens
    _generate(engine, requests, _NUM_WARM_UP_TOKENS)
    if peer is not None:
        peer.generate(prompts, _NUM_WARM_UP_TOKENS)
    own_rates, peer_rates = [], []
    own_tokens: list[Sequence[int]] = []
    peer_tokens: Sequence[Sequence[int]] = []
    for _ in range(repeats):
        own_tokens, seconds = _generate(engine, requests, num_new_tokens)
        own_rates.append(total / seconds)
        steps.advance()
        if peer is not None:
            peer_tokens, seconds = peer.generate(prompts, num_new_tokens)
            peer_rates.append(total / seconds)
            steps.advance()
    profile = StepProfile()
    with profile.recording(engine):
        _generate(engine, requests, num_new_tokens)
    steps.advance()
    return BatchResult(
        batch=len(requests),
        num_prompt_tokens=sum(len(prompt) for prompt in prompts),
        num_new_tokens=total,
        tokens_per_second=Spread.of(own_rates),
        peer_tokens_per_second=Spread.of(peer_rates) if peer_rates else None,
        ratio=Spread.of([own / other for own, other in zip(own_rates, peer_rates, strict=True)])
        if peer_rates
        else None,
        mean_same_prefix=same_tokens(own_tokens, peer_tokens) if peer_rates else None,
        profile_ms_per_step=profile.ms_per_step,
        profile_num_steps=profile.num_steps,
        profile=tuple(profile.parts()),
    )


def _generate(engine: Engine, requests: Sequence[Request], num_new_tokens: int) -> tuple[list[Sequence[int]], float]:
    params = SamplingParams(temperature=0.0, max_tokens=num_new_tokens, ignore_eos=True)
    run = drive(
        engine,
        [msgspec.structs.replace(request, sampling_params=params) for request in requests],
        concurrency=len(requests),
    )
    tokens: list[Sequence[int]] = [output.choices[0].token_ids for output in run.outputs]
    assert all(len(each) == num_new_tokens for each in tokens), "nothing stops early"
    return tokens, run.seconds


def _show(results: Sequence[BatchResult], terminal: Terminal) -> None:
    terminal.table(
        "throughput, tokens/s: median (range)",
        ("batch", "specdec", "transformers", "ratio", "same tokens"),
        (
            (
                str(each.batch),
                str(each.tokens_per_second),
                str(each.peer_tokens_per_second or "-"),
                str(each.ratio or "-"),
                "-" if each.mean_same_prefix is None else f"{100 * each.mean_same_prefix:.0f} %",
            )
            for each in results
        ),
    )
    terminal.table(
        "where a step's time goes, prefill included",
        ("part", *(f"batch {each.batch}, ms ({each.profile_num_steps} steps)" for each in results)),
        [
            *(
                (parts[0].part, *(f"{part.ms_per_step:.3f} ({100 * part.share:.1f} %)" for part in parts))
                for parts in zip(*(each.profile for each in results), strict=True)
            ),
            ("all", *(f"{each.profile_ms_per_step:.3f}" for each in results)),
        ],
    )
