"""ModelRunner: spans of tokens to packed tensors, through a model, to logits.

T packed tokens, R logits rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.attention import AttentionBackend, Span
from specdec.device_tensors import on_device
from specdec.kv_cache import KVCache
from specdec.logits_buffer import LogitsBuffer
from specdec.models.llama import LlamaModel

_HEAD_ROWS = 128
"""Rows of logits worked out at once, in the model's dtype, before they are fp32: more are no faster."""


class ModelRunner:
    """One model with its view of the KV arena; the target and the draft have one each."""

    def __init__(
        self,
        model: LlamaModel,
        cache: KVCache,
        # Which plan a backend makes is its own business.
        attention: AttentionBackend[Any],
    ) -> None:
        self.model = model
        self.device: torch.device = model.device
        self._cache = cache
        self._attention = attention

    @torch.inference_mode()
    def forward(self, spans: Sequence[Span], buffer: LogitsBuffer | None = None) -> Tensor:
        """Write the spans' KV; logits fp32 [R, V] of the tokens that want them, in the order of the spans.

        They lie in the buffer, or in memory of their own.
        """
        token_ids: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        for span in spans:
            token_ids += span.token_ids
            positions += range(span.start_position, span.context_len)
            rows += range(len(token_ids) - span.num_logits, len(token_ids))
        config = self.model.config
        plan = self._attention.plan(
            spans,
            block_size=self._cache.block_size,
            num_groups=config.num_attention_heads // config.num_key_value_heads,
            dtype=self.model.dtype,
        )
        ids, places, logits_rows = on_device(self.device, np.int64, token_ids, positions, rows)
        hidden = self.model.forward(ids, places, logits_rows, self._cache, self._attention, plan)
        logits = (buffer or LogitsBuffer(self.device)).rows(len(rows), config.vocab_size)
        for start in range(0, len(rows), _HEAD_ROWS):
            logits[start : start + _HEAD_ROWS] = self.model.logits(hidden[start : start + _HEAD_ROWS])
        return logits

    @torch.inference_mode()
    def forward_drawn(self, spans: Sequence[Span], token_ids: Tensor, buffer: LogitsBuffer) -> Tensor:
        """As `forward` of spans of one token each, which are those in int64 [T] on the device, whatever the spans say.

        So nothing waits for what an earlier pass led to.
        """
        config = self.model.config
        plan = self._attention.plan(
            spans,
            block_size=self._cache.block_size,
            num_groups=config.num_attention_heads // config.num_key_value_heads,
            dtype=self.model.dtype,
        )
        positions = [span.start_position for span in spans]
        places, logits_rows = on_device(self.device, np.int64, positions, range(len(spans)))
        hidden = self.model.forward(token_ids, places, logits_rows, self._cache, self._attention, plan)
        logits = buffer.rows(len(spans), config.vocab_size)
        for start in range(0, len(spans), _HEAD_ROWS):
            logits[start : start + _HEAD_ROWS] = self.model.logits(hidden[start : start + _HEAD_ROWS])
        return logits

    def wait(self) -> None:
        """Until the device has done all that was asked of it; before that, a clock tells nothing of a pass."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
