"""EngineLoad: requests of one kind on an engine, and its steps one by one, with what each took and gave."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from specdec.engine import Engine
from specdec.evals.bench_engine_clock import PassClock, StepPasses, kernel_ms
from specdec.request import Request, SamplingParams
from specdec.speculative import SpeculativeParams

_NUM_WARM_UP_STEPS = 3
_NUM_PROFILED_STEPS = 4

_request_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class TimedStep:
    seconds: float
    num_emitted: int
    context_lens: tuple[int, ...]
    """Of the sequences, before it."""
    passes: StepPasses

    @property
    def overhead_ms(self) -> float:
        """Outside the models' passes."""
        return 1000 * self.seconds - self.passes.ms


@dataclass(frozen=True, slots=True)
class TimedDecode:
    steps: list[TimedStep]
    kernel_ms: float | None
    """Of a step, by a profiler, in others that were not timed; None on a CPU, and where the profiler failed."""


class EngineLoad:
    """Prompts of random tokens; nothing ends before it is told to."""

    def __init__(self, engine: Engine, *, seed: int, temperature: float, faults: list[str] | None = None) -> None:
        """Where the profiler fails, `faults` is told; the steps were timed before."""
        self._engine = engine
        self._clock = PassClock(engine)
        self._random = random.Random(seed)
        self._temperature = temperature
        self._faults = [] if faults is None else faults
        if engine.describe().device.startswith("cuda"):
            # Launches may take longer once a profiler was there: all points are timed behind it.
            self._kernel_ms(lambda: None, 1)

    @staticmethod
    def max_tokens(*, batch: int, context: int, num_drafts: int, num_steps: int, budget: int) -> int:
        """That no request ends before the last step of `decode`, with a budget of so many tokens a step.

        The first prompts' answers go on while the last ones are computed, which takes twice as long with a draft model.
        """
        num_prefill_steps = 2 * -(-batch * context // budget) + batch
        num_decode_steps = _NUM_WARM_UP_STEPS + num_steps + _NUM_PROFILED_STEPS + 1
        return (num_prefill_steps + num_decode_steps) * (num_drafts + 1) + 1

    def decode(
        self, *, batch: int, context: int, num_drafts: int, max_tokens: int, num_steps: int, note: Callable[[str], None]
    ) -> TimedDecode:
        """Steps of a whole batch whose prompts are computed."""
        request_ids = [self._add(context, num_drafts, max_tokens) for _ in range(batch)]
        engine, scheduler = self._engine, self._engine.scheduler
        try:
            while scheduler.waiting or any(not sequence.num_output_tokens for sequence in scheduler.running):
                num_computed = sum(min(each.num_computed_tokens, context) for each in scheduler.running)
                note(f"prompts, {num_computed} of {batch * context} tokens")
                engine.step()
            note("steps")
            for _ in range(_NUM_WARM_UP_STEPS):
                engine.step()
            steps = self._timed_steps(num_steps)
            is_gpu = engine.describe().device.startswith("cuda")
            profiled_ms = self._kernel_ms(engine.step, _NUM_PROFILED_STEPS) if is_gpu else None
            assert len(scheduler.running) == batch, "nothing ends before it is told to"
            return TimedDecode(steps, profiled_ms)
        finally:
            for request_id in request_ids:
                engine.abort_request(request_id)

    def prefill(self, num_tokens: int) -> list[TimedStep]:
        """The steps of one prompt, the last of which gives its first token."""
        request_id = self._add(num_tokens, 0, 1)
        steps: list[TimedStep] = []
        try:
            while self._engine.has_unfinished_requests():
                steps += self._timed_steps(1)
        finally:
            self._engine.abort_request(request_id)
        return steps

    def _kernel_ms(self, call: Callable[[], object], num_calls: int) -> float | None:
        try:
            return kernel_ms(call, num_calls)
        except RuntimeError as error:
            self._faults.append(f"the time of the kernels alone is not known: {type(error).__name__}: {error}")
            return None

    def _add(self, num_prompt_tokens: int, num_drafts: int, max_tokens: int) -> str:
        request = Request(
            request_id=f"bench-{next(_request_numbers)}",
            # 0 is the end of a sequence.
            prompt_token_ids=tuple(
                self._random.choices(range(1, self._engine.tokenizer.vocab_size), k=num_prompt_tokens)
            ),
            sampling_params=SamplingParams(
                temperature=self._temperature, max_tokens=max_tokens, ignore_eos=True, seed=self._random.getrandbits(32)
            ),
            speculative=SpeculativeParams(num_speculative_tokens=num_drafts)
            if num_drafts
            else SpeculativeParams(enabled=False),
        )
        self._engine.add_request(request)
        return request.request_id

    def _timed_steps(self, num_steps: int) -> list[TimedStep]:
        taken: list[tuple[float, int, tuple[int, ...]]] = []
        with self._clock.recording():
            for _ in range(num_steps):
                context_lens = tuple(sequence.num_tokens for sequence in self._engine.scheduler.running)
                self._clock.begin_step()
                begin = time.perf_counter()
                deltas = self._engine.step()
                seconds = time.perf_counter() - begin
                taken.append((seconds, sum(len(delta.token_ids) for delta in deltas), context_lens))
        return [
            TimedStep(seconds, num_emitted, context_lens, passes)
            for (seconds, num_emitted, context_lens), passes in zip(taken, self._clock.take(), strict=True)
        ]
