"""How many blocks the KV pool has: what a configuration asks for, or what a device has room for."""

from __future__ import annotations

import math
from collections.abc import Sequence as AbstractSequence
from functools import partial
from typing import Any, Final

import torch

from specdec.attention import AttentionBackend, Span
from specdec.config import EngineConfig
from specdec.device_memory import DeviceMemory, check_pool_fits, measure_budget
from specdec.device_verifier import verification_bytes
from specdec.errors import ConfigError
from specdec.kv_cache import allocate_arena, bytes_per_block
from specdec.logits_buffer import LogitsBuffer
from specdec.model_runner import ModelRunner
from specdec.models.llama import LlamaModel
from specdec.pass_graphs import PassGraphs
from specdec.speculative import MAX_DRAFT_TOKENS

_DEFAULT_CPU_KV_BYTES: Final = 2**30
_DEFAULT_BATCHED_TOKENS: Final = 512
_DEFAULT_GPU_BATCHED_TOKENS: Final = 2048
_DEFAULT_LOGITS_ROWS: Final = 512
"""As many as are captured as graphs."""
_MIN_BLOCKS: Final = 2


def num_kv_blocks(
    config: EngineConfig,
    models: AbstractSequence[LlamaModel],
    # Which plan a backend makes is its own business.
    attention: AttentionBackend[Any],
    memory: DeviceMemory | None,
    max_model_len: int,
    graphs: PassGraphs | None = None,
) -> int:
    """`models` are the target and its draft; `memory` is a GPU's, None on a CPU. Raises ConfigError.

    `graphs` are to be captured later; None are.
    """
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    block_bytes = bytes_per_block([model.kv_shape for model in models], config.block_size)
    if config.kv_cache_memory is not None or memory is None:
        pool_bytes = _DEFAULT_CPU_KV_BYTES if config.kv_cache_memory is None else config.kv_cache_memory
        if pool_bytes < _MIN_BLOCKS * block_bytes:
            raise ConfigError(
                f"a KV cache of {pool_bytes} bytes holds fewer than two blocks of {block_bytes}; give it more",
                flag="--kv-cache-memory",
            )
    else:
        budget = measure_budget(
            memory,
            partial(_run_largest_step, config, models, attention, max_model_len),
            utilization=config.gpu_memory_utilization,
            verification_bytes=verification_bytes(models[0].config.vocab_size, MAX_DRAFT_TOKENS),
            graph_bytes=lambda: 0 if graphs is None else graphs.num_bytes(models, memory, config.block_size),
        )
        check_pool_fits(
            budget,
            _MIN_BLOCKS * block_bytes,
            utilization=config.gpu_memory_utilization,
            max_num_batched_tokens=max_batched_tokens(config, models[0].device),
        )
        pool_bytes = budget.pool
    # No more than the running sequences could ever fill.
    return min(pool_bytes // block_bytes, config.max_num_seqs * math.ceil(max_model_len / config.block_size))


def max_batched_tokens(config: EngineConfig, device: torch.device) -> int:
    """The token budget of a step: what was asked for, else enough to keep the device's matrix units busy.

    512 tokens by a matrix 4,096 wide are 64 tiles of 128 by 256, less than half of what an H100 has processors for.
    """
    if config.max_num_batched_tokens is not None:
        return config.max_num_batched_tokens
    return max(_DEFAULT_GPU_BATCHED_TOKENS if device.type == "cuda" else _DEFAULT_BATCHED_TOKENS, config.max_num_seqs)


def max_logits_rows(config: EngineConfig) -> int:
    """Of the target's, in a step: every sequence with the longest draft, as far as the token budget goes.

    Where no budget was asked for, the part of a GPU's above 512 is for prompts: rows for all of it would take a
    gigabyte with a vocabulary of 128,000, and passes with more drafts are not replayed as graphs.
    """
    budget = config.max_num_batched_tokens
    if budget is None:
        budget = max(_DEFAULT_LOGITS_ROWS, config.max_num_seqs)
    return min(budget, config.max_num_seqs * (1 + MAX_DRAFT_TOKENS))


def _run_largest_step(
    config: EngineConfig, models: AbstractSequence[LlamaModel], attention: AttentionBackend[Any], max_model_len: int
) -> None:
    """As many tokens as a step may have, at the end of the longest contexts, in a pool of one block for all of them.

    The models run one after the other; their logits stay where they are.
    """
    num_rows = [max_logits_rows(config), config.max_num_seqs]
    shapes = [model.kv_shape for model in models]
    caches = allocate_arena(shapes, num_blocks=1, block_size=config.block_size, device=models[0].device)
    buffers = [LogitsBuffer(model.device) for model in models]
    block_table = [0] * math.ceil(max_model_len / config.block_size)
    for model, cache, buffer, num_logits in zip(models, caches, buffers, num_rows, strict=False):
        spans = []
        num_left = max_batched_tokens(config, model.device)
        while num_left:
            num_tokens = min(num_left, max_model_len)
            own_rows = min(num_logits, num_tokens)
            spans.append(Span([0] * num_tokens, max_model_len - num_tokens, block_table, own_rows))
            num_left -= num_tokens
            num_logits -= own_rows  # noqa: PLW2901, counted down
        ModelRunner(model, cache, attention).forward(spans, buffer)
