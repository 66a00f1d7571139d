"""BenchDevice: where a bench runs, and how time is taken there."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psutil
import torch

from specdec.kernels.dispatch import HAS_TRITON, INTERPRETED

_NUM_WARM_UP: Final = 3
"""Calls before any is timed: kernels are compiled, allocators and caches filled."""
_FLUSH_BYTES: Final = {"cuda": 2**29, "cpu": 2**27}
"""Written before each timed call, and read on a GPU: more than the caches hold, and there enough for the host to get
ahead."""
_MEMORY_SHARE: Final = 0.8
"""Of what is free, that the tensors of one measurement may take."""


class Launch(enum.Enum):
    """How a GPU comes by the kernels of a call that is timed. A CPU is called, and that is all."""

    AS_GRAPH = enum.auto()
    """The call is captured here and replayed: what the host takes to launch kernels does not count."""
    AS_IT_IS = enum.auto()
    """The call replays what was captured before."""
    ONE_BY_ONE = enum.auto()
    """The host launches each kernel while the device waits for it: that counts in full."""


class MissingDeviceError(Exception):
    """What is to be measured does not run on this machine; the message says what it needs."""


@dataclass(frozen=True, slots=True)
class BenchDevice:
    device: torch.device

    @classmethod
    def named(cls, name: str) -> BenchDevice:
        """`cpu`, or `cuda`, whose kernels need a GPU and triton. Raises MissingDeviceError."""
        refuse_interpreter()
        if name == "cuda" and not torch.cuda.is_available():
            raise MissingDeviceError(
                "the kernels need an NVIDIA GPU, its driver and a CUDA build of torch, and torch "
                f"{torch.__version__} finds no CUDA device here; --device cpu times what the engine runs in their "
                "place on a CPU"
            )
        if name == "cuda" and not HAS_TRITON:
            raise MissingDeviceError("the kernels need the triton package, which is not installed")
        return cls(torch.device(name))

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.is_gpu else "cpu"

    def has_room_for(self, num_bytes: int) -> bool:
        """Whether so much can be taken now, with some left over."""
        free = torch.cuda.mem_get_info(self.device)[0] if self.is_gpu else psutil.virtual_memory().available
        return num_bytes <= _MEMORY_SHARE * free

    def release(self) -> None:
        """Give back what freed tensors are kept in."""
        if self.is_gpu:
            torch.cuda.empty_cache()

    def times_ms(self, call: Callable[[], object], repeats: int, launch: Launch = Launch.AS_GRAPH) -> list[float]:
        """Of as many calls, each with cold caches; on a GPU by events."""
        flush = torch.empty(_FLUSH_BYTES[self.device.type], dtype=torch.uint8, device=self.device)
        if not self.is_gpu:
            return _times_on_host(call, flush, repeats)
        if launch is Launch.ONE_BY_ONE:
            return _times_one_by_one(call, flush, repeats)
        return _times_of_replays(_captured(call) if launch is Launch.AS_GRAPH else call, flush, repeats)


def refuse_interpreter() -> None:
    """Raises MissingDeviceError where kernels would run in Triton's interpreter: its times say nothing of theirs."""
    if INTERPRETED:
        raise MissingDeviceError("TRITON_INTERPRET is set, and the interpreter's times are nobody's; unset it")


def _times_on_host(call: Callable[[], object], flush: torch.Tensor, repeats: int) -> list[float]:
    times = []
    for i in range(_NUM_WARM_UP + repeats):
        flush.zero_()
        begin = time.perf_counter()
        call()
        seconds = time.perf_counter() - begin
        if i >= _NUM_WARM_UP:
            times.append(1000 * seconds)
    return times


def _captured(call: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves both untyped
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_NUM_WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _times_of_replays(replay: Callable[[], object], flush: torch.Tensor, repeats: int) -> list[float]:
    pairs = [(_event(), _event()) for _ in range(repeats)]
    replay()
    for begin, end in pairs:
        _flush(flush)
        begin.record()
        replay()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairs]


def _times_one_by_one(call: Callable[[], object], flush: torch.Tensor, repeats: int) -> list[float]:
    pairs = [(_event(), _event()) for _ in range(repeats)]
    for _ in range(_NUM_WARM_UP):
        call()
    for begin, end in pairs:
        _flush(flush)
        # Or the host would get ahead of the device, which then waits for less than it does.
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairs]


def _flush(memory: torch.Tensor) -> None:
    """Fill the caches with it, as read: what was only written would be written back during the call."""
    memory.zero_()
    memory.view(torch.int64).sum()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
