"""One pass of a model: from token ids on its device to logits there, all of it by what is on the device.

T packed tokens, R logits rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from specdec.attention import AttentionBackend
from specdec.kv_cache import KVCache
from specdec.models.llama import LlamaModel

_CPU_HEAD_ROWS: Final = 128
"""Rows of logits worked out at once, in the model's dtype, before they are fp32: more are no faster."""
_GPU_HEAD_ROWS: Final = 512
"""The same, where up to 250 rows or so take no longer than reading the head once: as many as a pass has drafts for."""


def run_pass(
    model: LlamaModel,
    cache: KVCache,
    # The plan's type is the backend's own.
    attention: AttentionBackend[Any],
    plan: object,
    *,
    token_ids: Tensor,
    positions: Tensor,
    logits_rows: Tensor,
    logits: Tensor,
) -> None:
    """token_ids, positions int64 [T], logits_rows int64 [R] -> KV into the cache, logits fp32 [R, V]."""
    hidden = model.forward(token_ids, positions, logits_rows, cache, attention, plan)
    step = _CPU_HEAD_ROWS if logits.device.type == "cpu" else _GPU_HEAD_ROWS
    for start in range(0, len(logits_rows), step):
        logits[start : start + step] = model.logits(hidden[start : start + step])
