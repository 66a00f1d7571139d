"""Llama and its kin (SmolLM2, TinyLlama, Llama 2 and 3): grouped-query attention, RoPE, SwiGLU, RMSNorm.

T packed tokens, E hidden size, F intermediate size, H_q query heads, H key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.attention import AttentionBackend
from specdec.kv_cache import KVCache, KVShape
from specdec.linear import Linear, LinearMethod
from specdec.models.config import ModelConfig
from specdec.models.kv_scales import KVScales
from specdec.models.layer_ops import LayerOps, TorchOps

# Buffers that old checkpoints carry and that follow from the config.
IGNORED_KEYS = re.compile(r".*\.rotary_emb\.inv_freq$")


class LlamaLayer:
    """One decoder layer; projections that read the same input are fused: qkv and gate_up."""

    __slots__ = ("down", "gate_up", "input_norm", "output", "post_attention_norm", "qkv")

    def __init__(
        self, config: ModelConfig, method: LinearMethod[Any], dtype: torch.dtype, device: torch.device
    ) -> None:
        hidden_size = config.hidden_size
        heads_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim

        def linear(in_features: int, out_features: int, *, bias: bool) -> Linear:
            return Linear(in_features, out_features, bias=bias, method=method, dtype=dtype, device=device)

        self.input_norm = torch.empty(hidden_size, dtype=dtype, device=device)
        self.post_attention_norm = torch.empty(hidden_size, dtype=dtype, device=device)
        self.qkv = linear(hidden_size, heads_size + 2 * kv_size, bias=config.attention_bias)
        self.output = linear(heads_size, hidden_size, bias=config.attention_bias)
        self.gate_up = linear(hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down = linear(config.intermediate_size, hidden_size, bias=config.mlp_bias)


class LlamaModel:
    """The model over packed tokens; its KV lives in the pool, its matrix products in LinearMethods."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        method: LinearMethod[Any],
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
        # What it makes of positions is its own business.
        ops: LayerOps[Any] | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """`ops` are the library's where they are None, and the cache's dtype is the model's."""
        self.config = config
        self.dtype = dtype
        self.device = device
        self.kv_dtype = dtype if kv_dtype is None else kv_dtype
        self.kv_scales = (
            KVScales(config.num_hidden_layers, config.num_key_value_heads, device)
            if self.kv_dtype.itemsize == 1
            else None
        )
        """None for a cache that holds numbers as they are."""
        self._method = method
        self._ops: LayerOps[Any] = TorchOps() if ops is None else ops
        self.embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = [LlamaLayer(config, method, dtype, device) for _ in range(config.num_hidden_layers)]
        self.norm = torch.empty(config.hidden_size, dtype=dtype, device=device)
        if config.tie_word_embeddings:
            self.head = Linear.tied(self.embedding, method)
        else:
            self.head = Linear(
                config.hidden_size, config.vocab_size, bias=False, method=method, dtype=dtype, device=device
            )
        self._cos, self._signed_sin = rotary_tables(config, max_model_len, dtype, device)

    @property
    def kv_shape(self) -> KVShape:
        config = self.config
        return KVShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, self.kv_dtype)

    @property
    def num_bytes(self) -> int:
        """Of the weights, as they are loaded, and of the tables."""
        return sum(each.nbytes for each in (*self.weight_slots().values(), self._cos, self._signed_sin))

    def weight_slots(self) -> dict[str, Tensor]:
        """Each key of a checkpoint with the tensor it fills; fused projections are views of one weight."""
        config = self.config
        heads_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        slots = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if not config.tie_word_embeddings:
            slots |= _slots_of(self.head, "", {"lm_head": config.vocab_size})
        for i, layer in enumerate(self.layers):
            prefix = f"model.layers.{i}."
            slots[prefix + "input_layernorm.weight"] = layer.input_norm
            slots[prefix + "post_attention_layernorm.weight"] = layer.post_attention_norm
            slots |= _slots_of(
                layer.qkv, prefix + "self_attn.", {"q_proj": heads_size, "k_proj": kv_size, "v_proj": kv_size}
            )
            slots |= _slots_of(layer.output, prefix + "self_attn.", {"o_proj": config.hidden_size})
            slots |= _slots_of(
                layer.gate_up,
                prefix + "mlp.",
                {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size},
            )
            slots |= _slots_of(layer.down, prefix + "mlp.", {"down_proj": config.hidden_size})
        return slots

    def finish_loading(self) -> None:
        """Prepare every weight for its product; called once, after the loader filled the slots."""
        for layer in self.layers:
            for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
                linear.finish_loading()
        self.head.finish_loading()
        if self.kv_scales is not None:
            self.kv_scales.finish_loading()

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        logits_rows: Tensor,
        cache: KVCache,
        # The plan's type is the backend's own; the model only passes it on.
        attention: AttentionBackend[Any],
        plan: object,
    ) -> Tensor:
        """token_ids, positions int64 [T], logits_rows int64 [R] -> what `logits` takes of these rows, [R, hidden]."""
        config, ops = self.config, self._ops
        num_heads, num_kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        eps = config.rms_norm_eps
        # Rows that only fill products up run beside the others, but for attention, where they have no context.
        num_tokens = token_ids.shape[0]
        num_rows = self._method.padded_rows(num_tokens)
        token_ids, positions = _filled(token_ids, num_rows), _filled(positions, num_rows)
        rotation = ops.rotation(positions, self._cos, self._signed_sin)
        x = F.embedding(token_ids, self.embedding)
        added: Tensor | None = None
        all_scales = [()] * len(self.layers) if self.kv_scales is None else self.kv_scales.layers
        for layer, layer_cache, scales in zip(self.layers, cache.layers, all_scales, strict=True):
            if added is None:
                normed = ops.rms_norm(x, layer.input_norm, eps)
            else:
                x, normed = ops.add_rms_norm(x, added, layer.input_norm, eps)
            heads = layer.qkv(normed).view(-1, num_heads + 2 * num_kv_heads, head_dim)
            rotated = ops.rotate(heads[:, : num_heads + num_kv_heads], rotation)
            attended = attention.forward(
                rotated[:num_tokens, :num_heads],
                rotated[:num_tokens, num_heads:],
                heads[:num_tokens, num_heads + num_kv_heads :],
                layer_cache,
                plan,
                *scales,
            )
            added = layer.output(_filled(attended.view(-1, num_heads * head_dim), num_rows))
            x, normed = ops.add_rms_norm(x, added, layer.post_attention_norm, eps)
            added = layer.down(layer.gate_up.gated(normed, ops.silu_mul))
        x = x[logits_rows]
        return x if added is None else x + added[logits_rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, hidden], as `forward` returns it -> logits [R, V] in the model's dtype."""
        num_rows = hidden.shape[0]
        last = _filled(hidden, self._method.padded_rows(num_rows))
        return self.head(self._ops.rms_norm(last, self.norm, self.config.rms_norm_eps))[:num_rows]


def _filled(rows: Tensor, num_rows: int) -> Tensor:
    """rows [N, ...] and as many zeros as make num_rows."""
    num_spare = num_rows - rows.shape[0]
    return rows if not num_spare else torch.cat((rows, rows.new_zeros(num_spare, *rows.shape[1:])))


def rotary_tables(
    config: ModelConfig, max_positions: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin [max_positions, 1, D]; sin's first half is negated, so that rotating needs no split.

    RoFormer (Su et al. 2021), in the half-split layout, with Llama 3's scaling of low frequencies.
    """
    rope = config.rope
    frequencies = 1.0 / rope.theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    if rope.rope_type == "llama3":
        assert rope.factor
        assert rope.low_freq_factor
        assert rope.high_freq_factor
        assert rope.original_max_position_embeddings
        wavelengths = 2 * math.pi / frequencies
        smooth = (rope.original_max_position_embeddings / wavelengths - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        smooth = smooth.clamp(0.0, 1.0)
        frequencies = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies
    cos = torch.cat([angles.cos(), angles.cos()], dim=-1)
    signed_sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)
    return cos[:, None].to(device, dtype), signed_sin[:, None].to(device, dtype)


def _slots_of(linear: Linear, prefix: str, parts: dict[str, int]) -> dict[str, Tensor]:
    """The slots of projections fused row-wise into one linear; `parts` gives each one's output features, in order."""
    assert linear.weight is not None, "slots are filled before the weight is prepared"
    slots: dict[str, Tensor] = {}
    sizes = list(parts.values())
    for name, weight in zip(parts, torch.split(linear.weight, sizes), strict=True):
        slots[f"{prefix}{name}.weight"] = weight
    if linear.bias is not None:
        for name, bias in zip(parts, torch.split(linear.bias, sizes), strict=True):
            slots[f"{prefix}{name}.bias"] = bias
    return slots
