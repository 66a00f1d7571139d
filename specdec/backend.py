"""Backend: the parts that differ by where a model runs."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from functools import partial
from typing import Any, Final, Literal, Protocol

import torch

from specdec.attention import AttentionBackend, RowInvariantAttention, TorchAttention
from specdec.device_sampler import DeviceSampler
from specdec.device_verifier import DeviceVerifier
from specdec.errors import ConfigError
from specdec.grammars import MaskTable
from specdec.graph_capture import CudaGraphCapture, GraphCapture, RepeatCapture
from specdec.kernels.dispatch import INTERPRETED
from specdec.kernels.paged_attention_arguments import MAX_HEAD_SIZE
from specdec.kv_cache import KVCache
from specdec.model_runner import ModelRunner
from specdec.models.layer_ops import KernelOps, LayerOps, TorchOps
from specdec.processor import has_products_of
from specdec.proposers.device_passes import DevicePasses
from specdec.proposers.draft_passes import DraftPasses, SinglePasses
from specdec.row_attention import RowAttention
from specdec.sampler import DraftSampler, Sampler
from specdec.triton_attention import TritonAttention
from specdec.vector_ops import VectorOps
from specdec.verifier import DraftVerifier, Verifier

FP8_CAPABILITY: Final = (8, 9)
"""Below it there is no instruction from fp8, and Triton refuses to compile one."""
_RESERVED_TOKENS: Final = 512
"""Of each sequence's context, for the memory that attention gathers blocks in, from the start."""


class Backend(Protocol):
    """Chosen once, when the engine is built."""

    device: torch.device
    max_head_size: int | None
    """None is no limit."""
    compiles: bool
    """Whether what it runs is compiled or loaded when it is first needed, so that start had better need it."""

    def kv_dtype(self, name: Literal["auto", "fp8"]) -> torch.dtype | None:
        """Of the KV cache; None is the model's own. Raises ConfigError."""
        ...

    def overlaps(self, wanted: bool | None) -> bool:
        """Whether passes may be launched before their tokens are known to the host; None is where that pays.

        Raises ConfigError.
        """
        ...

    # What these hand on between their own calls is their own business.
    def layer_ops(self) -> LayerOps[Any]: ...

    def attention(self, *, exact: bool) -> AttentionBackend[Any]: ...

    def reserve(
        self, attention: AttentionBackend[Any], caches: AbstractSequence[KVCache], *, max_num_seqs: int, max_len: int
    ) -> None:
        """Do now what the first passes would: take memory that long ones need, compile what all run."""
        ...

    def graphs(self) -> Callable[[], GraphCapture] | None:
        """What makes captures of passes; None where nothing is gained by them."""
        ...

    def sampling(
        self,
        mask_table: MaskTable,
        num_token_ids: int,
        pieces: AbstractSequence[bytes],
        synthetic_acceptance_rates: AbstractSequence[float],
    ) -> tuple[DraftSampler, DraftVerifier]:
        """`pieces` is what each token id adds to a text; ids from num_token_ids on are padding."""
        ...

    def drafting(
        self, runner: ModelRunner, sampler: DraftSampler, mask_table: MaskTable, num_token_ids: int
    ) -> DraftPasses:
        """Of a draft model, with what `sampling` gave."""
        ...


class CpuBackend:
    """The library's operators, and forms of our own where it has none that are fast on a CPU."""

    max_head_size: int | None = None
    compiles = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def kv_dtype(self, name: Literal["auto", "fp8"]) -> None:
        if name == "fp8":
            raise ConfigError(
                "kv_cache_dtype is fp8, and the engine runs on a CPU, which keeps keys and values as they are; caches "
                "of fp8 need a GPU",
                flag="--kv-cache-dtype",
            )

    def overlaps(self, wanted: bool | None) -> bool:
        if wanted:
            raise ConfigError(
                "async_scheduling is on, and the engine runs on a CPU, which has done a step's work when the next "
                "one comes; leave it out, or use a GPU",
                flag="--async-scheduling",
            )
        return False

    def layer_ops(self) -> VectorOps | TorchOps:
        return VectorOps() if VectorOps.runs_here() else TorchOps()

    def attention(self, *, exact: bool) -> AttentionBackend[Any]:
        # Where bfloat16 has instructions it was never held against the library's, which those make fast.
        if (exact or not has_products_of(torch.bfloat16)) and RowAttention.runs_here():
            return RowAttention()
        return RowInvariantAttention() if exact else TorchAttention()

    def reserve(
        self, attention: AttentionBackend[Any], caches: AbstractSequence[KVCache], *, max_num_seqs: int, max_len: int
    ) -> None:
        if isinstance(attention, RowAttention):
            for cache in caches:
                attention.compile(cache.layers[0][0])
        if not isinstance(attention, TorchAttention):
            return
        for cache in caches:
            num_blocks = max_num_seqs * -(-min(_RESERVED_TOKENS, max_len) // cache.block_size)
            layer = cache.layers[0]
            attention.reserve(min(layer[0].shape[0], num_blocks), layer)

    def graphs(self) -> None:
        """None: an operator is called in less time than it takes."""

    def sampling(
        self,
        mask_table: MaskTable,
        num_token_ids: int,
        pieces: AbstractSequence[bytes],
        synthetic_acceptance_rates: AbstractSequence[float],
    ) -> tuple[Sampler, Verifier]:
        sampler = Sampler(mask_table, num_token_ids)
        return sampler, Verifier(sampler, pieces, synthetic_acceptance_rates=synthetic_acceptance_rates)

    def drafting(
        self, runner: ModelRunner, sampler: DraftSampler, mask_table: MaskTable, num_token_ids: int
    ) -> SinglePasses:
        del mask_table, num_token_ids
        return SinglePasses(runner, sampler)


class KernelBackend:
    """Our kernels, and the library's matrix products: for GPUs, and for tests in Triton's interpreter."""

    max_head_size: int | None = MAX_HEAD_SIZE
    compiles = not INTERPRETED

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def kv_dtype(self, name: Literal["auto", "fp8"]) -> torch.dtype | None:
        if name == "auto":
            return None
        if self.device.type == "cuda":
            capability = torch.cuda.get_device_capability(self.device)
            if capability < FP8_CAPABILITY:
                raise ConfigError(
                    f"kv_cache_dtype is fp8, which this GPU cannot read: its compute capability is "
                    f"{'.'.join(map(str, capability))}, and {'.'.join(map(str, FP8_CAPABILITY))} is the least; leave "
                    "it at auto",
                    flag="--kv-cache-dtype",
                )
        return torch.float8_e4m3fn

    def overlaps(self, wanted: bool | None) -> bool:
        return self.device.type == "cuda" if wanted is None else wanted

    def layer_ops(self) -> KernelOps:
        return KernelOps()

    def attention(self, *, exact: bool) -> TritonAttention:
        return TritonAttention(self.device, row_invariant=exact)

    def reserve(
        self, attention: AttentionBackend[Any], caches: AbstractSequence[KVCache], *, max_num_seqs: int, max_len: int
    ) -> None:
        """Nothing: blocks are read where they are."""

    def graphs(self) -> Callable[[], GraphCapture]:
        if self.device.type == "cuda":
            return partial(CudaGraphCapture, self.device)
        return RepeatCapture

    def sampling(
        self,
        mask_table: MaskTable,
        num_token_ids: int,
        pieces: AbstractSequence[bytes],
        synthetic_acceptance_rates: AbstractSequence[float],
    ) -> tuple[DeviceSampler, DeviceVerifier]:
        sampler = DeviceSampler(mask_table, num_token_ids, self.device)
        verifier = DeviceVerifier(sampler, pieces, self.device, synthetic_acceptance_rates=synthetic_acceptance_rates)
        return sampler, verifier

    def drafting(
        self, runner: ModelRunner, sampler: DraftSampler, mask_table: MaskTable, num_token_ids: int
    ) -> DevicePasses:
        return DevicePasses(runner, sampler, mask_table, num_token_ids)


def backend_of(device: torch.device) -> Backend:
    """The one that is fast there."""
    return CpuBackend(device) if device.type == "cpu" else KernelBackend(device)
