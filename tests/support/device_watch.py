"""DeviceWatch: a second device on a machine that has none, for whoever mixes tensors of two or forgets to say where.

On the CPU everything is in one memory, so what a GPU would refuse works. Under the watch every tensor has a place:
DEVICE is where the model is said to run, HOST everything else; both are CPU memory. A tensor is where the `device=` of
its making says, or where what it was worked out from is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

HOST = torch.device("cpu")
DEVICE = torch.device("cpu", 0)

_MAKERS = _device_constructors()
_MOVERS = {Tensor.to, Tensor.pin_memory}
_WAITS = {
    Tensor.tolist,
    Tensor.item,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__bool__,
    Tensor.__index__,
    Tensor.numpy,
    Tensor.cpu,
    Tensor.nonzero,
    torch.nonzero,
    Tensor.masked_select,
    torch.masked_select,
    Tensor.unique,
    torch.equal,
}
_REPEATS = {Tensor.repeat_interleave, torch.repeat_interleave}
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}


class MisplacedError(AssertionError):
    """What no GPU would take, or would take by a copy that nobody asked for."""


class DeviceWatch(TorchFunctionMode):
    """Raises MisplacedError for a step's tensor without a place, and for an operator on tensors of both places."""

    def __init__(self) -> None:
        super().__init__()
        self.is_strict = False
        """Whether a tensor must be told where to be: not while weights are loaded and tables made."""
        self.waits: list[str] = []
        """For each time that the host asked for what is on the device, the function that did."""
        self.num_checked = 0

    # Any: torch's own signature.
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return _place(args[0])
        caller = sys._getframe(1).f_globals.get("__name__", "")
        # A kernel's reference stands for the kernel: what goes in was checked by its wrapper, by the device of each.
        is_kernel = caller.startswith("specdec.kernels.")
        given = list(_tensors((args, kwargs)))
        place = DEVICE if any(_place(each) == DEVICE for each in given) else HOST
        if not is_kernel:
            self.num_checked += 1
            self._check(func, args, given)
        if func in _MAKERS:
            device = kwargs.get("device")
            if device is None and self.is_strict and not is_kernel:
                raise MisplacedError(f"{_name(func)} in {_caller()} says no device=")
            place = HOST if device is None else _as_place(device)
        elif func in _MOVERS:
            devices = [each for each in (*args[1:], *kwargs.values()) if isinstance(each, torch.device)]
            place = _as_place(devices[0]) if devices else place
        elif func in _WAITS and place == DEVICE and not is_kernel:
            self.waits.append(_caller())
            place = HOST if func is Tensor.cpu else place
        elif func in _REPEATS and place == DEVICE and len(given) > 1 and "output_size" not in kwargs:
            # How many there will be is on the device.
            self.waits.append(_caller())
        elif func is Tensor.copy_:
            place = _place(args[0])
        result = func(*args, **kwargs)
        if func is Tensor.cpu and result is args[0]:
            # Where there are two devices, what comes of a copy is another tensor.
            result = result.clone()
        for each in _tensors(result):
            each._place = place
        return result

    def _check(self, func, args, given):
        if func in _INDEXING and _place(args[0]) == DEVICE:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(each, list | np.ndarray) for each in parts):
                raise MisplacedError(f"{_caller()} indexes a tensor of the device with a list, which is copied there")
            if any(isinstance(each, Tensor) and each.dtype is torch.bool for each in parts):
                self.waits.append(_caller())
        if func is Tensor.copy_:
            return
        # As CUDA does, a number in a tensor is taken from either place.
        places = {_place(each) for each in given if each.ndim > 0 or _place(each) == DEVICE}
        if len(places) > 1:
            raise MisplacedError(f"{_name(func)} in {_caller()} is given tensors of the host and of the device")


def _place(tensor: Tensor) -> torch.device:
    return getattr(tensor, "_place", HOST)


def _as_place(device: torch.device | str) -> torch.device:
    return DEVICE if torch.device(device) == DEVICE else HOST


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _name(func: object) -> str:
    return getattr(func, "__name__", repr(func))


def _caller() -> str:
    """The innermost function that is not torch's or this file's."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").startswith("torch") or frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
