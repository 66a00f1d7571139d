"""TransformersPeer: a model through transformers' `generate`, to time beside the engine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class TransformersPeer:
    """Greedy decoding of a fixed number of tokens, prompts padded on the left."""

    # Any, here and below: transformers ships no types that strict checking accepts.
    def __init__(self, model: Any, *, has_static_cache: bool = False) -> None:
        """has_static_cache: keys and values at fixed places, with which it compiles its decoding on a GPU."""
        self._model = model
        self._options = {"cache_implementation": "static"} if has_static_cache else {}
        # What is compiled may not take to tensors of inference mode.
        self._context = torch.no_grad if has_static_cache else torch.inference_mode
        self.attention: str = model.config._attn_implementation  # noqa: SLF001, it has no other name

    def generate(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> tuple[list[list[int]], float]:
        """The new tokens of each prompt, and the seconds it took."""
        device = self._model.device
        longest = max(len(prompt) for prompt in prompts)
        start = time.perf_counter()
        padded = torch.zeros(len(prompts), longest, dtype=torch.int64)
        attended = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            padded[row, longest - len(prompt) :] = torch.tensor(prompt)
            attended[row, longest - len(prompt) :] = 1
        with self._context():
            answers = self._model.generate(
                padded.to(device),
                attention_mask=attended.to(device),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=num_new_tokens,
                pad_token_id=0,
                **self._options,
            )
        new_tokens: list[list[int]] = answers[:, longest:].tolist()
        seconds = time.perf_counter() - start
        if any(len(tokens) != num_new_tokens for tokens in new_tokens):
            raise RuntimeError(
                f"generate gave {[len(tokens) for tokens in new_tokens]} tokens, not {num_new_tokens} each"
            )
        return new_tokens, seconds


def model_of_folder(folder: Path, *, dtype: torch.dtype) -> Any:
    """On the CPU, with weights of its own."""
    model = _transformers().AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False
    )
    return _endless(model)


def model_of_weights(folder: Path, weights: Mapping[str, Tensor], *, dtype: torch.dtype) -> Any:
    """The folder's architecture on weights by their names in a checkpoint, which it shares and does not copy."""
    transformers = _transformers()
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    left = model.load_state_dict(dict(weights), strict=False, assign=True)
    untied = [key for key in left.missing_keys if not (config.tie_word_embeddings and key == "lm_head.weight")]
    if untied or left.unexpected_keys:
        raise RuntimeError(f"weights do not fit: {untied} are missing, {left.unexpected_keys} are nobody's")
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    # What follows from the configuration was left without memory.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(model.model.embed_tokens.weight.device)
    return _endless(model)


def _transformers() -> Any:
    # Imported here: it takes seconds, and a run without a peer does not need it.
    import transformers  # noqa: PLC0415

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _endless(model: Any) -> Any:
    """An end of sequence is a token like any other: answers have as many as are asked for."""
    model.config.eos_token_id = None
    model.generation_config.eos_token_id = None
    return model.eval()
