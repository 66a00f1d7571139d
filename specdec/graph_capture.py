"""GraphCapture: work on a device that is recorded once and replayed by one call, whatever its kernels are.

What is recorded reads and writes the same tensors every time. It takes no numbers from the host: what changes from one
replay to the next is in those tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch

Work: TypeAlias = Callable[[], None]


class GraphCapture(Protocol):
    """Graphs that are never replayed at the same time; they share the memory of what is between."""

    def capture(self, work: Work) -> Work:
        """Run the work, and return what replays it. Raises RuntimeError where the device refuses."""
        ...


class CudaGraphCapture:
    """CUDA graphs in one pool of memory."""

    _NUM_RUNS_BEFORE = 2
    """The first compiles kernels and loads libraries', which cannot be recorded."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _side_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    # The first capture of all makes tensors for random numbers, and each capture fills them: all in one mode.
    @torch.inference_mode()
    def capture(self, work: Work) -> Work:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(self._NUM_RUNS_BEFORE):
                work()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        _drop_workspaces()
        try:
            # Other threads may ask the driver for what a capture of the whole process would forbid them.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        finally:
            _drop_workspaces()
            # A capture that fails leaves its stream as the current one.
            torch.cuda.set_stream(current)
        # The first replay uploads the graph; what the device has against it comes out here.
        graph.replay()
        torch.cuda.synchronize(self._device)
        return graph.replay


def _drop_workspaces() -> None:
    """Let the next product take its workspace anew: in a capture out of the graphs' own pool, which lasts as they do.

    A graph holds the address of its products' workspace. torch keeps one for each stream, and may free it with any
    graph that was captured on that stream, while the others go on writing there (pytorch/pytorch#193402).
    """
    torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001, as torch's own graph trees do


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: torch has a few dozen, and engines come and go."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


class RepeatCapture:
    """Runs the work again: where there are no graphs, for the logic around them."""

    def capture(self, work: Work) -> Work:
        work()
        return work


def first_cause(error: BaseException) -> BaseException:
    """What came before all else: a capture that was broken off fails once more where it ends."""
    return error if error.__context__ is None else first_cause(error.__context__)
