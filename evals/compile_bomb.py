"""A compile bomb beside streams: an engine that answers, while somebody brings a schema that takes all it may."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator

import msgspec

from specdec import AsyncEngine, EngineConfig, JsonSchema, Request, SamplingParams, SchemaError
from specdec.evals.terminal import Terminal
from specdec.grammars import Limits

NUM_STREAMS = 4
MAX_COMPILE_SECONDS = 3.0
MAX_GAP_RATIO = 3.0
"""The worst gap between two tokens of a stream may be so many times as long as without the bomb..."""
MIN_GAP_MS = 100.0
"""... or this long, which nobody sees."""
_PHASE_SECONDS = 4.0
_NUM_DEFINITIONS = 60_000


class BombOutcome(msgspec.Struct, frozen=True, kw_only=True):
    worst_gap_ms_before: float
    worst_gap_ms_during: float
    median_gap_ms_before: float
    median_gap_ms_during: float
    bomb_seconds: float
    """Until it was refused."""
    bomb_error: str
    quick_schema_ms: float
    """A request with a small new schema, while the bomb is being compiled, until its first token."""

    def failures(self) -> Iterator[str]:
        """What does not hold."""
        bound = max(MIN_GAP_MS, MAX_GAP_RATIO * self.worst_gap_ms_before)
        if self.worst_gap_ms_during > bound:
            yield f"a stream stood still for {self.worst_gap_ms_during:.0f} ms beside a bomb; the bound is {bound:.0f}"
        if "max_compile_seconds" not in self.bomb_error:
            yield f"the bomb was not ended at its deadline: {self.bomb_error}"

    def rows(self) -> Iterator[tuple[str, str]]:
        yield "median gap before, ms", f"{self.median_gap_ms_before:.1f}"
        yield "median gap during, ms", f"{self.median_gap_ms_during:.1f}"
        yield "worst gap before, ms", f"{self.worst_gap_ms_before:.1f}"
        yield "worst gap during, ms", f"{self.worst_gap_ms_during:.1f}"
        yield "bomb refused after, s", f"{self.bomb_seconds:.2f}"
        yield "small schema beside it, ms to the first token", f"{self.quick_schema_ms:.0f}"


def run_bomb(model: str, terminal: Terminal) -> BombOutcome:
    """Streams of the model without a bomb, then with one."""
    many = 10**7
    limits = Limits(
        max_schema_bytes=many,
        max_properties=many,
        max_refs=many,
        max_nodes=many,
        max_goals=many,
        max_compile_seconds=MAX_COMPILE_SECONDS,
    )
    engine = AsyncEngine.from_config(EngineConfig(model=model, grammar_limits=limits))
    with terminal.progress("a bomb beside streams", 2) as steps:
        return asyncio.run(_measure(engine, steps.advance))


async def _measure(engine: AsyncEngine, advance: object) -> BombOutcome:
    assert callable(advance)
    await engine.start()
    bomb_request = _bomb(engine)
    try:
        stamps: list[list[float]] = [[] for _ in range(NUM_STREAMS)]
        streams = [asyncio.create_task(_stream(engine, number, each)) for number, each in enumerate(stamps)]
        await asyncio.sleep(1.0)
        before = await _phase(stamps, asyncio.sleep(_PHASE_SECONDS))
        advance()
        bomb = asyncio.create_task(_submit_bomb(engine, bomb_request))
        quick = asyncio.create_task(_quick(engine))
        during = await _phase(stamps, asyncio.wait({bomb, quick}))
        advance()
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        seconds, error = bomb.result()
        return BombOutcome(
            worst_gap_ms_before=max(before),
            worst_gap_ms_during=max(during),
            median_gap_ms_before=sorted(before)[len(before) // 2],
            median_gap_ms_during=sorted(during)[len(during) // 2],
            bomb_seconds=seconds,
            bomb_error=error,
            quick_schema_ms=quick.result(),
        )
    finally:
        await engine.close()


async def _phase(stamps: list[list[float]], until: object) -> list[float]:
    """The gaps between tokens, in milliseconds, while something goes on."""
    for each in stamps:
        del each[:-1]
    assert asyncio.iscoroutine(until)
    await until
    return [1000 * (second - first) for each in stamps for first, second in itertools.pairwise(each)]


async def _stream(engine: AsyncEngine, number: int, stamps: list[float]) -> None:
    tokenizer = engine.tokenizer
    for turn in range(10**6):
        request = Request(
            request_id=f"stream-{number}-{turn}",
            prompt_token_ids=tuple(tokenizer.encode("Once upon a time")),
            sampling_params=SamplingParams(max_tokens=512, temperature=1.0, seed=number, ignore_eos=True),
        )
        async for delta in engine.generate(request):
            stamps += [time.perf_counter()] * bool(delta.token_ids)


def _bomb(engine: AsyncEngine) -> Request:
    definitions = {f"d{i}": {"type": "array", "items": {"const": i}, "minItems": i} for i in range(_NUM_DEFINITIONS)}
    schema = {"properties": {name: {"$ref": f"#/$defs/{name}"} for name in definitions}, "$defs": definitions}
    return _constrained(engine, "bomb", json.dumps(schema))


async def _submit_bomb(engine: AsyncEngine, bomb: Request) -> tuple[float, str]:
    """(seconds, why it was refused)."""
    begin = time.perf_counter()
    try:
        stream = await engine.submit(bomb)
    except SchemaError as error:
        return time.perf_counter() - begin, str(error)
    stream.close()
    return time.perf_counter() - begin, "it was compiled"


async def _quick(engine: AsyncEngine) -> float:
    await asyncio.sleep(MAX_COMPILE_SECONDS / 2)
    schema = '{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},"required":["name"]}'
    begin = time.perf_counter()
    async for _ in engine.generate(_constrained(engine, "quick", schema)):
        return 1000 * (time.perf_counter() - begin)
    raise AssertionError("an answer has a token at least")


def _constrained(engine: AsyncEngine, request_id: str, schema: str) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(engine.tokenizer.encode("Answer in JSON: ")),
        sampling_params=SamplingParams(max_tokens=64, temperature=1.0, seed=1),
        constraint=JsonSchema(schema=schema),
    )
