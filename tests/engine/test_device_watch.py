"""The watch sees what a GPU would refuse; without that its silence says nothing."""

import numpy as np
import pytest
import torch
from device_watch import DEVICE, HOST, DeviceWatch, MisplacedError


@pytest.fixture
def watch():
    with DeviceWatch() as watch:
        watch.is_strict = True
        yield watch


def there(*sizes):
    return torch.zeros(*sizes, device=DEVICE)


def here(*sizes):
    return torch.zeros(*sizes, device=HOST)


MISPLACED = {
    "a tensor of a list without a place": lambda: torch.tensor([1]),
    "zeros without a place": lambda: torch.zeros(3),
    "a range without a place": lambda: torch.arange(3),
    "memory without a place": lambda: torch.empty(3, dtype=torch.int32),
    "an array without a place": lambda: torch.as_tensor(np.zeros(3)),
    "a sum of both": lambda: there(3) + here(3),
    "a sum of both, in place": lambda: there(3).add_(here(3)),
    "a part of a pair": lambda: torch.cat([there(3), here(3)]),
    "an index of the host": lambda: there(3)[torch.tensor([0], device=HOST)],
    "a list as an index": lambda: there(3)[[0]],
    "a list as an index in a pair": lambda: there(3, 3)[:, [0]],
    "a list as the index of what is set": lambda: there(3).__setitem__([0], 1.0),
    "what is set": lambda: there(3).__setitem__(slice(0, 1), here(1)),
    "a view of what is there": lambda: there(3, 3)[0].view(3) * here(3),
    "what is worked out from it": lambda: torch.where(there(3) > 0, there(3), 1.0) + here(3),
    "what is like it": lambda: torch.empty_like(there(3)) + here(3),
    "what is new beside it": lambda: there(3).new_zeros(3) + here(3),
    "what says its device": lambda: torch.zeros(3, device=there(3).device) + here(3),
    "an argument of the library's functions": lambda: torch.nn.functional.embedding(
        torch.tensor([0], device=HOST), there(3, 3)
    ),
}


@pytest.mark.parametrize("work", MISPLACED.values(), ids=MISPLACED.keys())
def test_what_a_gpu_would_refuse_is_an_error(watch, work):
    with pytest.raises(MisplacedError):
        work()


WELL_PLACED = {
    "a sum there": lambda: there(3) + there(3),
    "a number": lambda: there(3) * 2.0 + 1,
    "a number of the host in a tensor": lambda: there(3) * torch.tensor(2.0, device=HOST),
    "a copy there": lambda: here(3).to(DEVICE) + there(3),
    "a copy into what is there": lambda: there(3).copy_(here(3)) + there(3),
    "a copy of another type": lambda: there(3).to(torch.float64) + there(3).double(),
    "an index there": lambda: there(3)[torch.tensor([0], device=DEVICE)],
}


@pytest.mark.parametrize("work", WELL_PLACED.values(), ids=WELL_PLACED.keys())
def test_what_a_gpu_would_take_is_none(watch, work):
    assert work().device == DEVICE


def test_a_place_is_not_asked_for_before_the_steps():
    with DeviceWatch():
        assert torch.zeros(3).device == HOST
        with pytest.raises(MisplacedError):
            there(3) + torch.zeros(3)


def test_waits_are_counted_where_they_are(watch):
    tensor = there(3)
    tensor.tolist()
    float(tensor[0])
    tensor.nonzero()
    _ = tensor[tensor > 0]
    twice = torch.full((3,), 2, device=DEVICE)
    tensor.repeat_interleave(twice)
    tensor.repeat_interleave(twice, output_size=6)
    here(3).tolist()
    assert len(watch.waits) == 5
    assert {name.rpartition(".")[2] for name in watch.waits} == {"test_waits_are_counted_where_they_are"}
