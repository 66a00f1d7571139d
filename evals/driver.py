"""Driving an engine in process: requests with schemas of their own, a bounded number of them at once."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from specdec.config import EngineConfig
from specdec.engine import Engine
from specdec.errors import BudgetTooSmallError, RequestError
from specdec.evals.workload import Task
from specdec.grammars import JsonSchema, SchemaOptions
from specdec.models.catalog import resolve_model
from specdec.models.progress import progress_bars
from specdec.request import Request, RequestOutput, SamplingParams
from specdec.request_output import OutputCollector
from specdec.speculative import SpeculativeParams

_request_numbers = itertools.count()


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What a drive gave, outputs in the order of the requests."""

    outputs: tuple[RequestOutput, ...]
    seconds: float
    """From the first request's admission to the last token; schemas were compiled before."""
    decoding_seconds: float
    """Of each request from its first step with tokens to its last one, summed."""
    num_decoded_tokens: int
    """Those that came after the first such step."""

    @property
    def num_generated_tokens(self) -> int:
        return sum(len(choice.token_ids) for output in self.outputs for choice in output.choices)

    @property
    def tokens_per_second(self) -> float:
        return self.num_generated_tokens / self.seconds

    @property
    def seconds_per_token(self) -> float | None:
        """Between tokens of one request (TPOT); None where no request had a second step."""
        return self.decoding_seconds / self.num_decoded_tokens if self.num_decoded_tokens else None


def build_engine(config: EngineConfig) -> Engine:
    """The engine, with bars while its models are pulled and read."""
    with progress_bars() as progress:
        return Engine(config, progress=progress)


def model_folder(model: str) -> Path:
    """Where a model's files are, pulled with a bar if need be."""
    with progress_bars() as progress:
        return resolve_model(model, progress=progress)


def request_of(
    engine: Engine,
    task: Task,
    params: SamplingParams,
    *,
    speculative: SpeculativeParams | None = None,
    cache_salt: str = "",
    trace: bool = False,
) -> Request:
    """A task as a request, its prompt rendered by the model's chat template.

    Where an answer under the task's schema needs more tokens than the parameters allow, it gets what it needs.
    """
    schema = task.schema_text
    request = Request(
        request_id=f"eval-{next(_request_numbers)}",
        prompt_token_ids=tuple(engine.tokenizer.encode_chat(task.chat())),
        sampling_params=params,
        constraint=None
        if schema is None
        else JsonSchema(schema=schema, options=SchemaOptions(unknown_format=task.unknown_format)),
        cache_salt=cache_salt,
        speculative=speculative,
        prediction=task.prediction or "",
        trace=trace,
    )
    try:
        engine.prepare(request)
    except BudgetTooSmallError as error:
        if error.minimum_tokens is None:
            raise
        enough = msgspec.structs.replace(params, max_tokens=error.minimum_tokens)
        return msgspec.structs.replace(request, sampling_params=enough)
    return request


def answerable(engine: Engine, tasks: Sequence[Task], params: SamplingParams) -> tuple[list[Task], dict[str, str]]:
    """The tasks that the engine takes, and by name why it does not take the others."""
    taken: list[Task] = []
    refused: dict[str, str] = {}
    for task in tasks:
        try:
            request_of(engine, task, params)
        except RequestError as error:
            refused[task.name] = str(error)
        else:
            taken.append(task)
    return taken, refused


def drive(
    engine: Engine,
    requests: Sequence[Request],
    *,
    concurrency: int,
    on_finish: Callable[[int], None] | None = None,
) -> Run:
    """Answer every request, at most `concurrency` of them in flight.

    Raises RequestError before anything is generated if a request cannot be served.
    """
    prepared = [engine.prepare(request) for request in requests]
    waiting = deque(prepared)
    collectors = {request.request_id: OutputCollector(request) for request in requests}
    in_flight: set[str] = set()
    num_finished = 0
    first_seen: dict[str, float] = {}
    decoding_seconds, num_decoded_tokens = 0.0, 0
    start = time.perf_counter()
    try:
        while waiting or in_flight:
            while waiting and len(in_flight) < concurrency:
                each = waiting.popleft()
                engine.add_request(each)
                in_flight.add(each.request.request_id)
            deltas = engine.step()
            now = time.perf_counter()
            for delta in deltas:
                if delta.request_id in first_seen:
                    num_decoded_tokens += len(delta.token_ids)
                first_seen.setdefault(delta.request_id, now)
                collector = collectors[delta.request_id]
                collector.add(delta)
                if collector.is_finished:
                    in_flight.remove(delta.request_id)
                    decoding_seconds += now - first_seen[delta.request_id]
                    num_finished += 1
                    if on_finish is not None:
                        on_finish(num_finished)
    finally:
        for request_id in in_flight:
            engine.abort_request(request_id)
    seconds = time.perf_counter() - start
    return Run(
        outputs=tuple(collector.output() for collector in collectors.values()),
        seconds=seconds,
        decoding_seconds=decoding_seconds,
        num_decoded_tokens=num_decoded_tokens,
    )
