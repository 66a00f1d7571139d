"""Small random Llama checkpoints on disk, for tests that need a model but not its knowledge."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from tiny_tokenizer import TokenizerKind, write_tiny_tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
END_ID = 2


def write_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    max_position_embeddings: int = 2048,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    tie_word_embeddings: bool = True,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    rope_scaling: dict[str, object] | None = None,
    num_shards: int = 1,
    num_padding_rows: int = 0,
    tokenizer: TokenizerKind = "byte_level",
) -> Path:
    """Write a model folder; the same arguments write the same weights.

    `num_padding_rows` adds rows to the embedding that no token has. The weights are scaled so that greedy
    decoding wanders instead of repeating its input and temperature 1 draws from dozens of tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tiny_tokenizer(folder, kind=tokenizer) + num_padding_rows
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": attention_bias,
        "bos_token_id": 1,
        "eos_token_id": END_ID,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": max_position_embeddings,
        "mlp_bias": mlp_bias,
        "model_type": "llama",
        "num_attention_heads": num_heads,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": num_kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_scaling": rope_scaling,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tie_word_embeddings,
        "torch_dtype": dtype,
        "vocab_size": vocab_size,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": END_ID}), encoding="utf-8"
    )
    shapes = _shapes(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {key: _weight(key, shape, generator).to(getattr(torch, dtype)) for key, shape in shapes.items()}
    _save(folder, tensors, num_shards)
    return folder


def _shapes(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    head_dim = int(config["head_dim"])
    query, key_value = (
        head_dim * int(config["num_attention_heads"]),
        head_dim * int(config["num_key_value_heads"]),
    )
    embedding = (int(config["vocab_size"]), hidden)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = embedding
    for layer in range(int(config["num_hidden_layers"])):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        for name, (rows, columns), has_bias in (
            ("self_attn.q_proj", (query, hidden), config["attention_bias"]),
            ("self_attn.k_proj", (key_value, hidden), config["attention_bias"]),
            ("self_attn.v_proj", (key_value, hidden), config["attention_bias"]),
            ("self_attn.o_proj", (hidden, query), config["attention_bias"]),
            ("mlp.gate_proj", (inner, hidden), config["mlp_bias"]),
            ("mlp.up_proj", (inner, hidden), config["mlp_bias"]),
            ("mlp.down_proj", (hidden, inner), config["mlp_bias"]),
        ):
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{prefix}.{name}.bias"] = (rows,)
    return shapes


def _weight(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    if key.endswith("norm.weight"):
        return 1.0 + 0.1 * noise
    if key.endswith(".bias"):
        return 0.1 * noise
    if "embed_tokens" in key or "lm_head" in key:
        # Unit-RMS hidden states times this give logits with a standard deviation near 2.5.
        return noise * (2.5 / math.sqrt(shape[1]))
    # What a layer adds outweighs the embedding it adds to, or tied logits would favour the input token.
    gain = 2.0 if "o_proj" in key or "down_proj" in key else 1.4
    return noise * (gain / math.sqrt(shape[1]))


def _save(folder: Path, tensors: dict[str, torch.Tensor], num_shards: int) -> None:
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    keys = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        held = keys[shard::num_shards]
        weight_map.update(dict.fromkeys(held, name))
        save_file({key: tensors[key] for key in held}, folder / name, metadata={"format": "pt"})
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
