"""StepProfile: where the time of the engine's steps goes, by wrapping the parts of a step with a clock.

Time is *self* time: what a part spends in another wrapped part counts for that one, so the parts add up to the steps.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from specdec.attention import RowInvariantAttention, TorchAttention
from specdec.engine import Engine
from specdec.linear import Linear
from specdec.model_runner import ModelRunner
from specdec.overlapped_passes import OverlappedPasses
from specdec.row_attention import RowAttention
from specdec.sampler import Sampler
from specdec.scheduler import Scheduler
from specdec.tokenizer import Detokenizer
from specdec.triton_attention import TritonAttention

PARTS = (
    "schedule",
    "propose",
    "forward: linear",
    "forward: attention",
    "forward: other",
    "mask",
    "sample",
    "verify",
    "commit",
    "detokenise",
    "step: other",
)


class PartTime(msgspec.Struct, frozen=True, kw_only=True):
    part: str
    ms_per_step: float
    share: float
    """Of all steps' time."""


class _Clock:
    """Self time by part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.num_steps = 0
        self._nested: list[float] = []

    # Any: it wraps methods of every signature.
    def timed(self, method: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapper(*args: object, **kwargs: object) -> object:
            self._nested.append(0.0)
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                self.seconds[part] += elapsed - self._nested.pop()
                if self._nested:
                    self._nested[-1] += elapsed
                else:
                    self.num_steps += 1

        return wrapper


class StepProfile:
    """A profile of the steps run inside `recording`; costs about a microsecond a wrapped call."""

    def __init__(self) -> None:
        self._clock = _Clock()

    @contextmanager
    def recording(self, engine: Engine) -> Iterator[None]:
        """Wrap, for all engines of the process, the parts that this one is made of; nothing else may step meanwhile."""
        wrapped = [
            (Engine, "step", "step: other"),
            (Engine, "_masks_of_rows", "mask"),
            (Scheduler, "schedule", "schedule"),
            (Scheduler, "commit", "commit"),
            (type(engine.proposer), "propose", "propose"),
            (OverlappedPasses, "verify", "verify"),
            (ModelRunner, "forward", "forward: other"),
            (ModelRunner, "forward_drawn", "forward: other"),
            (Linear, "__call__", "forward: linear"),
            *(
                (kind, name, "forward: attention")
                for kind in (TorchAttention, RowAttention, RowInvariantAttention, TritonAttention)
                for name in ("plan", "forward")
            ),
            (Sampler, "sample", "sample"),
            (Detokenizer, "push", "detokenise"),
            (Detokenizer, "flush", "detokenise"),
        ]
        originals = [(kind, name, kind.__dict__[name]) for kind, name, _ in wrapped]
        try:
            for kind, name, part in wrapped:
                setattr(kind, name, self._clock.timed(kind.__dict__[name], part))
            yield
        finally:
            for kind, name, original in originals:
                setattr(kind, name, original)

    @property
    def num_steps(self) -> int:
        return self._clock.num_steps

    @property
    def ms_per_step(self) -> float:
        return 1000 * sum(self._clock.seconds.values()) / max(1, self._clock.num_steps)

    def parts(self) -> list[PartTime]:
        """In the order of a step."""
        total = sum(self._clock.seconds.values())
        return [
            PartTime(
                part=part,
                ms_per_step=1000 * seconds / max(1, self._clock.num_steps),
                share=seconds / total if total else 0.0,
            )
            for part, seconds in self._clock.seconds.items()
        ]
