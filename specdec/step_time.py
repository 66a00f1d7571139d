"""StepTime: how long a model takes for a pass over so many tokens, measured at start and corrected by every pass."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence
from itertools import accumulate
from typing import Final

from specdec.attention import Span
from specdec.model_runner import ModelRunner

_NUM_TOKENS: Final = (1, 2, 4, 6, 7, 8, 12, 13, 16, 32, 64)
"""Between them the time may leap: a product's kernels are for so many rows and no more."""
_MORE_TOKENS: Final = (128, 256, 512, 1024, 2048)
"""On a GPU as well, where 64 take as long as one, and a line through these would say nothing of more. On a CPU it does,
and a pass over so many takes seconds."""
_NUM_REPEATS: Final = 3
_CONTEXT_TOKENS: Final = 128
_RATE: Final = 0.1
"""Part of a pass's deviation by which all measurements are corrected: most of what makes a pass take longer than was
expected, longer contexts or other work on the machine, does so for passes of every size."""
_OWN_RATE: Final = 0.01
"""The same, in addition, for the measurements next to it."""
_MAX_DEVIATION: Final = 2.0
"""A pass that took longer than this many times what was expected met something else on the machine."""


class StepTime:
    """Seconds by tokens: linear between the measured ones, never less for more tokens."""

    def __init__(self, seconds: AbstractSequence[tuple[int, float]]) -> None:
        """Two measurements or more, (tokens, seconds), in ascending order of the tokens."""
        self._tokens = [num_tokens for num_tokens, _ in seconds]
        self._seconds = _ascending(max(second, 1e-9) for _, second in seconds)

    def seconds(self, num_tokens: int) -> float:
        """What a pass over so many tokens is expected to take; as the last two say beyond the most measured."""
        right = min(max(bisect_right(self._tokens, num_tokens), 1), len(self._tokens) - 1)
        low, high = self._tokens[right - 1], self._tokens[right]
        before, after = self._seconds[right - 1], self._seconds[right]
        return before + (after - before) * max(0.0, (num_tokens - low) / (high - low))

    def copy(self) -> StepTime:
        """Another one with the same measurements, that learns by itself."""
        return StepTime(list(zip(self._tokens, self._seconds, strict=True)))

    def scale(self, ratio: float) -> None:
        """Learn that passes of every size take longer by this part than was expected."""
        self._seconds = [seconds * (1.0 + ratio * _RATE) for seconds in self._seconds]

    def observe(self, num_tokens: int, seconds: float) -> float:
        """Learn from a pass; by what part it took longer than was expected."""
        ratio = min(max(seconds / self.seconds(num_tokens), 1 / _MAX_DEVIATION), _MAX_DEVIATION) - 1.0
        self.correct(num_tokens, ratio)
        return ratio

    def correct(self, num_tokens: int, ratio: float) -> None:
        """Learn that passes over about so many tokens take longer by this part than was expected."""
        right = min(max(bisect_right(self._tokens, num_tokens), 1), len(self._tokens) - 1)
        low, high = self._tokens[right - 1], self._tokens[right]
        share = min(max((num_tokens - low) / (high - low), 0.0), 1.0)
        for i in range(len(self._seconds)):
            near = {right - 1: 1.0 - share, right: share}.get(i, 0.0)
            self._seconds[i] *= 1.0 + ratio * (_RATE + _OWN_RATE * near)
        self._seconds = _ascending(self._seconds)


def _ascending(seconds: Iterable[float]) -> list[float]:
    return list(accumulate(seconds, max))


def measure_step_time(
    runner: ModelRunner,
    *,
    num_blocks: int,
    block_size: int,
    max_model_len: int,
    max_tokens: int,
    max_rows: int,
) -> StepTime:
    """Time passes of one sequence of the model, in blocks that nobody uses yet.

    A step has up to max_tokens, and its pass up to max_rows rows of logits.
    """
    capacity = min(num_blocks * block_size, max_model_len)
    sizes = [size for size in _NUM_TOKENS if size < capacity]
    if runner.device.type == "cuda":
        sizes += [size for size in _MORE_TOKENS if size < capacity and size <= max_tokens]
    if len(sizes) < 2:
        # So short a sequence has no room for drafts to measure; any two figures do.
        sizes = [1, 2]
    context = max(0, min(_CONTEXT_TOKENS, capacity - max(sizes)))
    block_table = list(range(-(-(context + max(sizes)) // block_size)))
    # What the timed passes attend to; also warms allocators and caches.
    for _ in range(2):
        runner.forward([Span([0] * max(context, 1), 0, block_table, num_logits=1)])
    runner.wait()
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(_NUM_REPEATS):
        for size in sizes:
            begin = time.perf_counter()
            runner.forward([Span([0] * size, context, block_table, num_logits=min(size, max_rows))])
            runner.wait()
            times[size].append(time.perf_counter() - begin)
    # Whatever else the machine does can only make a pass longer.
    return StepTime([(size, min(times[size])) for size in sizes])
