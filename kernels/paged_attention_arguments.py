"""What paged_attention takes: shapes, dtypes, devices, strides and numbers, or a ValueError that names each.

The letters are those of paged_attention.py.
"""

from __future__ import annotations

from typing import Final

import torch

from specdec.kernels.attention_tiling import AttentionTiling, check_tiling

_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
FP8_DTYPES: Final = (torch.float8_e4m3fn, torch.float8_e5m2)
MAX_HEAD_SIZE: Final = 256


def check_tensors(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    output: torch.Tensor,
) -> None:
    if query.ndim != 3 or query.dtype not in _DTYPES or not 1 <= query.shape[2] <= MAX_HEAD_SIZE:
        raise ValueError(
            f"query must be [T, H_q, D] float32, float16 or bfloat16 with D up to {MAX_HEAD_SIZE}; "
            f"it is {list(query.shape)} {query.dtype}"
        )
    if output.shape != query.shape or output.dtype != query.dtype:
        raise ValueError(
            f"output must be {list(query.shape)} {query.dtype} as query; it is {list(output.shape)} {output.dtype}"
        )
    if key_cache.ndim != 4 or key_cache.shape[3] != query.shape[2] or value_cache.shape != key_cache.shape:
        raise ValueError(
            f"the caches must share one [num_blocks, block_size, H, {query.shape[2]}]; "
            f"they are {list(key_cache.shape)} and {list(value_cache.shape)}"
        )
    if key_cache.shape[2] == 0 or query.shape[1] % key_cache.shape[2]:
        raise ValueError(f"{query.shape[1]} query heads are no multiple of {key_cache.shape[2]} KV heads")
    if key_cache.dtype not in {query.dtype, *FP8_DTYPES} or value_cache.dtype != key_cache.dtype:
        raise ValueError(
            f"the caches must both be {query.dtype} as query, or both of one fp8 dtype; "
            f"they are {key_cache.dtype} and {value_cache.dtype}"
        )
    num_sequences = context_lens.shape[0] if context_lens.ndim == 1 else -1
    for name, tensor, ndim, length in (
        ("block_tables", block_tables, 2, num_sequences),
        ("query_starts", query_starts, 1, num_sequences + 1),
        ("context_lens", context_lens, 1, num_sequences),
    ):
        if tensor.ndim != ndim or tensor.shape[0] != length or tensor.dtype != torch.int32:
            raise ValueError(
                f"block_tables, query_starts and context_lens must be [B, M], [B + 1] and [B] int32; "
                f"{name} is {list(tensor.shape)} {tensor.dtype}"
            )
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous along the last axis; its strides are {tensor.stride()}")
        _check_device(name, tensor, query)
    for name, tensor in {
        "query": query,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "output": output,
    }.items():
        _check_device(name, tensor, query)
        if tensor.shape[0] > 0 and not tensor[0].is_contiguous():
            raise ValueError(f"{name} must be contiguous beyond its first axis; its strides are {tensor.stride()}")


def check_options(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    max_num_queries: int,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    bias: torch.Tensor | None,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
    tiling: AttentionTiling | None,
) -> None:
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it must be 1 or more, or None")
    if not scale > 0.0:
        raise ValueError(f"scale is {scale}; it must be above 0")
    if soft_cap is not None and not soft_cap > 0.0:
        raise ValueError(f"soft_cap is {soft_cap}; it must be above 0, or None")
    if tiling is not None:
        check_tiling(tiling, query.shape[1] // key_cache.shape[2])
    if bias is not None:
        if (
            bias.ndim != 2
            or bias.shape[0] != query.shape[0]
            or bias.shape[1] < max_num_queries
            or bias.dtype != torch.float32
        ):
            raise ValueError(
                f"bias must be [{query.shape[0]}, {max_num_queries} or more] float32; "
                f"it is {list(bias.shape)} {bias.dtype}"
            )
        if bias.shape[1] > 1 and bias.stride(1) != 1:
            raise ValueError(f"bias must be contiguous along the last axis; its strides are {bias.stride()}")
        _check_device("bias", bias, query)
    is_fp8 = key_cache.dtype in FP8_DTYPES
    for name, of_heads in {"key_scale": key_scale, "value_scale": value_scale}.items():
        if (of_heads is not None) != is_fp8:
            raise ValueError(f"{name} goes with caches of fp8, and they are {key_cache.dtype}; give both or neither")
        if of_heads is not None:
            num_kv_heads = key_cache.shape[2]
            if of_heads.shape != (num_kv_heads,) or of_heads.dtype != torch.float32 or not of_heads.is_contiguous():
                raise ValueError(
                    f"{name} must be [{num_kv_heads}] float32, contiguous; "
                    f"it is {list(of_heads.shape)} {of_heads.dtype}"
                )
            _check_device(name, of_heads, query)


def _check_device(name: str, tensor: torch.Tensor, query: torch.Tensor) -> None:
    if tensor.device != query.device:
        raise ValueError(f"{name} is on {tensor.device}, query on {query.device}; they must be on one device")
