"""PassGraphs: which of an engine's passes, drafting and sampling are graphs, what they hold, and capturing them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import torch

from specdec.captured_drafting import CapturedDrafting, graphs_of
from specdec.captured_passes import CapturedPasses
from specdec.captured_sampling import KINDS, CapturedSampling
from specdec.device_memory import DeviceMemory
from specdec.device_verifier import DeviceVerifier
from specdec.graph_buckets import (
    GraphBucket,
    SamplingBucket,
    draft_buckets,
    drafting_sizes,
    sampling_buckets,
    target_buckets,
)
from specdec.graph_capture import GraphCapture, first_cause
from specdec.kernels.grammar_advance import TransitionTable
from specdec.kv_cache import KVCache, allocate_arena
from specdec.logits_buffer import LogitsBuffer
from specdec.model_runner import ModelRunner
from specdec.models.llama import LlamaModel
from specdec.models.progress import ModelProgress, ProgressCallback
from specdec.proposers.device_passes import DevicePasses
from specdec.transition_mirror import NUM_BUCKETS, NUM_STATES, Transitions
from specdec.triton_attention import TritonAttention

_MAX_PARTIAL_BYTES: Final = 2**28
"""Of attention's partial results in a graph."""
_CAPTURING: Final = "Capturing graphs"
_CAPTURING_DRAFTING: Final = "Capturing graphs of drafting"
_CAPTURING_SAMPLING: Final = "Capturing graphs of sampling"

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassGraphs:
    """For a target, and its draft where there is one, in this order."""

    new_capture: Callable[[], GraphCapture]
    attention: TritonAttention
    max_model_len: int
    max_tokens: int
    """Of a step, as the next two."""
    max_sequences: int
    max_rows: int
    """Of the target's logits."""

    def buckets(self, models: AbstractSequence[LlamaModel]) -> list[list[GraphBucket]]:
        """Of each model, the largest first."""
        return [
            target_buckets(max_tokens=self._max_tokens(model), max_sequences=self.max_sequences, max_rows=self.max_rows)
            if index == 0
            else draft_buckets(max_tokens=self._max_tokens(model), max_sequences=self.max_sequences)
            for index, model in enumerate(models)
        ]

    def drafting_sizes(self, draft: LlamaModel) -> list[int]:
        """Numbers of sequences, the largest first."""
        return drafting_sizes(max_tokens=self._max_tokens(draft), max_sequences=self.max_sequences)

    def sampling_buckets(self) -> list[SamplingBucket]:
        """The largest first."""
        return sampling_buckets(max_sequences=self.max_sequences, max_rows=self.max_rows)

    def num_bytes(self, models: AbstractSequence[LlamaModel], memory: DeviceMemory, block_size: int) -> int:
        """What the graphs will hold: a few are captured over a pool of one block, and let go.

        They share what is between; each of the others adds to that about what three more of them do. Nothing where the
        device refuses, as the log then says. Raises torch.OutOfMemoryError.
        """
        try:
            return self._measured_bytes(models, memory, block_size)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Told here as well: some versions of torch answer the next capture with an error of their own.
            cause = first_cause(error)
            logger.warning("no graph could be captured for a trial (%s: %s)", type(cause).__name__, cause)
            return 0

    def _measured_bytes(self, models: AbstractSequence[LlamaModel], memory: DeviceMemory, block_size: int) -> int:
        capture = self.new_capture()
        shapes = [model.kv_shape for model in models]
        caches = allocate_arena(shapes, num_blocks=1, block_size=block_size, device=models[0].device)
        kept: list[CapturedPasses] = []
        total = 0
        target_logits, *_ = every_logits = [LogitsBuffer(model.device) for model in models]
        for model, cache, logits, buckets in zip(models, caches, every_logits, self.buckets(models), strict=True):
            logits.reserve(self._num_rows(len(kept)), model.config.vocab_size)
            free_before, _ = memory.free_and_total()
            captured = CapturedPasses(model, cache, self.attention, logits, buckets, max_model_len=self.max_model_len)
            kept.append(captured)
            total += _held(memory, free_before, partial(captured.capture, graphs=capture), buckets, len(buckets))
        of_drafting = (
            self._measured_bytes_of_drafting(model, cache, logits, memory)
            for model, cache, logits in zip(models[1:], caches[1:], every_logits[1:], strict=True)
        )
        total += sum(of_drafting)
        return total + self._measured_bytes_of_sampling(target_logits, models[0].config.vocab_size, memory)

    def _measured_bytes_of_drafting(
        self, draft: LlamaModel, cache: KVCache, logits: LogitsBuffer, memory: DeviceMemory
    ) -> int:
        """As of sampling; a loop's two graphs go together."""
        sizes, vocab_size, device = self.drafting_sizes(draft), draft.config.vocab_size, draft.device
        no_masks = torch.zeros(1, -(-vocab_size // 32), dtype=torch.int32, device=device)
        # Kernels are compiled anew for a table of one bucket.
        transitions = Transitions(TransitionTable.empty(NUM_BUCKETS, NUM_STATES, device), no_masks)
        free_before, _ = memory.free_and_total()
        captured = CapturedDrafting(
            draft,
            cache,
            self.attention,
            logits.rows(sizes[0], vocab_size),
            sizes,
            self.new_capture,
            num_token_ids=vocab_size,
            max_model_len=self.max_model_len,
        )
        told_the_most = [graphs for graphs in graphs_of(sizes) if graphs.truncates]
        capture = partial(captured.capture, transitions=transitions)
        return _held(memory, free_before, capture, told_the_most, len(graphs_of(sizes)))

    def _measured_bytes_of_sampling(self, logits: LogitsBuffer, vocab_size: int, memory: DeviceMemory) -> int:
        """As of passes, in memory of its own; the kind of graph that is told the most stands for all."""
        buckets = self.sampling_buckets()
        rows = logits.rows(buckets[0].num_rows, vocab_size)
        no_masks = torch.zeros(1, -(-vocab_size // 32), dtype=torch.int32, device=rows.device)
        free_before, _ = memory.free_and_total()
        captured = CapturedSampling(rows, buckets, self.new_capture(), num_token_ids=vocab_size)
        capture = partial(captured.capture, kind=KINDS[-1], mask_rows=no_masks)
        return _held(memory, free_before, capture, buckets, len(KINDS) * len(buckets))

    def capture(self, runners: AbstractSequence[ModelRunner], progress: ProgressCallback | None) -> None:
        """All of them; where the device refuses, the log says why, and that model's passes are eager."""
        capture = self.new_capture()
        all_buckets = self.buckets([runner.model for runner in runners])
        num_before, num_graphs = 0, sum(map(len, all_buckets))
        for index, (runner, buckets) in enumerate(zip(runners, all_buckets, strict=True)):
            # Before anything points to it.
            runner.logits.reserve(self._num_rows(index), runner.model.config.vocab_size)
            report = _reporting(progress, _CAPTURING, num_graphs, num_before)
            try:
                runner.capture(buckets, capture, max_model_len=self.max_model_len, report=report)
            except RuntimeError as error:
                cause = first_cause(error)
                logger.warning(
                    "passes of the %s model are launched kernel by kernel, which is slower: a graph of them could not "
                    "be captured (%s: %s)",
                    "draft" if index else "target",
                    type(cause).__name__,
                    cause,
                )
            num_before += len(buckets)
        _reporting(progress, _CAPTURING, num_graphs)(num_graphs)

    def capture_drafting(self, passes: DevicePasses, draft: LlamaModel, progress: ProgressCallback | None) -> None:
        """Likewise, of a draft model's loop, once there is what draws its tokens."""
        sizes = self.drafting_sizes(draft)
        num_graphs = len(graphs_of(sizes))
        report = _reporting(progress, _CAPTURING_DRAFTING, num_graphs)
        try:
            passes.capture(sizes, self.new_capture, max_model_len=self.max_model_len, report=report)
        except RuntimeError as error:
            cause = first_cause(error)
            logger.warning(
                "drafting is launched kernel by kernel, which is slower: a graph of it could not be captured (%s: %s)",
                type(cause).__name__,
                cause,
            )
            report(num_graphs)

    def capture_sampling(
        self, verifier: DeviceVerifier, logits: LogitsBuffer, vocab_size: int, progress: ProgressCallback | None
    ) -> None:
        """Likewise, once there is a verifier, which draws from the target's logits."""
        buckets = self.sampling_buckets()
        num_graphs = len(KINDS) * len(buckets)
        report = _reporting(progress, _CAPTURING_SAMPLING, num_graphs)
        rows = logits.rows(buckets[0].num_rows, vocab_size)
        try:
            verifier.capture(rows, buckets, self.new_capture(), report=report)
        except RuntimeError as error:
            cause = first_cause(error)
            logger.warning(
                "sampling is launched kernel by kernel, which is slower: a graph of it could not be captured (%s: %s)",
                type(cause).__name__,
                cause,
            )
            report(num_graphs)

    def _max_tokens(self, model: LlamaModel) -> int:
        config = model.config
        each = self.attention.partial_bytes(config.num_attention_heads, config.head_dim, self.max_model_len)
        return self.max_tokens if not each else max(1, min(self.max_tokens, _MAX_PARTIAL_BYTES // each))

    def _num_rows(self, index: int) -> int:
        return self.max_rows if index == 0 else self.max_sequences


def _held(
    memory: DeviceMemory,
    free_before: int,
    capture: Callable[[T], None],
    sizes: AbstractSequence[T],
    num_graphs: int,
) -> int:
    """Bytes of so many graphs, by the first of these, whatever came before it, the next, a middle one and the last."""
    capture(sizes[0])
    free_after_one, _ = memory.free_and_total()
    others = {sizes[min(1, len(sizes) - 1)], sizes[len(sizes) // 2], sizes[-1]} - {sizes[0]}
    for size in others:
        capture(size)
    free_after_all, _ = memory.free_and_total()
    each = max(0, free_after_one - free_after_all) / max(1, len(others))
    return max(0, free_before - free_after_one) + round(each * (num_graphs - 1))


def _reporting(
    progress: ProgressCallback | None, description: str, num_graphs: int, num_before: int = 0
) -> Callable[[int], None]:
    """What tells of so many graphs how many there are, beside those before."""

    def report(num_captured: int) -> None:
        if progress is not None:
            completed = num_before + num_captured
            progress(ModelProgress(stage="preparing", description=description, completed=completed, total=num_graphs))

    return report
