"""Paged attention: each query over its sequence's keys and values in the paged cache, whatever the step is.

    output[t, h] = softmax(scores[t, h, :]) @ value[:, h // G]        over the keys j that t sees
    scores[t, h, j] = cap(scale * query[t, h] . key[j, h // G]) + bias[t, j - first]
    key[j] = key_cache[block_table[j // block_size], j % block_size]  and value[j] likewise

T packed queries, B sequences, H_q query heads over H KV heads, G = H_q / H, D head size, M blocks a table. A
sequence's queries are its last tokens: the i-th of Q stands at position first + i, first = context_len - Q. It
sees the keys j <= position and, with a window, only those with j > position - window. cap(x) is
soft_cap * tanh(x / soft_cap), or x. The bias is over this step's keys, those from `first` on: a tree of drafts
hides with -inf what is no ancestor; its nodes come after their parents, and a window counts places in the cache.
A query that sees nothing gets zeros.

One kernel serves prompts, decoding and drafts. A tile is some consecutive queries of one sequence with the G
heads of one KV head, so that a key is read once for all of them. The keys of few long sequences are split among
programs whose results a second kernel merges in order. Split at fixed positions, what a query gets does not depend on
the queries and sequences beside it; split into so many parts at most, the grid does not grow with the contexts.
"""

from __future__ import annotations

import torch

from specdec.kernels.attention_tiling import MERGED_AT_ONCE, AttentionTiling, choose_tiling
from specdec.kernels.dispatch import INTERPRETED, TRITON_RUNS_HERE, runs_in_triton
from specdec.kernels.paged_attention_arguments import FP8_DTYPES, check_options, check_tensors


def paged_attention_reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    output: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    bias: torch.Tensor | None = None,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
) -> None:
    """The specification, and the CPU path; arguments as in paged_attention."""
    block_size, num_kv_heads = key_cache.shape[1:3]
    starts = query_starts.tolist()
    for sequence, context_len in enumerate(context_lens.tolist()):
        rows = slice(starts[sequence], starts[sequence + 1])
        num_queries = rows.stop - rows.start
        if num_queries == 0:
            continue
        first = context_len - num_queries
        start = 0 if window is None else max(0, first - window + 1)
        key_positions = torch.arange(start, context_len, device=query.device)
        block_ids, offsets = block_tables[sequence, key_positions // block_size].long(), key_positions % block_size
        # Axis 2 of both is that of the G heads which share a key.
        keys, values = (_tokens_of(cache, block_ids, offsets).unsqueeze(2) for cache in (key_cache, value_cache))
        if key_scale is not None and value_scale is not None:
            keys, values = keys * key_scale[:, None, None], values * value_scale[:, None, None]
        heads = query[rows].float().reshape(num_queries, num_kv_heads, -1, query.shape[2])
        scores = scale * torch.einsum("qhgd,khgd->qkhg", heads, keys.expand(-1, -1, heads.shape[2], -1))
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        if bias is not None:
            scores[:, first - start :] += bias[rows, :num_queries, None, None]
        positions = torch.arange(first, context_len, device=query.device)[:, None]
        visible = key_positions <= positions
        if window is not None:
            visible &= key_positions > positions - window
        scores = scores.masked_fill(~visible[:, :, None, None], float("-inf"))
        seen = (scores > float("-inf")).any(dim=1, keepdim=True)
        weights = scores.softmax(dim=1).where(seen, 0.0)
        attended = torch.einsum("qkhg,khgd->qhgd", weights, values.expand(-1, -1, heads.shape[2], -1))
        output[rows] = attended.flatten(1, 2).to(output.dtype)


def _tokens_of(cache: torch.Tensor, block_ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """fp32 [L, H, D] of L places; fp8 as bytes, which every device can index."""
    if cache.dtype in FP8_DTYPES:
        return cache.view(torch.uint8)[block_ids, offsets].view(cache.dtype).float()
    return cache[block_ids, offsets].float()


if TRITON_RUNS_HERE:
    import triton

    from specdec.kernels.paged_attention_kernels import merge_splits_kernel, paged_attention_kernel


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    output: torch.Tensor,
    *,
    max_num_queries: int,
    max_context_len: int,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    bias: torch.Tensor | None = None,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
    tiling: AttentionTiling | None = None,
) -> None:
    """Attend each query to its sequence's context, into output.

    query, output: [T, H_q, D] of one dtype, float32, float16 or bfloat16, heads and elements contiguous, any
    stride from token to token. key_cache, value_cache: [num_blocks, block_size, H, D] of that dtype, or of one
    fp8 dtype with scales, any stride from block to block. block_tables: [B, M] int32, contiguous along M.
    query_starts: [B + 1] int32, ascending from 0: sequence b's queries are the rows query_starts[b] up to
    query_starts[b + 1], of which it may have none; later rows of output stay as they are. context_lens: [B]
    int32, tokens of each sequence in the cache, its queries' own included. bias: [T, max_num_queries or more]
    fp32, contiguous along the last axis. key_scale, value_scale: [H] fp32, above 0, what a cached number of a head
    is to be multiplied by. max_num_queries and max_context_len bound what the device's tensors hold, so that nothing
    waits for them; that they do, and that ids are in range, is the caller's to know. `tiling` is chosen for
    speed where it is None. Raises ValueError for other shapes, dtypes, devices, strides or numbers.
    """
    check_tensors(query, key_cache, value_cache, block_tables, query_starts, context_lens, output)
    check_options(query, key_cache, max_num_queries, scale, window, soft_cap, bias, key_scale, value_scale, tiling)
    num_tokens, num_heads, head_size = query.shape
    num_sequences = context_lens.shape[0]
    if num_tokens == 0 or num_sequences == 0:
        return
    if not runs_in_triton(query):
        paged_attention_reference(
            query,
            key_cache,
            value_cache,
            block_tables,
            query_starts,
            context_lens,
            output,
            scale=scale,
            window=window,
            soft_cap=soft_cap,
            bias=bias,
            key_scale=key_scale,
            value_scale=value_scale,
        )
        return
    block_size, num_kv_heads = key_cache.shape[1:3]
    num_groups = num_heads // num_kv_heads
    if tiling is None:
        tiling = choose_tiling(
            query,
            num_kv_heads=num_kv_heads,
            num_sequences=num_sequences,
            max_num_queries=max_num_queries,
            max_context_len=max_context_len,
            is_fp8=key_scale is not None,
        )
    tile_queries = max(1, tiling.tile_rows // num_groups)
    num_tiles = num_tokens // tile_queries + num_sequences
    split_keys = tiling.split_keys or 0
    num_splits = tiling.max_splits or (triton.cdiv(max_context_len, split_keys) if split_keys else 1)
    scratch = num_tokens * num_heads * num_splits if split_keys else 0
    partial = torch.empty(scratch * head_size, dtype=torch.float32, device=query.device)
    # Apart, so that both begin where an allocation does: a kernel is compiled once more for a less aligned pointer.
    maximum = torch.empty(scratch, dtype=torch.float32, device=query.device)
    total = torch.empty(scratch, dtype=torch.float32, device=query.device)
    padded_head_size = max(16, triton.next_power_of_2(head_size))
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        paged_attention_kernel[(num_tiles, num_kv_heads, num_splits)](
            output,
            partial,
            maximum,
            total,
            query,
            key_cache,
            value_cache,
            block_tables,
            query_starts,
            context_lens,
            bias,
            key_scale,
            value_scale,
            scale,
            soft_cap or 1.0,
            window or 0,
            num_sequences,
            output.stride(0),
            query.stride(0),
            key_cache.stride(0),
            value_cache.stride(0),
            block_tables.stride(0),
            0 if bias is None else bias.stride(0),
            num_splits,
            NUM_KV_HEADS=num_kv_heads,
            NUM_GROUPS=num_groups,
            HEAD_SIZE=head_size,
            PADDED_HEAD_SIZE=padded_head_size,
            BLOCK_SIZE=block_size,
            TILE_QUERIES=tile_queries,
            TILE_ROWS=tiling.tile_rows,
            TILE_KEYS=tiling.tile_keys,
            SPLIT_KEYS=split_keys,
            IS_BOUNDED=tiling.max_splits is not None,
            HAS_WINDOW=window is not None,
            HAS_SOFT_CAP=soft_cap is not None,
            HAS_BIAS=bias is not None,
            HAS_SCALES=key_scale is not None,
            # The interpreter multiplies bfloat16 as if it were integers.
            UPCAST=INTERPRETED and query.dtype == torch.bfloat16,
            num_warps=tiling.num_warps or 4,
            num_stages=tiling.num_stages,
        )
        if split_keys:
            merge_splits_kernel[(num_tokens, num_heads)](
                output,
                partial,
                maximum,
                total,
                query_starts,
                context_lens,
                window or 0,
                num_sequences,
                output.stride(0),
                num_splits,
                NUM_HEADS=num_heads,
                HEAD_SIZE=head_size,
                PADDED_HEAD_SIZE=padded_head_size,
                SPLIT_KEYS=split_keys,
                TILE_KEYS=tiling.tile_keys,
                IS_BOUNDED=tiling.max_splits is not None,
                HAS_WINDOW=window is not None,
                SPLITS_TILE=MERGED_AT_ONCE,
            )
