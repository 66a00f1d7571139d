"""TransformersPeer: the same model folder through transformers' `generate`, to time beside the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


class TransformersPeer:
    """Greedy decoding of a fixed number of tokens, prompts padded on the left."""

    def __init__(self, folder: Path, *, dtype: torch.dtype) -> None:
        # Imported here: it takes seconds, and a run without a peer does not need it.
        import transformers  # noqa: PLC0415

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        # Any: transformers ships no types that strict checking accepts.
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False
        ).eval()
        # An end of sequence is a token like any other: answers have as many as are asked for.
        self._model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> tuple[list[list[int]], float]:
        """The new tokens of each prompt, and the seconds it took."""
        longest = max(len(prompt) for prompt in prompts)
        start = time.perf_counter()
        padded = torch.zeros(len(prompts), longest, dtype=torch.int64)
        attended = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            padded[row, longest - len(prompt) :] = torch.tensor(prompt)
            attended[row, longest - len(prompt) :] = 1
        answers = self._model.generate(
            padded,
            attention_mask=attended,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=num_new_tokens,
            pad_token_id=0,
        )
        seconds = time.perf_counter() - start
        new_tokens: list[list[int]] = answers[:, longest:].tolist()
        if any(len(tokens) != num_new_tokens for tokens in new_tokens):
            raise RuntimeError(
                f"generate gave {[len(tokens) for tokens in new_tokens]} tokens, not {num_new_tokens} each"
            )
        return new_tokens, seconds
