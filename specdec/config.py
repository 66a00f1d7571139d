"""EngineConfig: resolved once, then frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from specdec.errors import ConfigError
from specdec.speculative import SpeculativeConfig

if TYPE_CHECKING:
    from specdec.grammars import Limits

DEFAULT_MODEL = "smollm2-135m-instruct"


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the engine is built from."""

    model: str = DEFAULT_MODEL
    """A catalog name, a folder (config.json, *.safetensors, tokenizer.json) or a Hugging Face id."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """auto is the checkpoint's own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is a CUDA device where there is one."""
    max_model_len: int | None = None
    """Prompt and output tokens of one sequence; None is the model's own limit."""
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    """Tokens of one step, over target and draft; None is 512, on a GPU 2,048, or max_num_seqs where that is more."""
    block_size: int = 16
    """Tokens in a KV block."""
    kv_cache_memory: int | None = None
    """Bytes of the KV arena; None sizes it from gpu_memory_utilization, or takes 1 GiB on a CPU."""
    gpu_memory_utilization: float = 0.9
    """Part of a GPU's memory that weights, KV arena and the largest step may take together."""
    num_kv_blocks: int | None = None
    """Overrides the number of blocks that the memory budget buys."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """auto is the weights' own; fp8, e4m3, takes a GPU and half the memory of 16 bits (docs/design/008)."""
    seed: int = 0
    """Source of the seeds of requests that bring none."""
    enable_prefix_caching: bool = True
    exact: bool = False
    """Row-invariant arithmetic: a row's logits do not depend on the rows beside it (docs/design/001)."""
    enforce_eager: bool = False
    """Launch a GPU's kernels one by one, where small passes and sampling are otherwise replayed as graphs."""
    async_scheduling: bool | None = None
    """Launch passes before their tokens are known to the host: where nothing can be drafted the next step's, and behind
    a draft model's in free text the step's own.

    None is on a GPU; a CPU has nothing to overlap (docs/design/008).
    """
    speculative: SpeculativeConfig | None = SpeculativeConfig(method="grammar")
    """Who drafts where a request does not say: unless told otherwise, what a constraint forces, where that pays.

    None is plain decoding.
    """
    grammar_limits: Limits | None = None
    """How large a schema may be, and what compiling it may take; None is Limits()."""
    num_compile_workers: int = 2
    """Processes that compile constraints; 0 compiles on the thread that asks, which slows down everything else."""
    check_outputs: bool = False
    """Judge every finished constrained answer against its whole constraint before its last delta is handed out."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_num_seqs", 1, 4096),
            ("block_size", 1, 1024),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"{name} is {value}; it must be between {low} and {high}", flag="--" + name.replace("_", "-")
                )
        if self.max_num_batched_tokens is not None and not self.max_num_seqs <= self.max_num_batched_tokens <= 2**20:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; it must be at least max_num_seqs, "
                f"{self.max_num_seqs}, so that every running sequence gets a token, and at most {2**20}",
                flag="--max-num-batched-tokens",
            )
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError(f"max_model_len is {self.max_model_len}; it must be at least 2", flag="--max-model-len")
        if not 0 <= self.num_compile_workers <= 64:
            raise ConfigError(
                f"num_compile_workers is {self.num_compile_workers}; it must be between 0 and 64",
                flag="--num-compile-workers",
            )
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be above 0 and at most 1",
                flag="--gpu-memory-utilization",
            )
        if self.num_kv_blocks is not None and self.num_kv_blocks < 2:
            raise ConfigError(f"num_kv_blocks is {self.num_kv_blocks}; it must be at least 2", flag="--num-kv-blocks")
        if self.kv_cache_memory is not None and self.kv_cache_memory < 1:
            raise ConfigError(
                f"kv_cache_memory is {self.kv_cache_memory} bytes; it must be positive", flag="--kv-cache-memory"
            )
