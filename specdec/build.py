"""From a configuration to loaded models and a sized arena: everything that happens before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from specdec.attention import AttentionBackend
from specdec.backend import Backend, backend_of
from specdec.config import EngineConfig
from specdec.description import EngineDescription
from specdec.device_memory import CudaMemory, DeviceMemory, check_weights_fit, gibibytes, taking
from specdec.errors import ConfigError
from specdec.invariance import check_row_invariance
from specdec.kernels.dispatch import HAS_TRITON
from specdec.kv_cache import allocate_arena, bytes_per_block
from specdec.linear import PlainLinear, linear_method
from specdec.model_runner import ModelRunner
from specdec.models.catalog import resolve_model
from specdec.models.config import ModelConfig
from specdec.models.kv_scales import SCALE_KEYS
from specdec.models.llama import IGNORED_KEYS, LlamaModel
from specdec.models.loader import WeightLoader, load_weights, stored_shapes
from specdec.models.progress import ModelProgress, ProgressCallback
from specdec.pass_graphs import PassGraphs
from specdec.pool_size import max_batched_tokens, max_logits_rows, num_kv_blocks
from specdec.speculative import NONE, PLAIN
from specdec.tokenizer import Tokenizer
from specdec.triton_attention import TritonAttention
from specdec.warm_up import warm_up_passes

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Runtime:
    """The parts that an engine drives."""

    backend: Backend
    runner: ModelRunner
    draft_runner: ModelRunner | None
    tokenizer: Tokenizer
    model_config: ModelConfig
    description: EngineDescription
    folder: Path
    """Of the target."""
    graphs: PassGraphs | None
    """None where steps are launched kernel by kernel."""
    overlaps: bool
    """Whether the next step's pass may be launched before this one's tokens are known."""


def build_runtime(
    config: EngineConfig, *, progress: ProgressCallback | None = None, load: WeightLoader = load_weights
) -> Runtime:
    """Load target and draft, size the pool that they share, and check what `exact` promises.

    Raises ConfigError for settings that contradict each other or the machine, ModelError for models that cannot be
    had or read.
    """
    device = _device(config)
    backend = backend_of(device)
    kv_dtype = backend.kv_dtype(config.kv_cache_dtype)
    overlaps = backend.overlaps(config.async_scheduling)
    memory = CudaMemory(device) if device.type == "cuda" else None
    torch.set_num_threads(_num_threads())
    folder = resolve_model(config.model, progress=progress)
    model_config = ModelConfig.from_folder(folder)
    _check_head_size(config.model, model_config, backend)
    tokenizer = Tokenizer.from_folder(folder)
    max_model_len = _max_model_len(config, model_config)
    loader = _Loader(config, backend, memory, max_model_len, load, progress, kv_dtype)
    model = loader.load(folder, model_config)
    draft: LlamaModel | None = None
    speculative = config.speculative
    if speculative is not None and speculative.model is not None:
        draft_folder = resolve_model(speculative.model, progress=progress)
        draft_config = ModelConfig.from_folder(draft_folder)
        _check_head_size(speculative.model, draft_config, backend)
        _check_same_vocabulary(speculative.model, tokenizer, Tokenizer.from_folder(draft_folder))
        _max_model_len(msgspec.structs.replace(config, max_model_len=max_model_len), draft_config)
        draft = loader.load(draft_folder, draft_config)
    models = [model] if draft is None else [model, draft]
    shapes = [each.kv_shape for each in models]
    attention = backend.attention(exact=config.exact)
    plan = PLAIN if speculative is None else speculative.plan

    graphs = _pass_graphs(config, backend, attention, max_model_len)
    num_blocks = num_kv_blocks(config, models, attention, memory, max_model_len, graphs)
    kv_cache_bytes = num_blocks * bytes_per_block(shapes, config.block_size)
    with taking(
        f"a KV cache of {gibibytes(kv_cache_bytes)}", flag="--kv-cache-memory", otherwise="ask for fewer blocks"
    ):
        caches = allocate_arena(shapes, num_blocks=num_blocks, block_size=config.block_size, device=device)
    backend.reserve(attention, caches, max_num_seqs=config.max_num_seqs, max_len=max_model_len)
    runners = [ModelRunner(each, cache, attention) for each, cache in zip(models, caches, strict=True)]
    for runner in runners:
        if config.exact:
            check_row_invariance(
                runner, num_blocks=num_blocks, block_size=config.block_size, max_model_len=max_model_len
            )
        if backend.compiles:
            warm_up_passes(
                runner,
                num_blocks=num_blocks,
                block_size=config.block_size,
                max_model_len=max_model_len,
                max_tokens=max_batched_tokens(config, device),
            )
    if graphs is not None:
        graphs.capture(runners, progress)
        for runner in runners:
            if config.exact and runner.num_graphs:
                check_row_invariance(
                    runner, num_blocks=num_blocks, block_size=config.block_size, max_model_len=max_model_len
                )
    return Runtime(
        backend=backend,
        runner=runners[0],
        draft_runner=runners[1] if draft is not None else None,
        tokenizer=tokenizer,
        model_config=model_config,
        description=EngineDescription(
            model=config.model,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(device),
            num_threads=torch.get_num_threads(),
            num_kv_blocks=num_blocks,
            block_size=config.block_size,
            kv_cache_bytes=kv_cache_bytes,
            kv_cache_dtype=str(model.kv_dtype).removeprefix("torch."),
            max_model_len=max_model_len,
            max_concurrency=num_blocks * config.block_size / max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=max_batched_tokens(config, device),
            proposer=NONE if speculative is None else speculative.method,
            num_speculative_tokens=plan.max_tokens,
            exact=config.exact,
            num_graphs=sum(runner.num_graphs for runner in runners),
        ),
        folder=folder,
        graphs=graphs,
        overlaps=overlaps,
    )


def _device(config: EngineConfig) -> torch.device:
    if config.device == "cpu" or (config.device == "auto" and not (torch.cuda.is_available() and HAS_TRITON)):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "device is cuda, but torch finds no CUDA device here (its build, the driver or the machine has none); "
            "use --device cpu or auto",
            flag="--device",
        )
    if not HAS_TRITON:
        raise ConfigError(
            "device is cuda, but the kernels need the triton package, which is not installed; install it, or use "
            "--device cpu or auto",
            flag="--device",
        )
    return torch.device("cuda", torch.cuda.current_device())


def _num_threads() -> int:
    """As many as the processors that this process may use, unless the user has said."""
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_head_size(name: str, model_config: ModelConfig, backend: Backend) -> None:
    if backend.max_head_size is not None and model_config.head_dim > backend.max_head_size:
        raise ConfigError(
            f"{name} has heads of {model_config.head_dim} numbers, and the attention kernel takes up to "
            f"{backend.max_head_size}; use --device cpu or another model",
            flag="--device",
        )


def _pass_graphs(
    config: EngineConfig,
    backend: Backend,
    # Which plan a backend makes is its own business.
    attention: AttentionBackend[Any],
    max_model_len: int,
) -> PassGraphs | None:
    new_capture = backend.graphs()
    if new_capture is None or config.enforce_eager:
        return None
    assert isinstance(attention, TritonAttention), "what is captured are kernels"
    return PassGraphs(
        new_capture=new_capture,
        attention=attention,
        max_model_len=max_model_len,
        max_tokens=max_batched_tokens(config, backend.device),
        max_sequences=config.max_num_seqs,
        max_rows=max_logits_rows(config),
    )


def _max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    limit = model_config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, above the model's own {limit}", flag="--max-model-len"
        )
    return config.max_model_len or limit


@dataclass(frozen=True, slots=True)
class _Loader:
    """Loads target and draft alike."""

    config: EngineConfig
    backend: Backend
    memory: DeviceMemory | None
    """Of a GPU; None on a CPU."""
    max_model_len: int
    fill: WeightLoader
    progress: ProgressCallback | None
    kv_dtype: torch.dtype | None = None
    """Of the KV cache; None is the model's own."""

    def load(self, folder: Path, model_config: ModelConfig) -> LlamaModel:
        """Raises ConfigError for weights that do not fit the device."""
        config, device = self.config, self.backend.device
        dtype = _DTYPES[model_config.dtype if config.dtype == "auto" else config.dtype]
        if self.memory is not None:
            # Tensors without memory, for their sizes.
            sizes = LlamaModel(
                model_config,
                method=PlainLinear(),
                max_model_len=self.max_model_len,
                dtype=dtype,
                device=torch.device("meta"),
            )
            check_weights_fit(self.memory, sizes.num_bytes, utilization=config.gpu_memory_utilization, dtype=dtype)
        with taking(f"the weights of {folder.name}", flag="--device", otherwise="take a smaller model or --device cpu"):
            model = LlamaModel(
                model_config,
                method=linear_method(exact=config.exact, dtype=dtype, device=device),
                max_model_len=self.max_model_len,
                dtype=dtype,
                device=device,
                ops=self.backend.layer_ops(),
                kv_dtype=self.kv_dtype,
            )
            slots = model.weight_slots()
            if model.kv_scales is not None:
                slots |= model.kv_scales.slots(stored_shapes(folder))
            self.fill(folder, slots, ignored=[IGNORED_KEYS, SCALE_KEYS], progress=self._reported(folder))
            # They hold every weight, which goes when another form of it is made.
            del slots
            model.finish_loading()
        return model

    def _reported(self, folder: Path) -> Callable[[int, int], None]:
        def loading(completed: int, total: int) -> None:
            if self.progress is not None:
                description = f"Loading {folder.name}"
                self.progress(ModelProgress(stage="loading", description=description, completed=completed, total=total))

        return loading


def _check_same_vocabulary(name: str, target: Tokenizer, draft: Tokenizer) -> None:
    if target.fingerprint() == draft.fingerprint():
        return
    raise ConfigError(
        f"the draft model {name} has another vocabulary than the target ({draft.vocab_size} against "
        f"{target.vocab_size} tokens, or other bytes for the same ids); a draft must share its target's tokenizer",
        flag="--draft",
    )
