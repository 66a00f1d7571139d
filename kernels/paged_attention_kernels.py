"""The Triton kernels of paged attention: one attends a tile of queries to a split of the keys, one merges the splits.

What they compute, and what the letters stand for, is in paged_attention.py.
"""

from __future__ import annotations

from specdec.kernels.dispatch import TRITON_RUNS_HERE

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
    def paged_attention_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN201  # it returns nothing
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
            # same digits in them, down to 2 ** -17 of its largest, once it is divided by a power of two, for which its
            # scores make up.
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
        for is_masked in tl.static_range(2):
            first, last = (seen_by_all, end) if is_masked else (first_tile, seen_by_all)
            for tile_start in range(first, last, TILE_KEYS):
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
                    is_masked == 1,
                    HAS_WINDOW and is_masked == 1,
                    HAS_SOFT_CAP,
                    HAS_BIAS and is_masked == 1,
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
    def merge_splits_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN201  # likewise
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
        SPLITS_TILE: tl.constexpr,
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
