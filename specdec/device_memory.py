"""A GPU's memory: what the KV pool gets of it, after the weights and beside the largest step.

    pool = utilization * total - taken - step - graphs

`taken` is what weights, the libraries and other processes hold when a step has been run once and its memory given
back; `step` is what that step held at its peak, its logits included, and what verifying them may take; `graphs` is what
captured passes will hold, by a few that were captured and let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec
import torch

from specdec.errors import ConfigError


class DeviceMemory(Protocol):
    """What a device says of its memory."""

    def free_and_total(self) -> tuple[int, int]:
        """Bytes, whoever holds the rest."""
        ...

    def peak_of(self, work: Callable[[], None]) -> int:
        """Bytes that the work held at its peak beyond what was held before it."""
        ...


class CudaMemory:
    """As the driver and torch's allocator count it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free_and_total(self) -> tuple[int, int]:
        # What the allocator keeps for itself is free.
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)

    def peak_of(self, work: Callable[[], None]) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before


class Budget(msgspec.Struct, frozen=True):
    """Bytes of a device, and what they go to."""

    total: int
    allowed: int
    """By --gpu-memory-utilization."""
    taken: int
    step: int
    graphs: int = 0

    @property
    def pool(self) -> int:
        return self.allowed - self.taken - self.step - self.graphs


@contextmanager
def taking(what: str, *, flag: str, otherwise: str) -> Iterator[None]:
    """Take memory for `what`; raises ConfigError where the device has none left."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"the device's memory is too small for {what}; {otherwise} ({error})", flag=flag) from error


def check_weights_fit(memory: DeviceMemory, num_bytes: int, *, utilization: float, dtype: torch.dtype) -> None:
    """Before they are loaded. Raises ConfigError."""
    free, total = memory.free_and_total()
    available = int(total * utilization) - (total - free)
    if num_bytes < available:
        return
    advice = "a smaller model" if dtype.itemsize <= 2 else "--dtype bfloat16, or a smaller model"
    raise ConfigError(
        f"the weights take {gibibytes(num_bytes)} in {str(dtype).removeprefix('torch.')}, and of the device's "
        f"{gibibytes(total)}, of which {gibibytes(free)} are free, --gpu-memory-utilization {utilization:g} leaves "
        f"{gibibytes(max(0, available))}; raise it, take {advice}, or --device cpu",
        flag="--gpu-memory-utilization",
    )


def measure_budget(
    memory: DeviceMemory,
    largest_step: Callable[[], None],
    *,
    utilization: float,
    verification_bytes: int,
    graph_bytes: Callable[[], int] = lambda: 0,
) -> Budget:
    """Runs the step, and asks for the graphs' bytes after it. Raises ConfigError where there is no room for that."""
    advice = "lower --max-num-batched-tokens or --max-num-seqs"
    with taking("the largest step", flag="--max-num-batched-tokens", otherwise=advice):
        peak = memory.peak_of(largest_step)
    free, total = memory.free_and_total()
    with taking("captured graphs", flag="--enforce-eager", otherwise="do without by --enforce-eager"):
        graphs = graph_bytes()
    return Budget(
        total=total,
        allowed=int(total * utilization),
        taken=total - free,
        step=peak + verification_bytes,
        graphs=graphs,
    )


def check_pool_fits(budget: Budget, least_bytes: int, *, utilization: float, max_num_batched_tokens: int) -> None:
    """Raises ConfigError for a pool of less than least_bytes."""
    if budget.pool >= least_bytes:
        return
    raise ConfigError(
        f"no room for a KV cache: of the device's {gibibytes(budget.total)} --gpu-memory-utilization "
        f"{utilization:g} allows {gibibytes(budget.allowed)}; weights and what else is there take "
        f"{gibibytes(budget.taken)}, a step of {max_num_batched_tokens} tokens {gibibytes(budget.step)}, captured "
        f"graphs {gibibytes(budget.graphs)}, and the cache needs {gibibytes(least_bytes)} or more; "
        "lower --max-num-batched-tokens or --max-num-seqs, raise --gpu-memory-utilization, or take a smaller --dtype "
        "or model",
        flag="--gpu-memory-utilization",
    )


def gibibytes(num_bytes: int) -> str:
    """As a person reads it."""
    return f"{num_bytes / 2**30:.2f} GiB"
