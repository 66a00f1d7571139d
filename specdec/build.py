"""From a configuration to loaded models and a sized arena: everything that happens before the first step."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from specdec.attention import AttentionBackend, RowInvariantAttention, TorchAttention
from specdec.config import EngineConfig
from specdec.description import EngineDescription
from specdec.errors import ConfigError
from specdec.invariance import check_row_invariance
from specdec.kv_cache import KVShape, allocate_arena, bytes_per_block
from specdec.linear import linear_method
from specdec.model_runner import ModelRunner
from specdec.models.catalog import resolve_model
from specdec.models.config import ModelConfig
from specdec.models.llama import IGNORED_KEYS, LlamaModel
from specdec.models.loader import WeightLoader, load_weights
from specdec.models.progress import ModelProgress, ProgressCallback
from specdec.speculative import NONE, PLAIN
from specdec.tokenizer import Tokenizer

_DEFAULT_CPU_KV_BYTES = 2**30
_DEFAULT_MAX_BATCHED_TOKENS = 512
_RESERVED_TOKENS = 512
"""Of each sequence's context, for the memory that attention gathers blocks in, from the start."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Runtime:
    """The parts that an engine drives."""

    runner: ModelRunner
    draft_runner: ModelRunner | None
    tokenizer: Tokenizer
    model_config: ModelConfig
    description: EngineDescription
    folder: Path
    """Of the target."""


def build_runtime(
    config: EngineConfig, *, progress: ProgressCallback | None = None, load: WeightLoader = load_weights
) -> Runtime:
    """Load target and draft, size the pool that they share, and check what `exact` promises.

    Raises ConfigError for settings that contradict each other or the machine, ModelError for models that cannot be
    had or read.
    """
    device = _device(config)
    torch.set_num_threads(_num_threads())
    folder = resolve_model(config.model, progress=progress)
    model_config = ModelConfig.from_folder(folder)
    tokenizer = Tokenizer.from_folder(folder)
    max_model_len = _max_model_len(config, model_config)
    dtype = _DTYPES[model_config.dtype if config.dtype == "auto" else config.dtype]
    model = _load(folder, model_config, config, max_model_len, dtype, device, load, progress)
    draft: LlamaModel | None = None
    speculative = config.speculative
    if speculative is not None and speculative.model is not None:
        draft_folder = resolve_model(speculative.model, progress=progress)
        draft_config = ModelConfig.from_folder(draft_folder)
        _check_same_vocabulary(speculative.model, tokenizer, Tokenizer.from_folder(draft_folder))
        _max_model_len(msgspec.structs.replace(config, max_model_len=max_model_len), draft_config)
        draft_dtype = _DTYPES[draft_config.dtype if config.dtype == "auto" else config.dtype]
        draft = _load(draft_folder, draft_config, config, max_model_len, draft_dtype, device, load, progress)
    models = [model] if draft is None else [model, draft]
    shapes = [each.kv_shape for each in models]
    num_blocks = _num_blocks(config, shapes, max_model_len)
    caches = allocate_arena(shapes, num_blocks=num_blocks, block_size=config.block_size, device=device)
    # Any: each backend has a plan of its own.
    attention: AttentionBackend[Any]
    if config.exact:
        attention = RowInvariantAttention()
    else:
        attention = TorchAttention()
        num_gathered = config.max_num_seqs * -(-min(_RESERVED_TOKENS, max_model_len) // config.block_size)
        for cache in caches:
            attention.reserve(min(num_blocks, num_gathered), cache.layers[0])
    runners = [ModelRunner(each, cache, attention) for each, cache in zip(models, caches, strict=True)]
    if config.exact:
        for runner in runners:
            check_row_invariance(runner, num_blocks=num_blocks, block_size=config.block_size)
    plan = PLAIN if speculative is None else speculative.plan
    return Runtime(
        runner=runners[0],
        draft_runner=runners[1] if draft is not None else None,
        tokenizer=tokenizer,
        model_config=model_config,
        description=EngineDescription(
            model=config.model,
            dtype=str(dtype).removeprefix("torch."),
            device=str(device),
            num_threads=torch.get_num_threads(),
            num_kv_blocks=num_blocks,
            block_size=config.block_size,
            kv_cache_bytes=num_blocks * bytes_per_block(shapes, config.block_size),
            max_model_len=max_model_len,
            max_concurrency=num_blocks * config.block_size / max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=max_batched_tokens(config),
            proposer=NONE if speculative is None else speculative.method,
            num_speculative_tokens=plan.max_tokens,
            exact=config.exact,
        ),
        folder=folder,
    )


def max_batched_tokens(config: EngineConfig) -> int:
    """The token budget of a step: what was asked for, else enough to keep a CPU's matrix units busy."""
    if config.max_num_batched_tokens is None:
        return max(_DEFAULT_MAX_BATCHED_TOKENS, config.max_num_seqs)
    return config.max_num_batched_tokens


def _device(config: EngineConfig) -> torch.device:
    if config.device == "cuda":
        raise ConfigError(
            "device is cuda, but this release runs on CPUs only; use --device cpu or auto", flag="--device"
        )
    return torch.device("cpu")


def _num_threads() -> int:
    """As many as the processors that this process may use, unless the user has said."""
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    limit = model_config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, above the model's own {limit}", flag="--max-model-len"
        )
    return config.max_model_len or limit


def _load(
    folder: Path,
    model_config: ModelConfig,
    config: EngineConfig,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    load: WeightLoader,
    progress: ProgressCallback | None,
) -> LlamaModel:
    method = linear_method(exact=config.exact, dtype=dtype, device=device)
    model = LlamaModel(model_config, method=method, max_model_len=max_model_len, dtype=dtype, device=device)

    def loading(completed: int, total: int) -> None:
        if progress is not None:
            description = f"Loading {folder.name}"
            progress(ModelProgress(stage="loading", description=description, completed=completed, total=total))

    load(folder, model.weight_slots(), ignored=[IGNORED_KEYS], progress=loading)
    model.finish_loading()
    return model


def _check_same_vocabulary(name: str, target: Tokenizer, draft: Tokenizer) -> None:
    if target.fingerprint() == draft.fingerprint():
        return
    raise ConfigError(
        f"the draft model {name} has another vocabulary than the target ({draft.vocab_size} against "
        f"{target.vocab_size} tokens, or other bytes for the same ids); a draft must share its target's tokenizer",
        flag="--draft",
    )


def _num_blocks(config: EngineConfig, shapes: list[KVShape], max_model_len: int) -> int:
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    block_bytes = bytes_per_block(shapes, config.block_size)
    budget = config.kv_cache_memory if config.kv_cache_memory is not None else _DEFAULT_CPU_KV_BYTES
    num_blocks = budget // block_bytes
    if num_blocks < 2:
        raise ConfigError(
            f"a KV cache of {budget} bytes holds fewer than two blocks of {block_bytes}; give it more",
            flag="--kv-cache-memory",
        )
    # No more than the running sequences could ever fill.
    return min(num_blocks, config.max_num_seqs * math.ceil(max_model_len / config.block_size))
