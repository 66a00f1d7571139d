"""CapturedPasses: a model's small passes as graphs, one for each bucket, that read their inputs from one place.

A pass is filled up to a bucket, its numbers go to the device by one copy, and the graph is replayed. Whatever fills it
up belongs to no sequence: it is written nowhere, attends to nothing, and its logits are left out. What a graph is laid
out for is the longest context there can be, so that it stays right while contexts grow.

T packed tokens, B sequences, R logits rows, M blocks of the longest context, V vocabulary: of a bucket.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.attention import Span
from specdec.device_tensors import Numbers, packed, together_on_device
from specdec.graph_buckets import GraphBucket, smallest_bucket
from specdec.graph_capture import GraphCapture, Work
from specdec.kv_cache import KVCache
from specdec.logits_buffer import LogitsBuffer
from specdec.model_pass import run_pass
from specdec.models.llama import LlamaModel
from specdec.triton_attention import HostPlan, TritonAttention, TritonPlan


class CapturedPasses:
    """Of one model, whose logits lie in one buffer."""

    @torch.inference_mode()
    def __init__(
        self,
        model: LlamaModel,
        cache: KVCache,
        attention: TritonAttention,
        logits: LogitsBuffer,
        buckets: AbstractSequence[GraphBucket],
        *,
        max_model_len: int,
    ) -> None:
        """Takes the memory of everything but the graphs, for the largest of the buckets."""
        config = model.config
        self._model = model
        self._cache = cache
        self._attention = attention
        self._max_model_len = max_model_len
        self._num_groups = config.num_attention_heads // config.num_key_value_heads
        most_tokens = max(bucket.num_tokens for bucket in buckets)
        most_sequences = max(bucket.num_sequences for bucket in buckets)
        self._logits = logits.rows(max(bucket.num_rows for bucket in buckets), config.vocab_size)
        width = -(-max_model_len // cache.block_size)
        self._block_tables = torch.zeros(most_sequences, width, dtype=torch.int32, device=model.device)
        """[B, M]: by the same step from row to row in every pass, however long its contexts are."""
        self._attended = torch.zeros(
            most_tokens, config.num_attention_heads, config.head_dim, dtype=model.dtype, device=model.device
        )
        """Attention leaves what fills a pass up as it is: zeros, so that no NaN ever comes of it."""
        widest = np.zeros((most_sequences, width), dtype=np.int32)
        num_bytes = max(len(packed(_parts(bucket, _nothing(), [], [], widest))[0]) for bucket in buckets)
        self._inputs = torch.zeros(num_bytes, dtype=torch.uint8, device=model.device)
        self._replays: dict[GraphBucket, Work] = {}
        self._ascending: list[GraphBucket] = []

    def __len__(self) -> int:
        return len(self._replays)

    @torch.inference_mode()
    def capture(self, bucket: GraphBucket, graphs: GraphCapture) -> None:
        """Run a pass of nobody's tokens, and keep it. Raises RuntimeError where the device refuses."""
        token_ids, positions, logits_rows, slots, starts, contexts, _ = self._send(bucket, _nothing(), [], [])
        plan = TritonPlan(
            slot_mapping=slots,
            block_tables=self._block_tables[: bucket.num_sequences],
            query_starts=starts,
            context_lens=contexts,
            max_num_queries=bucket.queries_each,
            max_context_len=self._max_model_len,
            tiling=self._attention.tiling(self._num_groups),
            output=self._attended[: bucket.num_tokens],
        )
        work = partial(
            run_pass,
            self._model,
            self._cache,
            self._attention,
            plan,
            token_ids=token_ids,
            positions=positions,
            logits_rows=logits_rows,
            logits=self._logits[: bucket.num_rows],
        )
        self._replays[bucket] = graphs.capture(work)
        self._ascending = sorted(self._replays)

    def forward(self, spans: AbstractSequence[Span], drawn_ids: Tensor | None = None) -> Tensor | None:
        """As of ModelRunner, in the buffer; None where no graph is large enough.

        drawn_ids int64 [T] on the device stand in for the spans' tokens.
        """
        num_rows = sum(span.num_logits for span in spans)
        bucket = smallest_bucket(
            self._ascending,
            num_tokens=sum(len(span.token_ids) for span in spans),
            num_sequences=len(spans),
            num_rows=num_rows,
        )
        if bucket is None or max((span.context_len for span in spans), default=0) > self._max_model_len:
            return None
        token_ids: list[int] = []
        rows: list[int] = []
        for span in spans:
            token_ids += span.token_ids
            rows += range(len(token_ids) - span.num_logits, len(token_ids))
        sent_ids, *_ = self._send(bucket, HostPlan.of(spans, self._cache.block_size), token_ids, rows)
        if drawn_ids is not None:
            sent_ids[: len(token_ids)] = drawn_ids
        self._replays[bucket]()
        return self._logits[:num_rows]

    def _send(self, bucket: GraphBucket, host: HostPlan, token_ids: list[int], rows: list[int]) -> tuple[Tensor, ...]:
        """By one copy to the same places as every pass of the bucket."""
        parts = _parts(bucket, host, token_ids, rows, host.block_tables)
        sent = together_on_device(self._model.device, *parts, into=self._inputs)
        num_sequences, width = host.block_tables.shape
        self._block_tables[:num_sequences, :width] = sent[-1].view(num_sequences, width)
        return sent


def _parts(
    bucket: GraphBucket, host: HostPlan, token_ids: list[int], rows: list[int], block_tables: NDArray[np.int32]
) -> list[tuple[type[np.generic], Numbers]]:
    """Of the bucket's sizes, but for the tables, which come last."""
    filled = host.filled(bucket.num_tokens, bucket.num_sequences)
    return [
        (np.int64, token_ids + [0] * (bucket.num_tokens - len(token_ids))),
        (np.int64, filled.positions),
        (np.int64, rows + [0] * (bucket.num_rows - len(rows))),
        (np.int64, filled.slot_mapping),
        (np.int32, filled.query_starts),
        (np.int32, filled.context_lens),
        (np.int32, block_tables.ravel()),
    ]


def _nothing() -> HostPlan:
    return HostPlan.of([], 1)
