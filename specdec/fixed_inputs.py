"""FixedInputs: numbers of a step in places on the device that never change, where captured graphs read them.

The host lists a step's numbers in pinned memory and sends them by one copy. That memory is used in turns: when the next
step's numbers are listed, the copy of the last may still be under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.device_tensors import ALIGNMENT, TORCH_DTYPES, Parts, named_on_device

_NUM_TURNS: Final = 4
"""How many copies may be under way before the host waits for the first: a draft model's passes are sent one after the
other, without a look at the device."""


class InputPart(NamedTuple):
    """Some numbers of a step, as many as its graph has room for."""

    dtype: type[np.generic]
    size: int
    fill: float | None = 0
    """What stands in places that a step leaves free; None is the last number that it lists."""


class InputLayout:
    """Parts of one graph, one after the other from the start of the memory."""

    def __init__(self, parts: Mapping[str, InputPart], memory: Tensor, hosts: list[NDArray[np.uint8]]) -> None:
        self.parts = dict(parts)
        self.tensors: dict[str, Tensor] = {}
        """On the device, each of its part's whole size."""
        self.arrays: list[dict[str, NDArray[Any]]] = [{} for _ in hosts]
        """The same on the host, in each turn's memory."""
        end = 0
        for name, part in self.parts.items():
            place = slice(end, end + part.size * np.dtype(part.dtype).itemsize)
            self.tensors[name] = memory[place].view(TORCH_DTYPES[part.dtype])
            for host, arrays in zip(hosts, self.arrays, strict=True):
                arrays[name] = host[place].view(part.dtype)
            end = _aligned(place.stop)
        self.num_bytes = end


class FixedInputs:
    """Of graphs that are replayed one after the other, in the order in which their numbers were sent."""

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        """`num_bytes` are room for the largest layout, and for what goes along with it."""
        self._device = device
        self._memory = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._turns = [_Turn(device, num_bytes) for _ in range(_NUM_TURNS)]
        self._next = 0

    def layout(self, parts: Mapping[str, InputPart]) -> InputLayout:
        """Where each of the parts is from now on, whenever they are sent."""
        layout = InputLayout(parts, self._memory, [turn.array for turn in self._turns])
        assert layout.num_bytes <= len(self._memory), "there is room for the largest"
        return layout

    def send(self, layout: InputLayout, parts: Parts) -> dict[str, Tensor]:
        """Copy parts to the device without waiting: the layout's, each at the beginning of its place, and others.

        Returns the others' tensors, valid until the next call as all that is sent. They go along in the one copy, or in
        another where there are too many.
        """
        index = self._next
        self._next = (index + 1) % _NUM_TURNS
        turn = self._turns[index]
        turn.wait()
        arrays = layout.arrays[index]
        for name, (_, size, fill) in layout.parts.items():
            own, array = parts[name][1], arrays[name]
            count = len(own)
            array[:count] = own
            if count < size:
                array[count:] = own[count - 1] if fill is None else fill
        if len(parts) == len(layout.parts):
            turn.send(self._memory, layout.num_bytes)
            return {}
        others = {name: part for name, part in parts.items() if name not in layout.parts}
        places: dict[str, slice] = {}
        end = layout.num_bytes
        for name, (dtype, numbers) in others.items():
            places[name] = slice(end, end + len(numbers) * np.dtype(dtype).itemsize)
            end = _aligned(places[name].stop)
        if end > len(turn.array):
            turn.send(self._memory, layout.num_bytes)
            return named_on_device(self._device, others)
        for name, (dtype, numbers) in others.items():
            turn.array[places[name]].view(dtype)[:] = numbers
        turn.send(self._memory, end)
        return {name: self._memory[places[name]].view(TORCH_DTYPES[dtype]) for name, (dtype, _) in others.items()}


class _Turn:
    """Memory of the host that a copy reads from until its event has come."""

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        is_cuda = device.type == "cuda"
        self._tensor = torch.zeros(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=is_cuda)
        self.array: NDArray[np.uint8] = self._tensor.numpy()
        self._copied: torch.cuda.Event | None = None
        if is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def wait(self) -> None:
        """Until the last copy out of it is done; before the first, there is nothing to wait for."""
        if self._copied is not None:
            self._copied.synchronize()

    def send(self, memory: Tensor, num_bytes: int) -> None:
        """On the current stream; memory uint8 of the device."""
        memory[:num_bytes].copy_(self._tensor[:num_bytes], non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def num_bytes_of(parts: Mapping[str, InputPart]) -> int:
    """What a layout of them takes."""
    return sum(_aligned(part.size * np.dtype(part.dtype).itemsize) for part in parts.values())


def _aligned(num_bytes: int) -> int:
    """The next place at which a part may begin."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
