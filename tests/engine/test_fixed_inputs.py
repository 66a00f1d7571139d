"""Fixed inputs: what is sent is where a graph reads it, whatever was there before and however far the host is ahead."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec import fixed_inputs
from specdec.fixed_inputs import FixedInputs, InputPart, _Turn, num_bytes_of

PARTS = {
    "ids": InputPart(np.int64, 5),
    "starts": InputPart(np.int32, 4, fill=None),
    "flags": InputPart(np.bool_, 3),
    "numbers": InputPart(np.float64, 2, fill=-1.5),
}
FEWER = {"numbers": InputPart(np.float32, 3, fill=2.0), "ids": InputPart(np.int64, 1)}


@pytest.fixture(params=["cpu", pytest.param("cuda", id="gpu", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture
def copies(monkeypatch):
    """The bytes of each copy out of pinned memory."""
    sent = []
    send = _Turn.send
    monkeypatch.setattr(_Turn, "send", lambda *given: sent.append(given[-1]) or send(*given))
    return sent


def parts_of(ids, starts, flags, numbers):
    dtypes = {name: part.dtype for name, part in PARTS.items()}
    given = {"ids": ids, "starts": starts, "flags": flags, "numbers": numbers}
    return {name: (dtypes[name], own) for name, own in given.items()}


def lists_of(layout):
    return {name: tensor.tolist() for name, tensor in layout.tensors.items()}


def test_parts_are_in_the_same_places_every_time_and_filled_up(device):
    inputs = FixedInputs(device, num_bytes_of(PARTS))
    layout = inputs.layout(PARTS)
    places = [tensor.data_ptr() for tensor in layout.tensors.values()]
    assert all(place % 64 == 0 for place in places)
    assert inputs.send(layout, parts_of([7] * 5, [0, 1, 2, 3], [True] * 3, [0.5, 0.25])) == {}
    assert lists_of(layout) == {"ids": [7] * 5, "starts": [0, 1, 2, 3], "flags": [True] * 3, "numbers": [0.5, 0.25]}
    for _ in range(2 * fixed_inputs._NUM_TURNS):
        inputs.send(layout, parts_of([8, 9], np.array([0, 6]), [], [0.125]))
        assert lists_of(layout) == {
            "ids": [8, 9, 0, 0, 0],
            "starts": [0, 6, 6, 6],
            "flags": [False] * 3,
            "numbers": [0.125, -1.5],
        }
    assert [tensor.data_ptr() for tensor in layout.tensors.values()] == places


def test_layouts_take_turns_in_one_memory(device):
    inputs = FixedInputs(device, max(num_bytes_of(PARTS), num_bytes_of(FEWER)))
    one, other = inputs.layout(PARTS), inputs.layout(FEWER)
    for _ in range(3):
        inputs.send(one, parts_of([1], [0], [True], []))
        assert lists_of(one)["ids"] == [1, 0, 0, 0, 0]
        inputs.send(other, {"numbers": (np.float32, [4.0]), "ids": (np.int64, [3])})
        assert lists_of(other) == {"numbers": [4.0, 2.0, 2.0], "ids": [3]}


@pytest.mark.parametrize("room", [0, 64, 128])
def test_others_go_along_where_there_is_room(device, copies, room):
    inputs = FixedInputs(device, num_bytes_of(PARTS) + room)
    layout = inputs.layout(PARTS)
    others = {"rows": (np.int64, [4, 5]), "words": (np.int32, np.arange(3, dtype=np.int32)), "none": (np.float32, [])}
    given = inputs.send(layout, parts_of([1], [0], [True], [0.5]) | others)
    assert {name: tensor.tolist() for name, tensor in given.items()} == {"rows": [4, 5], "words": [0, 1, 2], "none": []}
    assert [each.dtype for each in given.values()] == [torch.int64, torch.int32, torch.float32]
    assert {each.device.type for each in given.values()} == {device.type}
    assert lists_of(layout)["ids"] == [1, 0, 0, 0, 0]
    assert copies == [num_bytes_of(PARTS) + (128 if room == 128 else 0)]


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 9)), max_size=12)
)
def test_nothing_is_left_of_earlier_steps(steps):
    inputs = FixedInputs(torch.device("cpu"), num_bytes_of(PARTS) + 64)
    layout = inputs.layout(PARTS)
    for number, (num_ids, num_starts, num_flags, num_others) in enumerate(steps, 1):
        parts = parts_of([number] * num_ids, range(num_starts), [True] * num_flags, [])
        given = inputs.send(layout, parts | ({"others": (np.int64, [number] * num_others)} if num_others else {}))
        assert lists_of(layout) == {
            "ids": [number] * num_ids + [0] * (5 - num_ids),
            "starts": [*range(num_starts), *[num_starts - 1] * (4 - num_starts)],
            "flags": [True] * num_flags + [False] * (3 - num_flags),
            "numbers": [-1.5, -1.5],
        }
        assert {name: each.tolist() for name, each in given.items()} == (
            {"others": [number] * num_others} if num_others else {}
        )


@pytest.mark.gpu
def test_a_host_far_ahead_overwrites_nothing_that_is_still_to_be_copied():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    parts = {"ids": InputPart(np.int64, 2**18)}
    inputs = FixedInputs(device, num_bytes_of(parts))
    layout = inputs.layout(parts)
    kept = torch.zeros(40, dtype=torch.int64, device=device)
    torch.cuda.synchronize()
    # So long that all copies are asked for before the first is made.
    torch.cuda._sleep(2 * 10**8)
    for number in range(40):
        inputs.send(layout, {"ids": (np.int64, np.full(2**18, number))})
        kept[number] = layout.tensors["ids"].sum()
    assert kept.tolist() == [number * 2**18 for number in range(40)]
