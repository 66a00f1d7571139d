"""Named shapes: the architectures that the benches of kernels and engine are run with, by random weights."""

from __future__ import annotations

from typing import Final

from specdec.models.config import ModelConfig, RopeConfig

_LLAMA_VOCABULARY: Final = 128_256
_SMOLLM2_VOCABULARY: Final = 49_152
_TINY_VOCABULARY: Final = 512


def _shape(
    vocab_size: int,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    max_position_embeddings: int,
    ties: bool,
) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        rms_norm_eps=1e-5,
        rope=RopeConfig(),
        tie_word_embeddings=ties,
        attention_bias=False,
        mlp_bias=False,
        dtype="bfloat16",
        bos_token_id=None,
        eos_token_ids=(0,),
    )


SHAPES: Final[dict[str, ModelConfig]] = {
    # With the context of Llama 3.1.
    "llama-3-8b": _shape(
        _LLAMA_VOCABULARY,
        hidden_size=4096,
        intermediate_size=14_336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_position_embeddings=131_072,
        ties=False,
    ),
    "llama-3-1b": _shape(
        _LLAMA_VOCABULARY,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        ties=True,
    ),
    # No model of its own: a sixteenth of llama-3-8b, to draft for it.
    "llama-3-0.5b": _shape(
        _LLAMA_VOCABULARY,
        hidden_size=1024,
        intermediate_size=4096,
        num_layers=24,
        num_heads=16,
        num_kv_heads=4,
        head_dim=64,
        max_position_embeddings=131_072,
        ties=True,
    ),
    "smollm2-1.7b": _shape(
        _SMOLLM2_VOCABULARY,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=24,
        num_heads=32,
        num_kv_heads=32,
        head_dim=64,
        max_position_embeddings=8192,
        ties=True,
    ),
    "smollm2-360m": _shape(
        _SMOLLM2_VOCABULARY,
        hidden_size=960,
        intermediate_size=2560,
        num_layers=32,
        num_heads=15,
        num_kv_heads=5,
        head_dim=64,
        max_position_embeddings=8192,
        ties=True,
    ),
    "smollm2-135m": _shape(
        _SMOLLM2_VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        ties=True,
    ),
    # No model of its own: a sixteenth of smollm2-135m, three quarters of it the vocabulary.
    "smollm2-8m": _shape(
        _SMOLLM2_VOCABULARY,
        hidden_size=128,
        intermediate_size=512,
        num_layers=8,
        num_heads=2,
        num_kv_heads=1,
        head_dim=64,
        max_position_embeddings=8192,
        ties=True,
    ),
    # To see that the benches run.
    "tiny": _shape(
        _TINY_VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=8192,
        ties=False,
    ),
    "tiny-draft": _shape(
        _TINY_VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        max_position_embeddings=8192,
        ties=True,
    ),
}
