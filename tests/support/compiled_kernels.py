"""Compile the kernels as their wrappers would launch them on a GPU, on a machine that has none; prints what came of it.

    python -P compiled_kernels.py COMPUTE_CAPABILITY        as 90

Triton brings the compiler for NVIDIA's processors along. A double stands in for the driver, launches compile and run
nothing, and tensors are the CPU's: alignments and strides, by which kernels are specialised, are as on a GPU.
"""

from __future__ import annotations

import contextlib
import json
import sys

import torch

# Before the kernels' modules ask.
torch.cuda.is_available = lambda: True
torch.cuda.device_of = lambda _: contextlib.nullcontext()

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from specdec.kernels import (  # noqa: E402
    attention_tiling,
    draft_advance,
    few_row_linear,
    grammar_advance,
    kv_store,
    paged_attention,
    penalties,
    rms_norm,
    rope,
    sample,
    silu_mul,
    token_mask,
    verify_by_rule,
    verify_coupled,
)

MODULES = (
    draft_advance,
    few_row_linear,
    grammar_advance,
    kv_store,
    paged_attention,
    penalties,
    rms_norm,
    rope,
    sample,
    silu_mul,
    token_mask,
    verify_by_rule,
    verify_coupled,
)
NUM_PROCESSORS = 132


class Driver:
    """What a launch asks of a driver before it launches."""

    def __init__(self, capability):
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self._target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class Compilation:
    """Reports of kernels that were compiled, by what they were compiled for."""

    def __init__(self):
        self.case = ""
        self.reports = []

    def launch_of(self, kernel, grid):
        def compile_only(*arguments, **options):
            compiled = kernel.run(*arguments, grid=grid, warmup=True, **options)
            ptx = compiled.asm["ptx"]
            self.reports.append(
                {
                    "case": self.case,
                    "kernel": kernel.fn.__name__,
                    "shared_bytes": compiled.metadata.shared,
                    "num_warps": compiled.metadata.num_warps,
                    "is_fused": compiled.metadata.enable_fp_fusion,
                    "num_fused": ptx.count("fma.rn.f32"),
                    "num_async_copies": ptx.count("cp.async.c"),
                    "num_products": ptx.count("mma.sync") + ptx.count("wgmma.mma_async"),
                    "grid": list(grid),
                }
            )

        return compile_only


def attend(
    *,
    dtype,
    cache_dtype=None,
    num_tokens=64,
    num_sequences=64,
    context=4096,
    head_size=128,
    heads=(32, 8),
    tiling=None,
):
    """As of one layer in an arena of three."""
    num_heads, num_kv_heads = heads
    kind = cache_dtype or dtype
    arena = torch.zeros(4, 3, 2, 16, num_kv_heads, head_size, dtype=torch.uint8 if kind.itemsize == 1 else kind)
    keys, values = (arena.view(kind)[:, 1, part] for part in range(2))
    query = torch.zeros(num_tokens, num_heads, head_size, dtype=dtype)
    new = torch.zeros(num_tokens, num_kv_heads, head_size, dtype=dtype)
    scales = {name: torch.ones(num_kv_heads) for name in ("key_scale", "value_scale")} if kind.itemsize == 1 else {}
    kv_store.kv_store(new, new, keys, values, torch.zeros(num_tokens, dtype=torch.int64), **scales)
    paged_attention.paged_attention(
        query,
        keys,
        values,
        torch.zeros(num_sequences, context // 16, dtype=torch.int32),
        torch.zeros(num_sequences + 1, dtype=torch.int32),
        torch.zeros(num_sequences, dtype=torch.int32),
        torch.empty_like(query),
        max_num_queries=num_tokens // num_sequences,
        max_context_len=context,
        scale=0.1,
        tiling=tiling,
        **scales,
    )


def layer(dtype):
    x, weight = torch.zeros(3, 4096, dtype=dtype), torch.zeros(4096, dtype=dtype)
    rms_norm.rms_norm(x, weight, torch.empty_like(x), eps=1e-5)
    rms_norm.add_rms_norm(x, torch.zeros_like(x), weight, torch.empty_like(x), eps=1e-5)
    tables = torch.zeros(64, 1, 128, dtype=dtype)
    rope.rope(torch.zeros(3, 48, 128, dtype=dtype)[:, :40], torch.zeros(3, dtype=torch.int64), tables, tables)
    silu_mul.silu_mul(torch.zeros(3, 2 * 14336, dtype=dtype), torch.zeros(3, 14336, dtype=dtype))


def multiply(num_rows):
    """By the weights of two sizes of model, and up to the activation."""
    for num_outputs, num_inputs in [(6144, 4096), (1536, 1024), (28672, 4096), (4096, 14336)]:
        x = torch.zeros(num_rows, num_inputs, dtype=BF16)
        weight = torch.zeros(num_outputs, num_inputs, dtype=BF16)
        for is_gated in (False, True):
            output = torch.zeros(num_rows, num_outputs // (2 if is_gated else 1), dtype=BF16)
            few_row_linear.few_row_linear(x, weight, None, output, is_gated=is_gated)


def draw(*, vocab_size=151936, is_cut, is_masked):
    num_rows = 5
    cuts = {
        "top_k": torch.zeros(num_rows, dtype=torch.int32),
        "top_p": torch.zeros(num_rows, dtype=torch.float64),
        "min_p": torch.zeros(num_rows, dtype=torch.float64),
    }
    masks = {
        "mask_rows": torch.zeros(2, -(-vocab_size // 32), dtype=torch.int32),
        "mask_row_ids": torch.zeros(num_rows, dtype=torch.int64),
        "is_constrained": torch.zeros(num_rows, dtype=torch.bool),
    }
    sample.sample(
        torch.zeros(num_rows, vocab_size),
        torch.zeros(num_rows, 2, dtype=torch.int64),
        torch.ones(num_rows),
        torch.zeros(num_rows, dtype=torch.int64),
        num_token_ids=vocab_size,
        **(cuts if is_cut else {}),
        **(masks if is_masked else {}),
    )


def edit():
    """Penalties, biases and forbidden ends, and a mask."""
    rows, entries = torch.zeros(16, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    numbers = torch.ones(16)
    penalties.apply_penalties(
        torch.zeros(16, 151936),
        penalties.PenalisedRows(rows, rows, rows, torch.zeros(64, dtype=torch.int64)),
        max_num_preceding=4,
        seen=penalties.SeenTokens(rows, rows, entries, entries, numbers, numbers, numbers),
        bias=penalties.LogitBias(rows, rows, entries, torch.zeros(64)),
        forbidden=penalties.ForbiddenTokens(rows, rows, entries, rows),
    )
    table, row_ids = torch.zeros(2, 4748, dtype=torch.int32), torch.zeros(16, dtype=torch.int64)
    token_mask.apply_token_mask(torch.zeros(16, 151936), table, row_ids, rows=row_ids)


def verify():
    ids, starts = torch.zeros(320, dtype=torch.int64), torch.zeros(65, dtype=torch.int32)
    accepted, uniforms = torch.zeros(64, dtype=torch.int32), torch.zeros(320, dtype=torch.float64)
    verify_coupled.verify_coupled(ids, ids, starts, accepted, ids, max_num_rows=5)
    probs, draft_rows = torch.zeros(320, 1000, dtype=torch.float64), torch.zeros(320, dtype=torch.int32)
    for rule in ("rejection", "block"):
        verify_by_rule.verify_by_rule(
            probs,
            probs,
            draft_rows,
            ids,
            ids,
            uniforms,
            uniforms,
            starts,
            accepted,
            ids,
            rule=rule,
            max_num_rows=5,
        )


def go_on(num_sequences):
    """With drafts, to their next position."""
    ids, counts = (torch.zeros(num_sequences, dtype=dtype) for dtype in (torch.int64, torch.int32))
    rows = draft_advance.DraftRows(
        token_ids=ids,
        num_tokens=counts,
        num_drawn=counts,
        drawn=torch.zeros(64, num_sequences, dtype=torch.int64),
        keys=torch.zeros(64, num_sequences, 2, dtype=torch.int64),
        row_keys=torch.zeros(num_sequences, 2, dtype=torch.int64),
        temperatures=torch.zeros(num_sequences),
        is_known=torch.zeros(num_sequences, dtype=torch.bool),
        positions=ids,
        context_lens=counts,
        query_starts=torch.zeros(num_sequences + 1, dtype=torch.int32),
        slot_mapping=ids,
        block_tables=torch.zeros(num_sequences, 256, dtype=torch.int32),
    )
    draft_advance.draft_advance(rows, block_size=16)


def advance():
    states, table = torch.zeros(64, dtype=torch.int32), grammar_advance.TransitionTable.empty(2**13, 2**15)
    is_known, ids = torch.zeros(64, dtype=torch.bool), torch.zeros(64, dtype=torch.int64)
    grammar_advance.grammar_advance(states, ids, states, is_known, ids, table)


BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
CASES = {
    "decode": lambda: attend(dtype=BF16),
    "decode, 3 stages, 8 warps": lambda: attend(
        dtype=BF16, tiling=attention_tiling.AttentionTiling(16, 64, num_stages=3, num_warps=8)
    ),
    "decode, split": lambda: attend(dtype=BF16, num_tokens=1, num_sequences=1),
    "decode, fp8": lambda: attend(dtype=BF16, cache_dtype=FP8),
    "verify": lambda: attend(dtype=BF16, num_tokens=320),
    "verify, fp8": lambda: attend(dtype=BF16, cache_dtype=FP8, num_tokens=320),
    "prompt": lambda: attend(dtype=BF16, num_tokens=8192, num_sequences=1, context=8192),
    "prompt, fp8": lambda: attend(dtype=FP16, cache_dtype=FP8, num_tokens=8192, num_sequences=1, context=8192),
    "prompt, heads of 64": lambda: attend(
        dtype=FP16, num_tokens=2048, num_sequences=1, context=2048, head_size=64, heads=(9, 3)
    ),
    "prompt, heads of 80": lambda: attend(
        dtype=FP16, num_tokens=2048, num_sequences=1, context=2048, head_size=80, heads=(8, 8)
    ),
    "prompt, heads of 256": lambda: attend(
        dtype=BF16, num_tokens=2048, num_sequences=1, context=2048, head_size=256, heads=(8, 4)
    ),
    "prompt, fp32": lambda: attend(
        dtype=FP32, num_tokens=2048, num_sequences=1, context=2048, head_size=256, heads=(8, 4)
    ),
    "layer": lambda: layer(BF16),
    "products of one row": lambda: multiply(1),
    "products of five": lambda: multiply(5),
    "draw": lambda: draw(is_cut=False, is_masked=False),
    "draw of one token": lambda: draw(vocab_size=1, is_cut=True, is_masked=True),
    "draw, cut and masked": lambda: draw(is_cut=True, is_masked=True),
    "edit": edit,
    "rules": verify,
    "advance": advance,
    "drafts": lambda: go_on(64),
    "one draft": lambda: go_on(1),
    "the most drafts": lambda: go_on(512),
}


def main(capability):
    driver.set_active(Driver(capability))
    attention_tiling._num_processors = lambda _: NUM_PROCESSORS
    compilation = Compilation()

    def launch_of(kernel, grid):
        return compilation.launch_of(kernel, grid)

    JITFunction.__getitem__ = launch_of
    for module in MODULES:
        module.runs_in_triton = lambda _: True
    for case, launch in CASES.items():
        compilation.case = case
        launch()
    print(json.dumps(compilation.reports))


if __name__ == "__main__":
    main(int(sys.argv[1]))
