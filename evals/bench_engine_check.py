"""Whether an engine's passes are worth timing: their logits are those of the model written out, however they are cut.

T tokens, E hidden size, H_q query heads, H key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.attention import Span
from specdec.engine import Engine
from specdec.kernels.rms_norm import rms_norm_reference
from specdec.kernels.rope import rope_reference
from specdec.kernels.silu_mul import silu_mul_reference
from specdec.models.llama import LlamaModel, rotary_tables

NUM_TOKENS: Final = 40
_CUTS: Final = ((NUM_TOKENS,), (19, 5, 16), (1,) * NUM_TOKENS)
"""A prompt, chunks and drafts of it, and its tokens one by one."""
NUM_SEQUENCES: Final = len(_CUTS)
MAX_DIFFERENCE: Final = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}
"""Root mean square, to that of the logits: roundings add up over the layers."""
_MAX_FP8_DIFFERENCE: Final = 0.02
"""With a cache of fp8 whose kernels are not the references: a last bit decides between neighbours there, which are an
eighth of a number apart at most."""


@torch.inference_mode()
def fault_of_passes(engine: Engine) -> str | None:
    """What differs, or None.

    Uses the first blocks of the pool, for NUM_SEQUENCES of NUM_TOKENS tokens, which must be nobody's.
    """
    description = engine.describe()
    num_blocks = -(-NUM_TOKENS // description.block_size)
    token_ids = [1 + 7 * i % (engine.tokenizer.vocab_size - 1) for i in range(NUM_TOKENS)]
    expected = _logits_written_out(engine.runner.model, token_ids)
    limit = MAX_DIFFERENCE[description.dtype]
    if engine.runner.model.kv_scales is not None and engine.runner.device.type == "cuda":
        limit = max(limit, _MAX_FP8_DIFFERENCE)
    for index, cut in enumerate(_CUTS):
        # Each in blocks of its own, where it finds nothing but what it wrote.
        table = range(index * num_blocks, (index + 1) * num_blocks)
        parts, start = [], 0
        for num_tokens in cut:
            span = Span(token_ids[start : start + num_tokens], start, table, num_logits=num_tokens)
            parts.append(engine.runner.forward([span]).to(expected, copy=True))
            start += num_tokens
        difference = float((torch.cat(parts) - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        # Written so that NaN is no difference that passes.
        if not difference <= limit:
            named = "1" if set(cut) == {1} else ", ".join(map(str, cut))
            return (
                f"logits of passes over {named} tokens differ from the model written out by {difference:.2g} of their "
                f"size; {limit:g} is the limit in {description.dtype} with a cache of {description.kv_cache_dtype}"
            )
    return None


def _logits_written_out(model: LlamaModel, token_ids: list[int]) -> Tensor:
    """fp32 [T, V]: the kernels' references, the model's own products, and every query over all the keys."""
    config, device = model.config, model.embedding.device
    num_heads, num_kv_heads = config.num_attention_heads, config.num_key_value_heads
    cos, signed_sin = rotary_tables(config, len(token_ids), torch.float32, device)
    positions = torch.arange(len(token_ids), device=device)
    x = F.embedding(torch.tensor(token_ids, device=device), model.embedding)
    for i, layer in enumerate(model.layers):
        heads = layer.qkv(_normed(x, layer.input_norm, config.rms_norm_eps)).view(len(x), -1, config.head_dim)
        query_key, value = torch.split(heads, [num_heads + num_kv_heads, num_kv_heads], dim=1)
        query_key = query_key.contiguous()
        rope_reference(query_key, positions, cos, signed_sin)
        query, key = torch.split(query_key, [num_heads, num_kv_heads], dim=1)
        if model.kv_scales is not None:
            key, value = map(_rounded, (key, value), model.kv_scales.layers[i])
        x = x + layer.output(_attended(query, key, value).to(x.dtype).flatten(1))
        gate_up = layer.gate_up(_normed(x, layer.post_attention_norm, config.rms_norm_eps))
        product = torch.empty_like(gate_up[:, : config.intermediate_size])
        silu_mul_reference(gate_up, product)
        x = x + layer.down(product)
    return model.head(_normed(x, model.norm, config.rms_norm_eps)).float()


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    output = torch.empty_like(x)
    rms_norm_reference(x, weight, output, eps=eps)
    return output


def _rounded(part: Tensor, scale: Tensor) -> Tensor:
    """[T, H, D] as a cache of fp8 keeps it, scale fp32 [H] -> fp32."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    scaled = (part.float() / scale[:, None]).clamp(-largest, largest)
    return scaled.to(torch.float8_e4m3fn).float() * scale[:, None]


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query [T, H_q, D], key and value [T, H, D] -> fp32 [T, H_q, D], causal."""
    num_groups = query.shape[1] // key.shape[1]
    keys, values = (part.float().repeat_interleave(num_groups, dim=1) for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * query.shape[2] ** -0.5
    is_later = torch.ones(len(query), len(query), dtype=torch.bool, device=query.device).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(is_later, float("-inf")).softmax(dim=2), values)
