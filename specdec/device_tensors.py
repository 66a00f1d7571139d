"""Numbers of a step between the host and where the model runs: one copy each way, for as many lists as there are."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from itertools import accumulate
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Any array of numbers: its dtype says which.
_Array: TypeAlias = NDArray[np.generic]
Numbers: TypeAlias = AbstractSequence[float] | _Array
"""As a host lists them."""
Parts: TypeAlias = dict[str, tuple[type[np.generic], Numbers]]
"""Numbers by what they are called, each with the dtype that they are to have on the device."""

TORCH_DTYPES: Final[dict[type[np.generic], torch.dtype]] = {
    np.bool_: torch.bool,
    np.uint8: torch.uint8,
    np.int32: torch.int32,
    np.int64: torch.int64,
    np.float32: torch.float32,
    np.float64: torch.float64,
}
_NUMPY_DTYPES: Final = {ours: theirs for theirs, ours in TORCH_DTYPES.items()}
ALIGNMENT: Final = 64
"""Bytes, at a multiple of which each part begins: Triton compiles a kernel once more for a less aligned pointer."""


def on_device(device: torch.device, dtype: type[np.generic], *parts: Numbers) -> tuple[Tensor, ...]:
    """Each part as a contiguous tensor on the device, [len(part)] of the dtype."""
    return together_on_device(device, *((dtype, part) for part in parts))


def together_on_device(device: torch.device, *parts: tuple[type[np.generic], Numbers]) -> tuple[Tensor, ...]:
    """As on_device, each part of a dtype of its own."""
    if device.type == "cpu":
        return tuple(torch.as_tensor(np.array(part, dtype=dtype), device=device) for dtype, part in parts)
    packed_bytes, places = packed(parts)
    moved = array_on_device(device, packed_bytes)
    return tuple(
        # Where all parts are empty, the stride of no bytes is 0, of which torch makes no wider numbers.
        moved[place].view(TORCH_DTYPES[dtype])
        if len(part)
        else torch.empty(0, dtype=TORCH_DTYPES[dtype], device=device)
        for place, (dtype, part) in zip(places, parts, strict=True)
    )


def named_on_device(device: torch.device, parts: Parts) -> dict[str, Tensor]:
    """As together_on_device, by name."""
    return dict(zip(parts, together_on_device(device, *parts.values()), strict=True))


def packed(parts: AbstractSequence[tuple[type[np.generic], Numbers]]) -> tuple[NDArray[np.uint8], list[slice]]:
    """All parts in one array of bytes, and where each is."""
    sizes = [len(part) * np.dtype(dtype).itemsize for dtype, part in parts]
    starts = list(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))
    all_bytes = np.zeros(starts[-1], dtype=np.uint8)
    places = [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    for place, (dtype, part) in zip(places, parts, strict=True):
        all_bytes[place].view(dtype)[:] = part
    return all_bytes, places


def array_on_device(device: torch.device, array: _Array) -> Tensor:
    """The array on the device, without waiting for it; where that is the host, in the array's own memory."""
    if device.type == "cpu" or not array.size:
        return torch.as_tensor(array, device=device)
    # Out of pinned memory: a copy out of pageable would wait for the device.
    return torch.as_tensor(array, device="cpu").pin_memory().to(device, non_blocking=True)


def as_bytes(tensors: AbstractSequence[Tensor]) -> Tensor:
    """uint8: the bytes of all of them, one after the other, so that one copy brings them to the host."""
    return torch.cat([each.flatten().view(torch.uint8) for each in tensors])


class HostCopy:
    """Tensors on their way to the host, by one copy that comes behind all that the device was asked for before."""

    __slots__ = ("_arrived", "_bytes", "_tensors")

    def __init__(self, device: torch.device, joined: Tensor, tensors: AbstractSequence[Tensor]) -> None:
        """joined uint8, what `as_bytes` makes of the tensors; where that is the host it stays as it is until asked."""
        self._tensors = tensors
        self._bytes = joined
        self._arrived: torch.cuda.Event | None = None
        if device.type == "cuda":
            # Into pinned memory, or the copy would be waited for; it is not given to another while the copy is made.
            host = torch.empty(joined.shape, dtype=torch.uint8, device="cpu", pin_memory=True)
            self._bytes = host.copy_(joined, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._arrived.record(torch.cuda.current_stream(device))

    def has_arrived(self) -> bool:
        """Whether `arrays` has nothing to wait for."""
        return self._arrived is None or bool(self._arrived.query())  # type: ignore[no-untyped-call]

    def arrays(self) -> list[_Array]:
        """Each tensor's numbers; waits for them, and for nothing that the device was asked for after them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return taken_apart(self._bytes.cpu().numpy(), self._tensors)


def taken_apart(host_bytes: NDArray[np.uint8], tensors: AbstractSequence[Tensor]) -> list[_Array]:
    """Each tensor's numbers, of what `as_bytes` made of them."""
    arrays: list[_Array] = []
    start = 0
    for each in tensors:
        end = start + each.numel() * each.element_size()
        arrays.append(host_bytes[start:end].view(_NUMPY_DTYPES[each.dtype]).reshape(each.shape))
        start = end
    return arrays
