"""KVScales: what the numbers of a model's cache of fp8 are multiplied by, per layer and head.

They are 1 unless a checkpoint brings others, calibrated: a number for each layer, or for each of its heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from specdec.errors import CheckpointError

SCALE_KEYS: Final = re.compile(r"model\.layers\.\d+\.self_attn\.[kv]_scale")
"""Of a checkpoint, wherever its caches are not of fp8 nobody's business."""


class KVScales:
    """`layers[i]` is (key scales, value scales), each fp32 [H] at a place of its own."""

    def __init__(self, num_layers: int, num_heads: int, device: torch.device) -> None:
        def ones() -> Tensor:
            return torch.ones(num_heads, dtype=torch.float32, device=device)

        self.layers = [(ones(), ones()) for _ in range(num_layers)]
        self._slots: dict[str, tuple[Tensor, Tensor]] = {}
        """By key: what a loader fills, and what that is copied to."""

    def slots(self, stored: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Of the keys that a checkpoint has, with the shape each has there."""
        for i, scales in enumerate(self.layers):
            for letter, scale in zip("kv", scales, strict=True):
                key = f"model.layers.{i}.self_attn.{letter}_scale"
                if key in stored:
                    self._slots[key] = torch.empty(tuple(stored[key]), dtype=torch.float32), scale
        return {key: slot for key, (slot, _) in self._slots.items()}

    def finish_loading(self) -> None:
        """Take over what the slots were filled with. Raises CheckpointError for what is no scale."""
        for key, (slot, scale) in self._slots.items():
            if slot.numel() not in {1, scale.numel()}:
                raise CheckpointError(
                    f"{key} is {list(slot.shape)}; it must be one number, or one for each of {scale.numel()} heads"
                )
            if not bool(((slot > 0) & slot.isfinite()).all()):
                raise CheckpointError(f"{key} has {slot.flatten().tolist()}; a scale must be finite and above 0")
            scale.copy_(slot.flatten().expand(scale.shape))
        self._slots = {}
