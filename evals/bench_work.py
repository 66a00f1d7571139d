"""Work: the bytes that have to be moved and the operations that have to be done at least, whoever does them.

Weights, keys and values count once a pass, however often a program reads them; what could stay on the chip between two
steps of a pass does not count. A multiplication and its addition are two operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from specdec.models.config import ModelConfig


class Work(msgspec.Struct, frozen=True):
    num_bytes: int
    num_flops: int = 0
    """Of matrix products alone: nothing else is limited by them."""

    def __add__(self, other: Work) -> Work:
        return Work(self.num_bytes + other.num_bytes, self.num_flops + other.num_flops)


class Attended(msgspec.Struct, frozen=True):
    """The new tokens of one sequence: its last ones."""

    num_queries: int
    context_len: int
    """Those before them and themselves."""

    @property
    def num_scores(self) -> int:
        """Keys that the queries see, all together: each those up to its own place."""
        return self.num_queries * self.context_len - self.num_queries * (self.num_queries - 1) // 2


def attention_work(
    shape: ModelConfig, itemsize: int, spans: Sequence[Attended], *, kv_itemsize: int | None = None
) -> Work:
    """One layer's: keys and values of the contexts, queries, and outputs; `kv_itemsize` is as in `pass_work`."""
    num_queries = sum(span.num_queries for span in spans)
    num_keys = sum(span.context_len for span in spans)
    num_bytes = 2 * num_keys * shape.num_key_value_heads * (kv_itemsize or itemsize)
    num_bytes += 2 * num_queries * shape.num_attention_heads * itemsize
    num_scores = sum(span.num_scores for span in spans)
    return Work(
        num_bytes * shape.head_dim,
        # The products with keys and with values.
        4 * num_scores * shape.num_attention_heads * shape.head_dim,
    )


def num_layer_weights(shape: ModelConfig) -> int:
    """Of one layer's matrix products."""
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    attention = shape.hidden_size * (queries + 2 * keys) + queries * shape.hidden_size
    return attention + 3 * shape.hidden_size * shape.intermediate_size


def weight_bytes(shape: ModelConfig, itemsize: int) -> int:
    """Of what every pass reads: all but the embedding, unless it is the head as well."""
    num_norms = (2 * shape.num_hidden_layers + 1) * shape.hidden_size
    num_head = shape.vocab_size * shape.hidden_size
    return (shape.num_hidden_layers * num_layer_weights(shape) + num_head + num_norms) * itemsize


def embedding_bytes(shape: ModelConfig, itemsize: int) -> int:
    """Of one that no pass reads as a whole."""
    return 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size * itemsize


def kv_bytes_per_token(shape: ModelConfig, itemsize: int) -> int:
    """Of all layers."""
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * itemsize


def pass_work(
    shape: ModelConfig, itemsize: int, spans: Sequence[Attended], *, num_logits: int, kv_itemsize: int | None = None
) -> Work:
    """One pass of the model: its weights, the keys and values of the contexts, and those that are new, written.

    `kv_itemsize` is of the cache, where that has other numbers than the weights.
    """
    num_tokens = sum(span.num_queries for span in spans)
    num_keys = sum(span.context_len for span in spans)
    num_scores = sum(span.num_scores for span in spans)
    num_flops = 2 * num_tokens * shape.num_hidden_layers * num_layer_weights(shape)
    num_flops += 2 * num_logits * shape.vocab_size * shape.hidden_size
    num_flops += 4 * num_scores * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim
    num_bytes = weight_bytes(shape, itemsize) + kv_bytes_per_token(shape, kv_itemsize or itemsize) * (
        num_keys + num_tokens
    )
    return Work(num_bytes + num_tokens * shape.hidden_size * itemsize, num_flops)
