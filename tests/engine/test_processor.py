"""What is told of a processor: registers, and which numbers it multiplies."""

import types

import pytest
import torch

from specdec.processor import has_products_of, max_lanes

# Of x86 servers and others what torch tells of them.
AVX2 = ("AVX2", {"avx2"})
AVX2_CONVERTING = ("AVX2", {"avx2", "avx_ne_convert", "avx_vnni"})
ICE_LAKE = ("AVX512", {"avx2", "avx512_f", "avx512_vnni"})
ZEN_5 = ("AVX512", {"avx2", "avx512_f", "avx512_vnni", "avx512_bf16"})
SAPPHIRE_RAPIDS = ("AVX512", {"avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile"})
ARM = ("DEFAULT", {"neon", "bf16", "fp16_arith"})


@pytest.mark.parametrize(
    ("processor", "lanes", "multiplied"),
    [
        (AVX2, 8, {torch.float32}),
        (AVX2_CONVERTING, 8, {torch.float32}),
        (ICE_LAKE, 16, {torch.float32}),
        (ZEN_5, 16, {torch.float32, torch.bfloat16}),
        (SAPPHIRE_RAPIDS, 16, {torch.float32, torch.bfloat16, torch.float16}),
        (ARM, 8, set()),
    ],
)
def test_an_x86_has_what_its_instructions_say(processor, lanes, multiplied, monkeypatch):
    capability, names = processor
    capabilities = types.MappingProxyType(dict.fromkeys(names, True))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert max_lanes() == lanes
    assert {dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if has_products_of(dtype)} == multiplied
