"""Safetensors checkpoints, copied key by key into tensors that already exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from specdec.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_STORED_DTYPES = {"F64", "F32", "F16", "BF16"}
_MAX_LISTED = 20

ProgressCallback = Callable[[int, int], None]
"""Called with (bytes copied so far, bytes in all)."""


class WeightLoader(Protocol):
    """Fills a model's slots as `load_weights` does; benchmarks fill them with numbers of their own."""

    def __call__(
        self,
        folder: Path,
        slots: Mapping[str, torch.Tensor],
        *,
        ignored: Iterable[re.Pattern[str]] = ...,
        progress: ProgressCallback | None = ...,
    ) -> None: ...


class _Slice(Protocol):
    """What safetensors tells of a tensor without reading it."""

    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class _Shard(Protocol):
    """An open safetensors file."""

    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> _Slice: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...


def load_weights(
    folder: Path,
    slots: Mapping[str, torch.Tensor],
    *,
    ignored: Iterable[re.Pattern[str]] = (),
    progress: ProgressCallback | None = None,
) -> None:
    """Copy every checkpoint key into its slot, converting the dtype, one tensor at a time.

    `slots` maps each expected key to its destination, which may be a view of a fused tensor on any device.
    Keys that fully match a pattern of `ignored` are skipped unless a slot wants them. All keys and shapes are
    checked before the first byte is copied. Raises CheckpointError naming every missing, unused or misshapen
    key.
    """
    patterns = tuple(ignored)
    with ExitStack() as stack:
        shard_of_key = _open_shards(folder, stack)
        _check(folder, slots, shard_of_key, patterns)
        num_bytes = sum(slot.numel() * slot.element_size() for slot in slots.values())
        num_copied = 0
        with torch.no_grad():
            for key, slot in slots.items():
                slot.copy_(shard_of_key[key].get_tensor(key))
                num_copied += slot.numel() * slot.element_size()
                if progress is not None:
                    progress(num_copied, num_bytes)


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Every key of a checkpoint with its shape. Raises CheckpointError."""
    with ExitStack() as stack:
        shards = _open_shards(folder, stack)
        return {key: list(shard.get_slice(key).get_shape()) for key, shard in shards.items()}


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by its index if it has one; raises CheckpointError without any."""
    index = folder / INDEX_FILE
    if index.is_file():
        return [folder / name for name in sorted(set(_weight_map(index).values()))]
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({_listed(pickled)}); reading a pickle runs code from it, "
            "so only safetensors are loaded: convert the checkpoint, or take its safetensors files"
        )
    raise CheckpointError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}")


def _weight_map(index: Path) -> dict[str, str]:
    class Index(msgspec.Struct):
        weight_map: dict[str, str]

    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=Index).weight_map
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{index} cannot be read: {error}") from error
    for name in set(weight_map.values()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names the shard {name!r}; a shard is a .safetensors file beside it")
    return weight_map


def _open_shards(folder: Path, stack: ExitStack) -> dict[str, _Shard]:
    """Every key that is stored, with the open file that holds it."""
    files = checkpoint_files(folder)
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise CheckpointError(f"{folder / INDEX_FILE} names files that are not there: {_listed(absent)}")
    shard_of_key: dict[str, _Shard] = {}
    for file in files:
        try:
            shard: _Shard = stack.enter_context(safe_open(str(file), framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is no readable safetensors file: {error}") from error
        for key in shard.keys():  # noqa: SIM118, a shard is no dict
            if key in shard_of_key:
                raise CheckpointError(f"{folder}: the key {key} is stored in more than one shard")
            shard_of_key[key] = shard
    index = folder / INDEX_FILE
    if index.is_file():
        lost = sorted(set(_weight_map(index)) - set(shard_of_key))
        if lost:
            raise CheckpointError(f"{index} names keys that its shards do not hold: {_listed(lost)}")
    return shard_of_key


def _check(
    folder: Path,
    slots: Mapping[str, torch.Tensor],
    shard_of_key: Mapping[str, _Shard],
    ignored: tuple[re.Pattern[str], ...],
) -> None:
    missing = sorted(set(slots) - set(shard_of_key))
    unused = sorted(
        key for key in set(shard_of_key) - set(slots) if not any(pattern.fullmatch(key) for pattern in ignored)
    )
    misshapen, foreign = [], []
    for key in sorted(set(slots) & set(shard_of_key)):
        stored = shard_of_key[key].get_slice(key)
        if list(stored.get_shape()) != list(slots[key].shape):
            misshapen.append(f"{key} is {list(stored.get_shape())}, the model's {list(slots[key].shape)}")
        if stored.get_dtype() not in _STORED_DTYPES:
            foreign.append(f"{key} is {stored.get_dtype()}")
    faults = [
        f"{title} ({len(found)}): {_listed(found)}"
        for title, found in (
            ("missing", missing),
            ("unused", unused),
            ("of another shape", misshapen),
            ("not stored as F64, F32, F16 or BF16", foreign),
        )
        if found
    ]
    if faults:
        raise CheckpointError(f"{folder} does not fit the model of its config.json; {'; '.join(faults)}")


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _MAX_LISTED:
        return ", ".join(names)
    half = _MAX_LISTED // 2
    return f"{', '.join(names[:half])}, ... {len(names) - 2 * half} more ..., {', '.join(names[-half:])}"
