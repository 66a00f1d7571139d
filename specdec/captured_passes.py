"""CapturedPasses: a model's small passes as graphs, one for each bucket, that read their inputs from one place.

A pass is filled up to a bucket, its numbers go to the device by one copy, and the graph is replayed. Whatever fills it
up belongs to no sequence: it is written nowhere, attends to nothing, and its logits are left out. What a graph is laid
out for is the longest context there can be, so that it stays right while contexts grow.

T packed tokens, B sequences, R logits rows, M blocks of the longest context, V vocabulary: of a bucket.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from functools import lru_cache, partial
from itertools import chain
from typing import Final

import numpy as np
import torch
from torch import Tensor

from specdec.attention import Span
from specdec.device_tensors import Numbers, Parts
from specdec.fixed_inputs import FixedInputs, InputPart, num_bytes_of
from specdec.graph_buckets import GraphBucket, smallest_bucket
from specdec.graph_capture import GraphCapture, Work
from specdec.kv_cache import KVCache
from specdec.logits_buffer import LogitsBuffer
from specdec.model_pass import run_pass
from specdec.models.llama import LlamaModel
from specdec.triton_attention import NO_SLOT, HostPlan, TritonAttention, TritonPlan

_WHOLE_TABLES_BYTES: Final = 2**15
"""Up to so many, block tables are sent as wide as the longest context's, to where a graph reads them. Larger ones are
sent as wide as a pass needs, and spread out on the device."""
_MAX_SIZES: Final = 4096
"""Of passes whose buckets are remembered."""


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
        self._width = -(-max_model_len // cache.block_size)
        self._block_tables = torch.zeros(most_sequences, self._width, dtype=torch.int32, device=model.device)
        """[B, M]: by the same step from row to row in every pass, however long its contexts are."""
        self._attended = torch.zeros(
            most_tokens, config.num_attention_heads, config.head_dim, dtype=model.dtype, device=model.device
        )
        """Attention leaves what fills a pass up as it is: zeros, so that no NaN ever comes of it."""
        parts = {bucket: self._parts(bucket) for bucket in buckets}
        # With room for the tables that are spread out, which are none of the parts.
        tables = {"block_tables": InputPart(np.int32, most_sequences * self._width)}
        self._inputs = FixedInputs(model.device, max(num_bytes_of(own | tables) for own in parts.values()))
        self._layouts = {bucket: self._inputs.layout(own) for bucket, own in parts.items()}
        self._every_row = np.arange(most_tokens)
        self._replays: dict[GraphBucket, Work] = {}
        self._smallest = lru_cache(_MAX_SIZES)(partial(smallest_bucket, []))

    def __len__(self) -> int:
        return len(self._replays)

    @torch.inference_mode()
    def capture(self, bucket: GraphBucket, graphs: GraphCapture) -> None:
        """Run a pass of nobody's tokens, and keep it. Raises RuntimeError where the device refuses."""
        self._send(bucket, HostPlan.of([], self._cache.block_size), [], [])
        sent = self._layouts[bucket].tensors
        if "block_tables" in sent:
            block_tables = sent["block_tables"].view(bucket.num_sequences, self._width)
        else:
            block_tables = self._block_tables[: bucket.num_sequences]
        plan = TritonPlan(
            slot_mapping=sent["slot_mapping"],
            block_tables=block_tables,
            query_starts=sent["query_starts"],
            context_lens=sent["context_lens"],
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
            token_ids=sent["token_ids"],
            positions=sent["positions"],
            logits_rows=sent["logits_rows"],
            logits=self._logits[: bucket.num_rows],
        )
        self._replays[bucket] = graphs.capture(work)
        self._smallest = lru_cache(_MAX_SIZES)(partial(smallest_bucket, sorted(self._replays)))

    def forward(
        self, spans: AbstractSequence[Span], drawn_ids: Tensor | None = None, drawn_at: Tensor | None = None
    ) -> Tensor | None:
        """As of ModelRunner, in the buffer; None where no graph is large enough.

        drawn_ids int64 [D] on the device stand in for the spans' tokens, all or those that drawn_at int64 [D] says.
        """
        token_ids = list(chain.from_iterable([span.token_ids for span in spans]))
        row_counts = [span.num_logits for span in spans]
        num_tokens, num_rows = len(token_ids), sum(row_counts)
        bucket = self._smallest(num_tokens=num_tokens, num_sequences=len(spans), num_rows=num_rows)
        if bucket is None:
            return None
        sent = self._layouts[bucket].tensors
        width = self._width if "block_tables" in sent else 1
        host = HostPlan.of(spans, self._cache.block_size, width)
        if host.max_context_len > self._max_model_len:
            return None
        if num_rows == num_tokens:
            self._send(bucket, host, token_ids, self._every_row[:num_rows])
        else:
            ends = host.query_starts[1:].tolist()
            ranges = [range(end - count, end) for end, count in zip(ends, row_counts, strict=True)]
            self._send(bucket, host, token_ids, list(chain.from_iterable(ranges)))
        if drawn_at is not None and drawn_ids is not None:
            sent["token_ids"].index_copy_(0, drawn_at, drawn_ids)
        elif drawn_ids is not None:
            sent["token_ids"][:num_tokens] = drawn_ids
        self._replays[bucket]()
        return self._logits[:num_rows]

    def _send(self, bucket: GraphBucket, host: HostPlan, token_ids: Numbers, rows: Numbers) -> None:
        """By one copy to the same places as every pass of the bucket."""
        tables = host.block_tables
        parts: Parts = {
            "token_ids": (np.int64, token_ids),
            "positions": (np.int64, host.positions),
            "logits_rows": (np.int64, rows),
            "slot_mapping": (np.int64, host.slot_mapping),
            "query_starts": (np.int32, host.query_starts),
            "context_lens": (np.int32, host.context_lens),
            "block_tables": (np.int32, tables.ravel()),
        }
        others = self._inputs.send(self._layouts[bucket], parts)
        if others and tables.size:
            self._block_tables[: tables.shape[0], : tables.shape[1]] = others["block_tables"].view(tables.shape)

    def _parts(self, bucket: GraphBucket) -> dict[str, InputPart]:
        """What fills a pass up are tokens that are nobody's and written nowhere, and sequences without any."""
        parts = {
            "token_ids": InputPart(np.int64, bucket.num_tokens),
            "positions": InputPart(np.int64, bucket.num_tokens),
            "logits_rows": InputPart(np.int64, bucket.num_rows),
            "slot_mapping": InputPart(np.int64, bucket.num_tokens, fill=NO_SLOT),
            "query_starts": InputPart(np.int32, bucket.num_sequences + 1, fill=None),
            "context_lens": InputPart(np.int32, bucket.num_sequences),
        }
        num_entries = bucket.num_sequences * self._width
        if 4 * num_entries <= _WHOLE_TABLES_BYTES:
            parts["block_tables"] = InputPart(np.int32, num_entries)
        return parts
