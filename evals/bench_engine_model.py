"""Models of a named shape with random weights: folders without weights, and what fills the models instead."""

from __future__ import annotations

import itertools
import math
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from specdec.models.config import ModelConfig
from specdec.models.loader import SINGLE_FILE, ProgressCallback, WeightLoader

_END: Final = "<|end|>"
_LOGIT_DEVIATION: Final = 2.5
"""Of a row of logits, so that tokens differ in how likely they are."""
_LAYER_GAIN, _OUTPUT_GAIN = 1.4, 2.0
"""What a layer adds outweighs the embedding it adds to, or a head that is the embedding would repeat its input."""


def write_shape(shape: ModelConfig, folder: Path) -> Path:
    """A model folder whose weights are for a WeightLoader to make up, and whose tokens are letters in any order."""
    folder.mkdir()
    config = {
        "architectures": [shape.architecture],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope.theta,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "dtype": shape.dtype,
        "eos_token_id": list(shape.eos_token_ids),
    }
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    (folder / "tokenizer.json").write_text(_tokenizer(shape.vocab_size).to_str(), encoding="utf-8")
    # Whoever looks for a checkpoint finds one; nothing reads it.
    save_file({}, folder / SINGLE_FILE)
    return folder


def _tokenizer(vocab_size: int) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [_END, *alphabet, *itertools.islice(_words(), vocab_size - len(alphabet) - 1)]
    tokenizer = Tokenizer(models.BPE(vocab={token: token_id for token_id, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_END, special=True, normalized=False)])
    return tokenizer


def _words() -> Iterator[str]:
    for length in itertools.count(2):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)


class RandomWeights:
    """A WeightLoader; the same seed gives the same weights on one kind of device."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    @torch.inference_mode()
    def __call__(
        self,
        folder: Path,
        slots: Mapping[str, torch.Tensor],
        *,
        ignored: Iterable[re.Pattern[str]] = (),
        progress: ProgressCallback | None = None,
    ) -> None:
        del folder, ignored
        num_bytes, num_filled = sum(slot.nbytes for slot in slots.values()), 0
        for index, (key, slot) in enumerate(slots.items()):
            generator = torch.Generator(slot.device).manual_seed(self._seed * 10_007 + index)
            if key.endswith("norm.weight"):
                slot.fill_(1.0)
            else:
                slot.normal_(0.0, _gain(key) / math.sqrt(slot.shape[1]), generator=generator)
            num_filled += slot.nbytes
            if progress is not None:
                progress(num_filled, num_bytes)


class KeptWeights:
    """A WeightLoader that remembers what another one filled, for others to share."""

    def __init__(self, load: WeightLoader) -> None:
        self._load = load
        self.slots: dict[str, torch.Tensor] = {}
        """Of the model loaded last, by their names in a checkpoint."""

    def __call__(
        self,
        folder: Path,
        slots: Mapping[str, torch.Tensor],
        *,
        ignored: Iterable[re.Pattern[str]] = (),
        progress: ProgressCallback | None = None,
    ) -> None:
        self._load(folder, slots, ignored=ignored, progress=progress)
        self.slots = dict(slots)


def _gain(key: str) -> float:
    if "embed_tokens" in key or "lm_head" in key:
        return _LOGIT_DEVIATION
    return _OUTPUT_GAIN if "o_proj" in key or "down_proj" in key else _LAYER_GAIN
