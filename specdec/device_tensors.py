"""Numbers of a step from the host to where the model runs: one copy, for as many lists as there are."""

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

_ALIGNMENT: Final = 16
"""Numbers, at a multiple of which each part begins: Triton compiles a kernel once more for a less aligned pointer."""


def on_device(
    device: torch.device, dtype: type[np.generic], *parts: AbstractSequence[float] | _Array
) -> tuple[Tensor, ...]:
    """Each part as a contiguous tensor on the device, [len(part)] of the dtype."""
    if device.type == "cpu":
        return tuple(torch.as_tensor(np.array(part, dtype=dtype), device=device) for part in parts)
    numbers, places = packed(dtype, parts)
    moved = array_on_device(device, numbers)
    return tuple(moved[place] for place in places)


def packed(
    dtype: type[np.generic], parts: AbstractSequence[AbstractSequence[float] | _Array]
) -> tuple[_Array, list[slice]]:
    """All parts in one array, and where each is."""
    sizes = [len(part) for part in parts]
    starts = list(accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0))
    numbers = np.zeros(starts[-1], dtype=dtype)
    places = [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    for place, part in zip(places, parts, strict=True):
        numbers[place] = part
    return numbers, places


def array_on_device(device: torch.device, array: _Array) -> Tensor:
    """The array on the device, without waiting for it; where that is the host, in the array's own memory."""
    if device.type == "cpu" or not array.size:
        return torch.as_tensor(array, device=device)
    # A copy out of pageable memory waits for the device.
    return torch.as_tensor(array, device="cpu").pin_memory().to(device, non_blocking=True)
