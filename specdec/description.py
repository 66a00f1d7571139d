"""EngineDescription: what an engine turned out to be, once it is built."""

from __future__ import annotations

import msgspec


class EngineDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What was built, for a banner or a log."""

    model: str
    dtype: str
    device: str
    num_threads: int
    num_kv_blocks: int
    block_size: int
    kv_cache_bytes: int
    kv_cache_dtype: str
    max_model_len: int
    max_concurrency: float
    """Sequences of max_model_len tokens that the pool holds at once."""
    max_num_seqs: int
    max_num_batched_tokens: int
    proposer: str
    num_speculative_tokens: int
    """The longest draft."""
    exact: bool
    num_graphs: int = 0
    """Sizes of passes that are replayed as graphs."""
    num_drafting_graphs: int = 0
    """Sizes and kinds of a draft model's loop that are."""
    num_sampling_graphs: int = 0
    """Sizes and kinds of drawing and verification that are."""
