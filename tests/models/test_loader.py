import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from specdec.errors import CheckpointError
from specdec.models.loader import load_weights


def poisoned_slots(tensors, dtype=torch.float32):
    return {key: torch.full(tensor.shape, torch.nan, dtype=dtype) for key, tensor in tensors.items()}


def stored(folder):
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


@pytest.mark.parametrize("fixture", ["tiny_model_folder", "tiny_untied_folder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_key_arrives_in_its_slot_converted(request, fixture, dtype):
    folder = request.getfixturevalue(fixture)
    expected = stored(folder)
    slots = poisoned_slots(expected, dtype)
    load_weights(folder, slots)
    for key, tensor in expected.items():
        torch.testing.assert_close(slots[key], tensor.to(dtype), rtol=0, atol=0)


def test_views_of_a_fused_tensor_are_filled_in_place(tmp_path):
    query, key = torch.randn(6, 4), torch.randn(2, 4)
    save_file({"q": query, "k": key}, tmp_path / "model.safetensors")
    fused = torch.full((9, 4), torch.nan)
    load_weights(tmp_path, {"q": fused[:6], "k": fused[6:8]})
    assert torch.equal(fused[:8], torch.cat([query, key]))
    assert fused[8].isnan().all()


def test_progress_ends_at_the_total_and_never_falls(tiny_untied_folder):
    seen = []
    slots = poisoned_slots(stored(tiny_untied_folder))
    load_weights(tiny_untied_folder, slots, progress=lambda done, total: seen.append((done, total)))
    num_bytes = sum(slot.numel() * slot.element_size() for slot in slots.values())
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (num_bytes, num_bytes)
    assert len(seen) == len(slots)


def test_each_fault_is_named_and_nothing_is_copied(tmp_path):
    save_file(
        {
            "right": torch.zeros(2),
            "narrow": torch.zeros(2, 3),
            "extra": torch.zeros(1),
            "int": torch.ones(2).int(),
        },
        tmp_path / "model.safetensors",
    )
    slots = poisoned_slots(
        {
            "right": torch.zeros(2),
            "narrow": torch.zeros(3, 2),
            "absent": torch.zeros(1),
            "int": torch.zeros(2),
        }
    )
    with pytest.raises(CheckpointError) as caught:
        load_weights(tmp_path, slots)
    message = str(caught.value)
    assert "missing (1): absent" in message
    assert "unused (1): extra" in message
    assert "narrow is [2, 3], the model's [3, 2]" in message
    assert "int is I32" in message
    assert slots["right"].isnan().all()


def test_hundreds_of_names_are_shortened_and_counted(tmp_path):
    save_file({f"key.{n:03d}": torch.zeros(1) for n in range(300)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_weights(tmp_path, {})
    message = str(caught.value)
    assert "unused (300): key.000" in message
    assert "280 more" in message
    assert "key.299" in message
    assert len(message) < 1000


def test_ignored_patterns_match_whole_keys_only(tmp_path):
    save_file(
        {"layer.rotary.inv_freq": torch.zeros(1), "layer.rotary.inv_freq.more": torch.zeros(1)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"unused \(1\): layer\.rotary\.inv_freq\.more"):
        load_weights(tmp_path, {}, ignored=[re.compile(r".*\.inv_freq")])


def test_a_folder_of_pickles_is_refused_with_the_reason(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*pickle"):
        load_weights(tmp_path, {})


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load_weights(tmp_path, {})


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        load_weights(tmp_path, {"a": torch.zeros(100)})


@pytest.mark.parametrize(
    ("weight_map", "named"),
    [
        ({"a": "absent.safetensors"}, "absent.safetensors"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "do not hold: b"),
        ({"a": "../one.safetensors"}, "'../one.safetensors'"),
        ({"a": "one.bin"}, "'one.bin'"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "a is stored in more than one shard"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, weight_map, named):
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"a": torch.zeros(1), "c": torch.zeros(1)}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        load_weights(tmp_path, {"a": torch.zeros(1), "c": torch.zeros(1)})
    assert named in str(caught.value)
