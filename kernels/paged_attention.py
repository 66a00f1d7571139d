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

from typing import Final

import torch

from specdec.kernels.attention_tiling import AttentionTiling, check_tiling, choose_tiling
from specdec.kernels.dispatch import INTERPRETED, TRITON_RUNS_HERE, runs_in_triton

_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
_FP8_DTYPES: Final = (torch.float8_e4m3fn, torch.float8_e5m2)
MAX_HEAD_SIZE: Final = 256


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
    if cache.dtype in _FP8_DTYPES:
        return cache.view(torch.uint8)[block_ids, offsets].view(cache.dtype).float()
    return cache[block_ids, offsets].float()


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def _sequence_of(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        query_starts_ptr, num_sequences, index, TILE_QUERIES: tl.constexpr
    ):
        """The sequence of a tile, or of a token where TILE_QUERIES is 0: the last that starts no later.

        Tiles are numbered so that sequence b starts at tile query_starts[b] // TILE_QUERIES + b, which leaves
        room for its own: the grid depends on T and B alone, and a captured graph's stays right.
        """
        low = index * 0
        high = low + num_sequences
        while low < high:
            middle = (low + high) // 2
            start = tl.load(query_starts_ptr + middle)
            if TILE_QUERIES > 0:
                start = start // TILE_QUERIES + middle
            if start <= index:
                low = middle + 1
            else:
                high = middle
        return low - 1

    @triton.jit  # type: ignore[untyped-decorator]
    def _split_size(  # type: ignore[no-untyped-def]
        context_len, num_splits, SPLIT_KEYS: tl.constexpr, TILE_KEYS: tl.constexpr, IS_BOUNDED: tl.constexpr
    ):
        """Keys of each split of a context."""
        size = context_len * 0 + SPLIT_KEYS
        if IS_BOUNDED:
            share = (context_len + num_splits - 1) // num_splits
            size = tl.maximum(size, (share + TILE_KEYS - 1) // TILE_KEYS * TILE_KEYS)
        return size

    @triton.jit  # type: ignore[untyped-decorator]
    def _attend_tile(  # type: ignore[no-untyped-def]
        maximum,
        total,
        attended,
        query,
        key_cache_ptr,
        value_cache_ptr,
        table_ptr,
        bias_ptr,
        tile_start,
        start,
        end,
        first_position,
        position,
        token,
        is_row,
        kv_head,
        score_scale,
        soft_cap,
        window,
        key_block_stride,
        value_block_stride,
        bias_token_stride,
        NUM_KV_HEADS: tl.constexpr,
        HEAD_SIZE: tl.constexpr,
        PADDED_HEAD_SIZE: tl.constexpr,
        BLOCK_SIZE: tl.constexpr,
        TILE_KEYS: tl.constexpr,
        IS_MASKED: tl.constexpr,
        HAS_WINDOW: tl.constexpr,
        HAS_SOFT_CAP: tl.constexpr,
        HAS_BIAS: tl.constexpr,
    ):
        """What a tile's keys add. Those outside [start, end), and what a query does not see, are masked, if any."""
        LOG2_E: tl.constexpr = 1.4426950408889634
        element = tl.arange(0, PADDED_HEAD_SIZE)
        is_element = element < HEAD_SIZE
        key_position = tile_start + tl.arange(0, TILE_KEYS)
        # Nothing else is loaded: beyond the context, and before the window, a block may be anyone's.
        is_key = (key_position >= start) & (key_position < end)
        if IS_MASKED:
            block_id = tl.load(table_ptr + key_position // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        else:
            block_id = tl.load(table_ptr + key_position // BLOCK_SIZE).to(tl.int64)
        in_block = (key_position % BLOCK_SIZE) * (NUM_KV_HEADS * HEAD_SIZE) + kv_head * HEAD_SIZE
        key_ptr = key_cache_ptr + (block_id * key_block_stride + in_block)[None, :] + element[:, None]
        value_ptr = value_cache_ptr + (block_id * value_block_stride + in_block)[:, None] + element[None, :]
        if IS_MASKED:
            keys = tl.load(key_ptr, mask=is_element[:, None] & is_key[None, :], other=0.0).to(query.dtype)
        elif HEAD_SIZE < PADDED_HEAD_SIZE:
            keys = tl.load(key_ptr, mask=is_element[:, None], other=0.0).to(query.dtype)
        else:
            keys = tl.load(key_ptr).to(query.dtype)
        scores = tl.dot(query, keys, input_precision="ieee")
        if HAS_SOFT_CAP:
            # The hyperbolic tangent by an exponential that cannot overflow.
            scores *= score_scale
            decayed = tl.exp(-2.0 * tl.abs(scores / soft_cap))
            capped = soft_cap * (1.0 - decayed) / (1.0 + decayed)
            scores = tl.where(scores < 0.0, -capped, capped)
        if HAS_BIAS:
            if not HAS_SOFT_CAP:
                scores *= score_scale
            column = key_position - first_position
            scores += tl.load(
                bias_ptr + (token * bias_token_stride)[:, None] + column[None, :],
                mask=is_row[:, None] & (is_key & (column >= 0))[None, :],
                other=0.0,
            )
        # What is left to multiply by comes into the exponent by a fused product, in both forms of a tile: whether it
        # has something to mask says what other queries see, and must not show in a bit.
        factor = LOG2_E if HAS_SOFT_CAP or HAS_BIAS else score_scale * LOG2_E
        if IS_MASKED:
            visible = is_key[None, :] & (key_position[None, :] <= position[:, None])
            if HAS_WINDOW:
                visible &= key_position[None, :] > position[:, None] - window
            scores = tl.where(visible, scores, float("-inf"))

        new_maximum = tl.maximum(maximum, tl.max(scores * factor, axis=1))
        shift = new_maximum
        if IS_MASKED:
            # Where nothing was seen yet, -inf less -inf would be NaN.
            shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.exp2(tl.fma(scores, factor, -shift[:, None]))
        decay = tl.exp2(maximum - shift)
        total = total * decay + tl.sum(weights, axis=1)
        if IS_MASKED:
            values = tl.load(value_ptr, mask=is_key[:, None] & is_element[None, :], other=0.0).to(query.dtype)
        elif HEAD_SIZE < PADDED_HEAD_SIZE:
            values = tl.load(value_ptr, mask=is_element[None, :], other=0.0).to(query.dtype)
        else:
            values = tl.load(value_ptr).to(query.dtype)
        attended = tl.dot(weights.to(query.dtype), values, attended * decay[:, None], input_precision="ieee")
        return new_maximum, total, attended

    # Numbers that change from step to step, each of which would otherwise have kernels of its own where it is 1, or
    # divisible by 16.
    @triton.jit(  # type: ignore[untyped-decorator]
        do_not_specialize=["window", "num_sequences", "block_table_stride", "bias_token_stride", "num_splits"]
    )
    def _paged_attention_kernel(  # type: ignore[no-untyped-def]
        output_ptr,
        partial_ptr,
        maximum_ptr,
        total_ptr,
        query_ptr,
        key_cache_ptr,
        value_cache_ptr,
        block_tables_ptr,
        query_starts_ptr,
        context_lens_ptr,
        bias_ptr,
        key_scale_ptr,
        value_scale_ptr,
        scale,
        soft_cap,
        window,
        num_sequences,
        output_token_stride,
        query_token_stride,
        key_block_stride,
        value_block_stride,
        block_table_stride,
        bias_token_stride,
        num_splits,
        NUM_KV_HEADS: tl.constexpr,
        NUM_GROUPS: tl.constexpr,
        HEAD_SIZE: tl.constexpr,
        PADDED_HEAD_SIZE: tl.constexpr,
        BLOCK_SIZE: tl.constexpr,
        TILE_QUERIES: tl.constexpr,
        TILE_ROWS: tl.constexpr,
        TILE_KEYS: tl.constexpr,
        SPLIT_KEYS: tl.constexpr,
        IS_BOUNDED: tl.constexpr,
        HAS_WINDOW: tl.constexpr,
        HAS_SOFT_CAP: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        HAS_SCALES: tl.constexpr,
        UPCAST: tl.constexpr,
    ):
        """One program attends one tile of queries, at one KV head, to one split of the keys."""
        # A prompt's last queries see the most keys: they come first, so that no long tile is left to run alone.
        tile = tl.num_programs(0) - 1 - tl.program_id(0)
        kv_head = tl.program_id(1)
        split = tl.program_id(2)
        sequence = _sequence_of(query_starts_ptr, num_sequences, tile, TILE_QUERIES)
        query_start = tl.load(query_starts_ptr + sequence)
        num_queries = tl.load(query_starts_ptr + sequence + 1) - query_start
        first_query = (tile - query_start // TILE_QUERIES - sequence) * TILE_QUERIES
        if first_query >= num_queries:
            return
        context_len = tl.load(context_lens_ptr + sequence)
        first_position = context_len - num_queries
        end = first_position + tl.minimum(first_query + TILE_QUERIES, num_queries)
        start = end * 0
        if HAS_WINDOW:
            start = tl.maximum(first_position + first_query - window + 1, 0)
        if SPLIT_KEYS > 0:
            split_keys = _split_size(context_len, num_splits, SPLIT_KEYS, TILE_KEYS, IS_BOUNDED)
            start = tl.maximum(start, split * split_keys)
            end = tl.minimum(end, (split + 1) * split_keys)
            if start >= end:
                return

        row = tl.arange(0, TILE_ROWS)
        element = tl.arange(0, PADDED_HEAD_SIZE)
        query_index = first_query + row // NUM_GROUPS
        head = kv_head * NUM_GROUPS + row % NUM_GROUPS
        is_row = (row < TILE_QUERIES * NUM_GROUPS) & (query_index < num_queries)
        is_element = element < HEAD_SIZE
        token = (query_start + query_index).to(tl.int64)
        position = first_position + query_index
        query = tl.load(
            query_ptr + (token * query_token_stride + head * HEAD_SIZE)[:, None] + element[None, :],
            mask=is_row[:, None] & is_element[None, :],
            other=0.0,
        )
        score_scale = scale
        if HAS_SCALES:
            score_scale *= tl.load(key_scale_ptr + kv_head)
        if HAS_SCALES and query_ptr.dtype.element_ty == tl.bfloat16:
            # Devices make 16-bit floats of 8 bits by one instruction, and bfloat16 by several. A row of queries has the
            # same digits in them once it is divided by a power of two, for which its scores make up.
            query = query.to(tl.float32)
            largest = tl.max(tl.abs(query), axis=1)
            unit = (largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
            unit = tl.where(unit == 0.0, 1.0, unit)[:, None]
            query = (query / unit).to(tl.float16)
            score_scale *= unit
        elif UPCAST:
            query = query.to(tl.float32)

        maximum = tl.full((TILE_ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((TILE_ROWS,), tl.float32)
        attended = tl.zeros((TILE_ROWS, PADDED_HEAD_SIZE), tl.float32)
        table_ptr = block_tables_ptr + sequence.to(tl.int64) * block_table_stride
        first_tile = start // TILE_KEYS * TILE_KEYS
        if HAS_WINDOW or HAS_BIAS:
            seen_by_all = first_tile
        else:
            # Whole tiles that every query sees, of which nothing is to be masked.
            seen_by_all = tl.minimum(end, first_position + first_query + 1) // TILE_KEYS * TILE_KEYS
            seen_by_all = tl.maximum(seen_by_all, first_tile)
        for tile_start in range(first_tile, seen_by_all, TILE_KEYS):
            maximum, total, attended = _attend_tile(
                maximum,
                total,
                attended,
                query,
                key_cache_ptr,
                value_cache_ptr,
                table_ptr,
                bias_ptr,
                tile_start,
                start,
                end,
                first_position,
                position,
                token,
                is_row,
                kv_head,
                score_scale,
                soft_cap,
                window,
                key_block_stride,
                value_block_stride,
                bias_token_stride,
                NUM_KV_HEADS,
                HEAD_SIZE,
                PADDED_HEAD_SIZE,
                BLOCK_SIZE,
                TILE_KEYS,
                False,
                False,
                HAS_SOFT_CAP,
                False,
            )
        for tile_start in range(seen_by_all, end, TILE_KEYS):
            maximum, total, attended = _attend_tile(
                maximum,
                total,
                attended,
                query,
                key_cache_ptr,
                value_cache_ptr,
                table_ptr,
                bias_ptr,
                tile_start,
                start,
                end,
                first_position,
                position,
                token,
                is_row,
                kv_head,
                score_scale,
                soft_cap,
                window,
                key_block_stride,
                value_block_stride,
                bias_token_stride,
                NUM_KV_HEADS,
                HEAD_SIZE,
                PADDED_HEAD_SIZE,
                BLOCK_SIZE,
                TILE_KEYS,
                True,
                HAS_WINDOW,
                HAS_SOFT_CAP,
                HAS_BIAS,
            )

        if HAS_SCALES:
            attended *= tl.load(value_scale_ptr + kv_head)
        inside = is_row[:, None] & is_element[None, :]
        if SPLIT_KEYS > 0:
            place = (token * (NUM_KV_HEADS * NUM_GROUPS) + head) * num_splits + split
            tl.store(partial_ptr + (place * HEAD_SIZE)[:, None] + element[None, :], attended, mask=inside)
            tl.store(maximum_ptr + place, maximum, mask=is_row)
            tl.store(total_ptr + place, total, mask=is_row)
        else:
            attended /= tl.where(total == 0.0, 1.0, total)[:, None]
            output = output_ptr + (token * output_token_stride + head * HEAD_SIZE)[:, None] + element[None, :]
            tl.store(output, attended.to(output_ptr.dtype.element_ty), mask=inside)

    @triton.jit(do_not_specialize=["window", "num_sequences", "num_splits"])  # type: ignore[untyped-decorator]
    def _merge_kernel(  # type: ignore[no-untyped-def]
        output_ptr,
        partial_ptr,
        maximum_ptr,
        total_ptr,
        query_starts_ptr,
        context_lens_ptr,
        window,
        num_sequences,
        output_token_stride,
        num_splits,
        NUM_HEADS: tl.constexpr,
        HEAD_SIZE: tl.constexpr,
        PADDED_HEAD_SIZE: tl.constexpr,
        SPLIT_KEYS: tl.constexpr,
        TILE_KEYS: tl.constexpr,
        IS_BOUNDED: tl.constexpr,
        HAS_WINDOW: tl.constexpr,
        SPLITS_TILE: tl.constexpr = 32,
    ):
        """One program merges the splits that one query saw at one head; the others were never written."""
        token = tl.program_id(0)
        head = tl.program_id(1)
        # Where each sequence decodes one token, this is its sequence's number: without a search, whose loads wait for
        # one another.
        sequence = tl.minimum(token, num_sequences - 1)
        start = tl.load(query_starts_ptr + sequence)
        end = tl.load(query_starts_ptr + sequence + 1)
        if token >= tl.load(query_starts_ptr + num_sequences):
            return
        if (start > token) | (end <= token):
            sequence = _sequence_of(query_starts_ptr, num_sequences, token, 0)
        distance_to_end = tl.load(query_starts_ptr + sequence + 1) - token
        context_len = tl.load(context_lens_ptr + sequence)
        position = context_len - distance_to_end
        split_keys = _split_size(context_len, num_splits, SPLIT_KEYS, TILE_KEYS, IS_BOUNDED)
        first_split = position * 0
        if HAS_WINDOW:
            first_split = tl.maximum(position - window + 1, 0) // split_keys
        element = tl.arange(0, PADDED_HEAD_SIZE)
        is_element = element < HEAD_SIZE
        # One-element tensors, as the loop carries them.
        maximum = tl.full((1,), float("-inf"), tl.float32)
        total = tl.zeros((1,), tl.float32)
        attended = tl.zeros((PADDED_HEAD_SIZE,), tl.float32)
        own = (token.to(tl.int64) * NUM_HEADS + head) * num_splits
        end_split = position // split_keys + 1
        # Several at a time, so that they are on their way together; in the same order whatever there is beside.
        for first in range(first_split, end_split, SPLITS_TILE):
            split = first + tl.arange(0, SPLITS_TILE)
            is_split = split < end_split
            place = own + split
            maxima = tl.load(maximum_ptr + place, mask=is_split, other=float("-inf"))
            totals = tl.load(total_ptr + place, mask=is_split, other=0.0)
            partial = tl.load(
                partial_ptr + (place * HEAD_SIZE)[:, None] + element[None, :],
                mask=is_split[:, None] & is_element[None, :],
                other=0.0,
            )
            new_maximum = tl.maximum(maximum, tl.max(maxima, axis=0))
            shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
            decay = tl.exp2(maximum - shift)
            shares = tl.exp2(maxima - shift)
            attended = attended * decay + tl.sum(partial * shares[:, None], axis=0)
            total = total * decay + tl.sum(totals * shares, axis=0)
            maximum = new_maximum
        attended /= tl.where(total == 0.0, 1.0, total)
        output = output_ptr + token.to(tl.int64) * output_token_stride + head * HEAD_SIZE + element
        tl.store(output, attended.to(output_ptr.dtype.element_ty), mask=is_element)


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
    fp32, contiguous along the last axis. key_scale, value_scale: [H] fp32, what a cached number of a head is to
    be multiplied by. max_num_queries and max_context_len bound what the device's tensors hold, so that nothing
    waits for them; that they do, and that ids are in range, is the caller's to know. `tiling` is chosen for
    speed where it is None. Raises ValueError for other shapes, dtypes, devices, strides or numbers.
    """
    _check(query, key_cache, value_cache, block_tables, query_starts, context_lens, output)
    _check_options(query, key_cache, max_num_queries, scale, window, soft_cap, bias, key_scale, value_scale, tiling)
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
        _paged_attention_kernel[(num_tiles, num_kv_heads, num_splits)](
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
            _merge_kernel[(num_tokens, num_heads)](
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
            )


def _check(
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
    if key_cache.dtype not in {query.dtype, *_FP8_DTYPES} or value_cache.dtype != key_cache.dtype:
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


def _check_options(
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
    is_fp8 = key_cache.dtype in _FP8_DTYPES
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
