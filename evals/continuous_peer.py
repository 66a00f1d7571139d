"""ContinuousPeer: a model through transformers' continuous batching, to time beside the engine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

_BLOCK_TOKENS: Final = 256
"""The library's own size of a block."""
_WAIT_SECONDS: Final = 1.0
"""Between looks at whether the thread that generates is still there."""
_STOP_SECONDS: Final = 10.0
"""Answers under way may take; a bench that is told to end has twenty for all."""


class ContinuousPeer:
    """Greedy decoding of a fixed number of tokens. What it holds on a device, it holds until it is closed."""

    # Any: transformers ships no types that strict checking accepts.
    def __init__(self, model: Any, *, batch: int, model_len: int, max_batch_tokens: int, may_choose: bool) -> None:
        """`model_len` is of a prompt with its answer; may_choose: attention is what the library prefers, not sdpa.

        Raises whatever a version of transformers raises that has it not.
        """
        from transformers import ContinuousBatchingConfig, GenerationConfig  # noqa: PLC0415
        from transformers.generation.continuous_batching.utils import WorkloadHints  # noqa: PLC0415

        self._model = model
        config: dict[str, Any] = {
            # A block more for each sequence's last token, and one for rounding.
            "num_blocks": batch * (-(-model_len // _BLOCK_TOKENS) + 1) + 1,
            "max_batch_tokens": max_batch_tokens,
            # As the engine's prefix cache: off.
            "allow_block_sharing": False,
        }
        self._forced_attention: str | None = None
        if not may_choose:
            if "auto_switch_to_flash" in {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}:
                config["auto_switch_to_flash"] = False
            else:
                # In 5.17 what it does not replace is a name that says it is paged.
                self._forced_attention = "paged|sdpa"
        self._context: dict[str, Any] = {
            "generation_config": GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            "continuous_batching_config": ContinuousBatchingConfig(**config),
            # Else its memory and its graphs were made anew for each run, and timed.
            "persistent_manager": True,
            "workload_hints": WorkloadHints(max_prompt_length=model_len, max_generated_length=0, num_requests=batch),
            "timeout": _STOP_SECONDS,
        }
        self.attention = ""
        """By what it attended last."""

    def generate(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> tuple[list[list[int]], float]:
        """The new tokens of each prompt, and the seconds from the first request to the last answer.

        Raises RuntimeError where it ends without answers.
        """
        with self._attending(), self._model.continuous_batching_context_manager(**self._context) as manager:
            self.attention = self._model.config._attn_implementation  # noqa: SLF001, it has no other name
            start = time.perf_counter()
            request_ids = manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=num_new_tokens)
            answers: dict[str, list[int]] = {}
            while len(answers) < len(prompts):
                result = manager.get_result(timeout=_WAIT_SECONDS)
                if result is None and not manager.is_running():
                    raise RuntimeError("continuous batching ended before its requests did")
                if result is not None and result.is_finished():
                    if result.error is not None:
                        raise RuntimeError(f"continuous batching failed: {result.error}")
                    answers[result.request_id] = list(result.generated_tokens)
            seconds = time.perf_counter() - start
        new_tokens = [answers[request_id] for request_id in request_ids]
        if any(len(tokens) != num_new_tokens for tokens in new_tokens):
            raise RuntimeError(
                f"continuous batching gave {[len(tokens) for tokens in new_tokens]} tokens, not {num_new_tokens} each"
            )
        return new_tokens, seconds

    def close(self) -> None:
        """Give back its memory."""
        self._model.destroy_cached_continuous_batching_manager()

    @contextmanager
    def _attending(self) -> Iterator[None]:
        """The model is left as it was: others use it in between."""
        original = self._model.config._attn_implementation  # noqa: SLF001
        try:
            if self._forced_attention is not None:
                self._model.set_attn_implementation(self._forced_attention)
            yield
        finally:
            if self._model.config._attn_implementation != original:  # noqa: SLF001
                self._model.set_attn_implementation(original)
