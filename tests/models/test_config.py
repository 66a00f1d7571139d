import json
from pathlib import Path

import pytest
from tiny_model import LLAMA3_ROPE

from specdec.errors import CheckpointError
from specdec.models.config import ModelConfig, RopeConfig

MINIMAL = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
CACHES_ALONE = {
    "quant_method": "compressed-tensors",
    "config_groups": {},
    "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True},
}


def read(folder: Path, **fields: object) -> ModelConfig:
    kept = {name: value for name, value in (MINIMAL | fields).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    return ModelConfig.from_folder(folder)


def test_absent_fields_take_the_defaults_of_the_format(tmp_path):
    from transformers import LlamaConfig

    ours = read(tmp_path)
    theirs = LlamaConfig(**MINIMAL)
    assert ours.num_key_value_heads == theirs.num_key_value_heads
    assert ours.head_dim == theirs.head_dim
    for name in (
        "rms_norm_eps",
        "max_position_embeddings",
        "attention_bias",
        "mlp_bias",
        "tie_word_embeddings",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.rope == RopeConfig(theta=theirs.rope_parameters["rope_theta"])


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE},
        {"rope_theta": 500000, "rope_scaling": {**LLAMA3_ROPE, "type": "llama3"}},
        {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500000.0}},
    ],
    ids=["rope_scaling", "integers and the old name beside the new", "rope_parameters"],
)
def test_every_layout_of_llama3_rope_reads_the_same(tmp_path, fields):
    assert read(tmp_path, **fields).rope == RopeConfig(
        theta=500000.0,
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )


def test_a_config_that_transformers_wrote_reads_back(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(
        **MINIMAL, num_key_value_heads=2, head_dim=32, attention_bias=True, dtype="bfloat16", rope_theta=1e5
    ).save_pretrained(tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    assert (config.num_key_value_heads, config.head_dim, config.attention_bias) == (2, 32, True)
    assert config.dtype == "bfloat16"
    assert config.rope == RopeConfig(theta=1e5)


def test_end_ids_come_from_both_files_each_once(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2, 9]}', encoding="utf-8")
    assert read(tmp_path, eos_token_id=2).eos_token_ids == (2, 7, 9)
    assert read(tmp_path, eos_token_id=[9, 5]).eos_token_ids == (9, 5, 7, 2)
    assert read(tmp_path, eos_token_id=None).eos_token_ids == (7, 2, 9)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM; supported: LlamaForCausalLM"),
        ({"architectures": ..., "model_type": "gpt2", "hidden_size": ...}, "model_type gpt2"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu; supported: silu"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type is yarn; supported: default, llama3"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 4.0}}, "low_freq_factor < high_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method gptq"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "quant_method compressed-tensors"),
        (
            {"quantization_config": CACHES_ALONE | {"config_groups": {"group_0": {"weights": {"num_bits": 8}}}}},
            "quant_method compressed-tensors",
        ),
        (
            {"quantization_config": CACHES_ALONE | {"kv_cache_scheme": {"num_bits": 8, "type": "int"}}},
            "quant_method compressed-tensors",
        ),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}, "AutoModelForCausalLM"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn; supported: bfloat16"),
        ({"num_key_value_heads": 3}, "num_key_value_heads, 3"),
        ({"hidden_size": 66}, "hidden_size, 66"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": ...}, "vocab_size"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path, fields, named):
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, **fields)
    assert named in str(caught.value)


def test_a_scheme_for_caches_alone_leaves_the_weights_as_they_are(tmp_path):
    assert read(tmp_path, quantization_config=CACHES_ALONE) == read(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"architectures": ["\xff"]}'])
def test_a_file_that_is_absent_or_broken_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)
