"""ModelRunner: spans of tokens to packed tensors, through a model, to logits.

T packed tokens, D of them drawn on the device, R logits rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.attention import AttentionBackend, Span
from specdec.captured_passes import CapturedPasses
from specdec.device_tensors import on_device
from specdec.graph_buckets import GraphBucket
from specdec.graph_capture import GraphCapture
from specdec.kv_cache import KVCache
from specdec.logits_buffer import LogitsBuffer
from specdec.model_pass import run_pass
from specdec.models.llama import LlamaModel
from specdec.triton_attention import TritonAttention


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
        self.logits = LogitsBuffer(model.device)
        """For whoever steps the model; where captured passes leave theirs."""
        self._cache = cache
        self._attention = attention
        self._captured: CapturedPasses | None = None

    @property
    def cache(self) -> KVCache:
        return self._cache

    @property
    def attention(self) -> AttentionBackend[Any]:
        return self._attention

    @property
    def num_graphs(self) -> int:
        return 0 if self._captured is None else len(self._captured)

    def capture(
        self,
        buckets: Sequence[GraphBucket],
        graphs: GraphCapture,
        *,
        max_model_len: int,
        report: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Passes that fit one of the buckets are replayed from now on; `report` is told how many are captured.

        Raises RuntimeError where the device refuses; all passes are eager then.
        """
        assert isinstance(self._attention, TritonAttention), "what is captured are kernels"
        captured = CapturedPasses(
            self.model, self._cache, self._attention, self.logits, buckets, max_model_len=max_model_len
        )
        for num_captured, bucket in enumerate(buckets):
            report(num_captured)
            captured.capture(bucket, graphs)
        report(len(buckets))
        self._captured = captured

    @torch.inference_mode()
    def forward(self, spans: Sequence[Span], buffer: LogitsBuffer | None = None) -> Tensor:
        """Write the spans' KV; logits fp32 [R, V] of the tokens that want them, in the order of the spans.

        They lie in the buffer, or in memory of their own.
        """
        if self._captured is not None and (buffer is None or buffer is self.logits):
            logits = self._captured.forward(spans)
            if logits is not None:
                return logits.clone() if buffer is None else logits
        return self.forward_eagerly(spans, buffer)

    @torch.inference_mode()
    def forward_eagerly(
        self,
        spans: Sequence[Span],
        buffer: LogitsBuffer | None = None,
        drawn_ids: Tensor | None = None,
        drawn_at: Tensor | None = None,
    ) -> Tensor:
        """The same, one kernel after the other; drawn_ids are those of `forward_drawn`, None is none."""
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
        if drawn_ids is not None:
            ids = drawn_ids if drawn_at is None else ids.index_copy_(0, drawn_at, drawn_ids)
        logits = (buffer or LogitsBuffer(self.device)).rows(len(rows), config.vocab_size)
        run_pass(
            self.model,
            self._cache,
            self._attention,
            plan,
            token_ids=ids,
            positions=places,
            logits_rows=logits_rows,
            logits=logits,
        )
        return logits

    @torch.inference_mode()
    def forward_drawn(
        self, spans: Sequence[Span], token_ids: Tensor, buffer: LogitsBuffer, drawn_at: Tensor | None = None
    ) -> Tensor:
        """As `forward` of spans some of whose tokens are those in int64 [D] on the device, whatever the spans say.

        drawn_at int64 [D] on the device says which of the packed tokens; None is all of them. So nothing waits for what
        an earlier pass led to.
        """
        if self._captured is not None and buffer is self.logits:
            logits = self._captured.forward(spans, token_ids, drawn_at)
            if logits is not None:
                return logits
        return self.forward_eagerly(spans, buffer, token_ids, drawn_at)

    def wait(self) -> None:
        """Until the device has done all that was asked of it; before that, a clock tells nothing of a pass."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
