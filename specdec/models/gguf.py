"""GGUF checkpoints, turned once into the safetensors folder that the engine reads.

Weights are dequantised to fp32 by the `gguf` package and stored as bfloat16 under their Hugging Face names. Only what
the catalog ships is understood: the llama architecture with a byte-level BPE vocabulary split as SmolLM's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import tokenizers
import torch
from safetensors.torch import save_file

from specdec.errors import CheckpointError

ProgressCallback = Callable[[int, int], None]
"""Called with (tensors converted so far, tensors in all)."""

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_TOP_TENSOR = re.compile(r"(\w+)\.(weight)")

# Token types of llama.cpp's vocabulary.
_CONTROL, _USER_DEFINED = 3, 4

_Metadata = Mapping[str, object]


def convert_gguf(source: Path, folder: Path, *, progress: ProgressCallback | None = None) -> None:
    """Write model.safetensors, config, tokenizer and chat template of a GGUF file into an existing folder.

    Raises CheckpointError for an architecture, vocabulary or tensor that is not understood.
    """
    reader = gguf.GGUFReader(source)
    metadata: _Metadata = {name: field.contents() for name, field in reader.fields.items()}
    if metadata.get("general.architecture") != "llama":
        raise CheckpointError(f"{source}: the architecture is {metadata.get('general.architecture')}; supported: llama")
    num_heads = _int(metadata, "llama.attention.head_count")
    num_kv_heads = _int(metadata, "llama.attention.head_count_kv")
    weights: dict[str, torch.Tensor] = {}
    for number, tensor in enumerate(reader.tensors, start=1):
        name = hugging_face_name(tensor.name)
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if ".q_proj." in name:
            values = unpermute(values, num_heads)
        elif ".k_proj." in name:
            values = unpermute(values, num_kv_heads)
        weights[name] = torch.from_numpy(np.require(values, requirements=("C", "W"))).to(torch.bfloat16)
        if progress is not None:
            progress(number, len(reader.tensors))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(metadata, tied="lm_head.weight" not in weights))
    _write_json(folder / "generation_config.json", _token_ids(metadata))
    _tokenizer(metadata, source).save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata))
    if "tokenizer.chat_template" in metadata:
        (folder / "chat_template.jinja").write_text(str(metadata["tokenizer.chat_template"]), encoding="utf-8")


def hugging_face_name(name: str) -> str:
    """The checkpoint key of a llama.cpp tensor; CheckpointError for one that has none."""
    if (match := _LAYER_TENSOR.fullmatch(name)) and match[2] in _NAMES:
        return f"model.layers.{match[1]}.{_NAMES[match[2]]}.{match[3]}"
    if (match := _TOP_TENSOR.fullmatch(name)) and match[1] in _NAMES:
        return f"{_NAMES[match[1]]}.{match[2]}"
    raise CheckpointError(f"the GGUF tensor {name} has no place in a llama model")


def unpermute(values: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Query or key rows in Hugging Face's order: the two halves of a rotated head side by side.

    llama.cpp stores the rows of a head interleaved, as it rotates neighbouring pairs.
    """
    half = values.shape[0] // num_heads // 2
    return values.reshape(num_heads, half, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _config(metadata: _Metadata, *, tied: bool) -> dict[str, object]:
    epsilon = metadata["llama.attention.layer_norm_rms_epsilon"]
    assert isinstance(epsilon, float)
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        **_token_ids(metadata),
        "dtype": "bfloat16",
        "head_dim": _int(metadata, "llama.rope.dimension_count"),
        "hidden_act": "silu",
        "hidden_size": _int(metadata, "llama.embedding_length"),
        "intermediate_size": _int(metadata, "llama.feed_forward_length"),
        "max_position_embeddings": _int(metadata, "llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": _int(metadata, "llama.attention.head_count"),
        "num_hidden_layers": _int(metadata, "llama.block_count"),
        "num_key_value_heads": _int(metadata, "llama.attention.head_count_kv"),
        # Stored as fp32: the shortest decimal that is this number is the one its author wrote.
        "rms_norm_eps": float(str(np.float32(epsilon))),
        "rope_scaling": None,
        "rope_theta": metadata["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "vocab_size": len(_tokens(metadata)),
    }


def _tokenizer(metadata: _Metadata, source: Path) -> tokenizers.Tokenizer:
    model, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if (model, split) != ("gpt2", "smollm"):
        raise CheckpointError(
            f"{source}: the vocabulary is {model}, split as {split}; supported: gpt2, split as smollm"
        )
    tokens = _tokens(metadata)
    merges = metadata["tokenizer.ggml.merges"]
    types = metadata["tokenizer.ggml.token_type"]
    assert isinstance(merges, list)
    assert isinstance(types, list)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: token_id for token_id, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in merges],
        )
    )
    # SmolLM's merges were learnt on text with every digit on its own; transformers' reader of GGUF omits this.
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    typed = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(token, normalized=False) for token, kind in typed if kind == _CONTROL]
    )
    tokenizer.add_tokens(
        [tokenizers.AddedToken(token, normalized=False) for token, kind in typed if kind == _USER_DEFINED]
    )
    return tokenizer


def _tokenizer_config(metadata: _Metadata) -> dict[str, object]:
    tokens = _tokens(metadata)
    named = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    return {
        "clean_up_tokenization_spaces": False,
        "model_max_length": _int(metadata, "llama.context_length"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{
            f"{ours}_token": tokens[_int(metadata, f"tokenizer.ggml.{theirs}_token_id")]
            for theirs, ours in named.items()
            if f"tokenizer.ggml.{theirs}_token_id" in metadata
        },
    }


def _token_ids(metadata: _Metadata) -> dict[str, object]:
    return {f"{name}_token_id": _int(metadata, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}


def _tokens(metadata: _Metadata) -> list[str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    return tokens


def _int(metadata: _Metadata, name: str) -> int:
    value = metadata[name]
    assert isinstance(value, int)
    return value


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
