"""PassClock: how long the models' passes take inside the engine's steps."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from specdec.captured_drafting import CapturedDrafting
from specdec.engine import Engine
from specdec.model_runner import ModelRunner

_PASSES: Final = ((ModelRunner, "forward"), (ModelRunner, "forward_drawn"), (CapturedDrafting, "take_turn"))
"""The methods that are a pass each; none calls another. A captured turn has its draw in it, some microseconds."""


@dataclass(frozen=True, slots=True)
class StepPasses:
    """Launched in one step, in milliseconds; the target's may be for the next."""

    target_ms: tuple[float, ...]
    draft_ms: tuple[float, ...]

    @property
    def ms(self) -> float:
        return sum(self.target_ms) + sum(self.draft_ms)


@dataclass(slots=True)
class _Marks:
    """What a step's passes left: seconds on a CPU, events on a GPU, which are read when all is over."""

    target: list[tuple[Any, Any]] = field(default_factory=list)
    draft: list[tuple[Any, Any]] = field(default_factory=list)


class PassClock:
    """On a GPU the time between events before and after a pass, so that nothing waits for it.

    Where the device has nothing else to do, that holds what the host takes to list and send the pass's numbers.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_gpu = engine.describe().device.startswith("cuda")
        self._steps: list[_Marks] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Wrap the passes of all engines of the process; nothing else may step meanwhile."""
        originals = [(owner, name, owner.__dict__[name]) for owner, name in _PASSES]
        try:
            for owner, name, original in originals:
                setattr(owner, name, self._timed(original))
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)

    def begin_step(self) -> None:
        """Passes from now on are those of another step."""
        self._steps.append(_Marks())

    def take(self) -> list[StepPasses]:
        """All steps so far, which are then forgotten."""
        if self._is_gpu:
            torch.cuda.synchronize()
        taken = [
            StepPasses(tuple(map(self._ms, marks.target)), tuple(map(self._ms, marks.draft))) for marks in self._steps
        ]
        self._steps = []
        return taken

    # Any: it wraps a method.
    def _timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def wrapper(owner: ModelRunner | CapturedDrafting, *args: object, **kwargs: object) -> object:
            begin = self._mark()
            result = forward(owner, *args, **kwargs)
            if self._steps:
                marks = self._steps[-1]
                (marks.target if owner is self._engine.runner else marks.draft).append((begin, self._mark()))
            return result

        return wrapper

    def _mark(self) -> Any:
        if not self._is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        event.record()
        return event

    def _ms(self, pair: tuple[Any, Any]) -> float:
        begin, end = pair
        return float(begin.elapsed_time(end) if self._is_gpu else 1000 * (end - begin))


def kernel_ms(call: Callable[[], object], num_calls: int) -> float:
    """Milliseconds that a GPU's kernels and copies take in a call, all together, as the profiler counts them."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        for _ in range(num_calls):
            call()
        torch.cuda.synchronize()
    return sum(float(event.self_device_time_total) for event in profile.key_averages()) / 1000 / num_calls
