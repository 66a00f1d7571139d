"""ModelConfig: what config.json says of an architecture, checked against what this engine computes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from specdec.errors import CheckpointError

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)
SUPPORTED_ROPE_TYPES = ("default", "llama3")

_COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


_T = TypeVar("_T")


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary position embedding; the last four fields are those of the llama3 scaling and None without it."""

    theta: float = 10_000.0
    rope_type: Literal["default", "llama3"] = "default"
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One decoder-only architecture, complete: every default of the format is resolved here."""

    architecture: Literal["LlamaForCausalLM"]
    vocab_size: int
    """Rows of the embedding; a tokenizer may use fewer, and the rows above it are never drawn."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool
    """Biases on the query, key, value and output projections alike."""
    mlp_bias: bool
    dtype: Literal["bfloat16", "float16", "float32"]
    """The checkpoint's own."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """From config.json, then generation_config.json, without repetition."""

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read config.json and, where there is one, generation_config.json.

        Raises CheckpointError for a file that is absent or malformed, and for an architecture, activation,
        rope type or quantisation that is not supported, naming it and what is.
        """
        path = folder / "config.json"
        raw = _read_config_file(path)
        _refuse_unsupported(raw, path)
        num_heads = raw.num_attention_heads
        num_kv_heads = num_heads if raw.num_key_value_heads is None else raw.num_key_value_heads
        for name in _COUNTS:
            if getattr(raw, name) < 1:
                raise CheckpointError(f"{path}: {name} is {getattr(raw, name)}; it must be at least 1")
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise CheckpointError(
                f"{path}: num_attention_heads, {num_heads}, is no multiple of num_key_value_heads, {num_kv_heads}"
            )
        if raw.head_dim is None and raw.hidden_size % num_heads:
            raise CheckpointError(
                f"{path}: hidden_size, {raw.hidden_size}, is no multiple of num_attention_heads, "
                f"{num_heads}, and head_dim is not given"
            )
        head_dim = raw.hidden_size // num_heads if raw.head_dim is None else raw.head_dim
        if head_dim < 2 or head_dim % 2:
            raise CheckpointError(f"{path}: head_dim is {head_dim}; rotary embedding needs an even, positive one")
        return cls(
            architecture="LlamaForCausalLM",
            vocab_size=raw.vocab_size,
            hidden_size=raw.hidden_size,
            intermediate_size=raw.intermediate_size,
            num_hidden_layers=raw.num_hidden_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=head_dim,
            max_position_embeddings=raw.max_position_embeddings,
            rms_norm_eps=raw.rms_norm_eps,
            rope=_rope_config(raw, path),
            tie_word_embeddings=raw.tie_word_embeddings,
            attention_bias=raw.attention_bias,
            mlp_bias=raw.mlp_bias,
            dtype=_dtype(raw, path),
            bos_token_id=raw.bos_token_id,
            eos_token_ids=read_eos_token_ids(folder),
        )


def read_eos_token_ids(folder: Path) -> tuple[int, ...]:
    """The end-of-sequence ids of config.json, then those of generation_config.json, each once."""
    found: list[int] = []
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if path.is_file():
            found += _as_tuple(_decode(path, _TokenIds).eos_token_id)
    return tuple(dict.fromkeys(found))


class _TokenIds(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


class _RopeParameters(msgspec.Struct):
    """`rope_scaling` (theta beside it, `type` in old files) and transformers 5's `rope_parameters` in one."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    partial_rotary_factor: float | None = None


class _ConfigFile(msgspec.Struct):
    """The fields of config.json that decide what is computed; the defaults are those of the format."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    architectures: list[str] | None = None
    model_type: str | None = None
    auto_map: dict[str, object] | None = None
    quantization_config: dict[str, object] | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_scaling: _RopeParameters | None = None
    rope_parameters: _RopeParameters | None = None
    partial_rotary_factor: float | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    torch_dtype: str | None = None
    dtype: str | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


class _Family(msgspec.Struct):
    """Enough of config.json to refuse a foreign architecture before its own fields are found missing."""

    architectures: list[str] | None = None
    model_type: str | None = None


def _read_config_file(path: Path) -> _ConfigFile:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no config.json; a model folder needs one")
    family = _decode(path, _Family)
    if family.architectures is None or not set(family.architectures) <= set(SUPPORTED_ARCHITECTURES):
        named = ", ".join(family.architectures or ()) or f"none (model_type {family.model_type})"
        raise CheckpointError(f"{path}: the architecture is {named}; supported: {', '.join(SUPPORTED_ARCHITECTURES)}")
    return _decode(path, _ConfigFile)


def _refuse_unsupported(raw: _ConfigFile, path: Path) -> None:
    if raw.auto_map:
        raise CheckpointError(
            f"{path}: auto_map hands the model to code of its own ({', '.join(sorted(raw.auto_map))}), "
            "which is never run; take a checkpoint without it"
        )
    if raw.quantization_config is not None and not _is_about_caches_alone(raw.quantization_config):
        method = raw.quantization_config.get("quant_method", "unnamed")
        raise CheckpointError(
            f"{path}: the checkpoint is quantised (quant_method {method}); "
            "supported: unquantised bfloat16, float16 and float32"
        )
    if raw.hidden_act not in {"silu", "swish"}:
        raise CheckpointError(f"{path}: hidden_act is {raw.hidden_act}; supported: silu")
    for where in (raw, raw.rope_scaling, raw.rope_parameters):
        if where is not None and where.partial_rotary_factor not in {None, 1.0}:
            raise CheckpointError(f"{path}: partial_rotary_factor is {where.partial_rotary_factor}; supported: 1")


def _is_about_caches_alone(quantization: dict[str, object]) -> bool:
    """Weights as they are, and scales for caches of fp8, which an engine may use (models/kv_scales.py)."""
    scheme = quantization.get("kv_cache_scheme")
    return (
        quantization.get("quant_method") == "compressed-tensors"
        and not quantization.get("config_groups")
        and isinstance(scheme, dict)
        and (scheme.get("num_bits"), scheme.get("type")) == (8, "float")
    )


def _rope_config(raw: _ConfigFile, path: Path) -> RopeConfig:
    parameters = raw.rope_parameters or raw.rope_scaling or _RopeParameters()
    theta = next((value for value in (parameters.rope_theta, raw.rope_theta) if value is not None), 10_000.0)
    rope_type = parameters.rope_type or parameters.type or "default"
    if rope_type == "default":
        return RopeConfig(theta=theta)
    if rope_type != "llama3":
        raise CheckpointError(f"{path}: the rope type is {rope_type}; supported: {', '.join(SUPPORTED_ROPE_TYPES)}")
    original = parameters.original_max_position_embeddings
    factor, low, high = parameters.factor, parameters.low_freq_factor, parameters.high_freq_factor
    if factor is None or low is None or high is None or original is None:
        raise CheckpointError(
            f"{path}: llama3 rope needs factor, low_freq_factor, high_freq_factor and "
            f"original_max_position_embeddings; they are {factor}, {low}, {high} and {original}"
        )
    if factor < 1 or not 0 < low < high or original < 1:
        raise CheckpointError(
            f"{path}: llama3 rope needs factor >= 1 and 0 < low_freq_factor < high_freq_factor; "
            f"they are {factor}, {low} and {high}, from {original} positions"
        )
    return RopeConfig(
        theta=theta,
        rope_type="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )


def _dtype(raw: _ConfigFile, path: Path) -> Literal["bfloat16", "float16", "float32"]:
    match (raw.dtype or raw.torch_dtype or "float32").removeprefix("torch."):
        case "bfloat16":
            return "bfloat16"
        case "float16":
            return "float16"
        case "float32":
            return "float32"
        case other:
            raise CheckpointError(f"{path}: the dtype is {other}; supported: bfloat16, float16, float32")


def _as_tuple(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def _decode(path: Path, struct: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=struct)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
