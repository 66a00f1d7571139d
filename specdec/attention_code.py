"""The LLVM text of `row_attention.py`'s kernel.

A thread takes some queries of one sequence, of the heads that share keys, and works out the scores of all of them block
by block of keys; then their exponentials, relative to the largest of each; then, block by block, the values' weighted
sums. A block is fetched and widened to fp32 once for all of them, while each query's sums are its own.
"""

from __future__ import annotations

from typing import Final

import torch

from specdec.query_code import padded, query_code
from specdec.vector_code import DECLARATIONS, for_each, for_each_taken, job_fields, joined, slots

# What a job says, 64-bit numbers in this order: pointers, counts, and strides in bytes. `scale` is a float's bits.
CALL: Final = (
    *("next_item", "next_thread", "query", "query_stride", "key", "key_stride", "value", "value_stride"),
    *("keys", "values", "block_stride", "token_stride", "output", "output_stride", "scale", "scratch"),
)
SHARES: Final = (
    *("tables", "row_tables", "positions", "num_rows", "block_size", "num_heads", "num_groups"),
    *("first_rows", "num_items", "item_heads", "scores_stride", "scratch_stride"),
)
MAX_ITEM_ROWS: Final = 8
"""More share a block's way into the cache, and each brings its scores there."""


def scratch_floats(head_size: int, num_queries: int, scores_stride: int, block_size: int, lanes: int) -> int:
    """What a thread takes for so many queries at once: a block, and of each the query, its sums and its scores."""
    size = padded(head_size, lanes)
    return size * (block_size + lanes) + num_queries * (2 * size + scores_stride)


def attention_code(head_size: int, dtype: torch.dtype, lanes: int) -> str:
    """A module for registers of so many floats, 8 or 16.

    Its functions: `store` writes a job's keys and values into the pool, `attend` works out its output.
    """
    texts = (query_code(head_size, dtype, lanes), _store_text(head_size, dtype), _attend_text(head_size, dtype, lanes))
    return joined([DECLARATIONS, *texts])


def _row_text(row: str) -> str:
    """`%<row>_position` and `%<row>_table`, the pointer to its block table."""
    return f"""
  %{row}_offset = shl i64 %{row}, 3
  %{row}_position_address = add i64 %positions, %{row}_offset
  %{row}_position_at = inttoptr i64 %{row}_position_address to ptr
  %{row}_position = load i64, ptr %{row}_position_at, align 8
  %{row}_entry_address = add i64 %row_tables, %{row}_offset
  %{row}_entry_at = inttoptr i64 %{row}_entry_address to ptr
  %{row}_entry = load i64, ptr %{row}_entry_at, align 8
  %{row}_table_offset = shl i64 %{row}_entry, 3
  %{row}_table_address = add i64 %tables, %{row}_table_offset
  %{row}_table = inttoptr i64 %{row}_table_address to ptr"""


def _store_text(head_size: int, dtype: torch.dtype) -> str:
    copies = [
        f"""
  %{new}_row = mul i64 %row, %{new}_stride
  %{new}_address = add i64 %{new}, %{new}_row
  %{new}_from = inttoptr i64 %{new}_address to ptr
  %{pool}_address = add i64 %{pool}, %slot
  %{pool}_to = inttoptr i64 %{pool}_address to ptr
  call void @llvm.memcpy.p0.p0.i64(ptr %{pool}_to, ptr %{new}_from, i64 %row_bytes, i1 false)"""
        for new, pool in (("key", "keys"), ("value", "values"))
    ]
    body = f"""{_row_text("row")}
  %block_index = udiv i64 %row_position, %block_size
  %token = urem i64 %row_position, %block_size
  %block_at = getelementptr i64, ptr %row_table, i64 %block_index
  %block = load i64, ptr %block_at, align 8
  %block_bytes = mul i64 %block, %block_stride
  %token_bytes = mul i64 %token, %token_stride
  %slot = add i64 %block_bytes, %token_bytes
{joined(copies)}"""
    return f"""
define void @store(ptr %job) {{
{slots("row")}
{job_fields(*CALL, *SHARES)}
  %num_kv_heads = udiv i64 %num_heads, %num_groups
  %row_bytes = mul i64 %num_kv_heads, {head_size * dtype.itemsize}
{for_each("row", "0", "%num_rows", body)}
  ret void
}}"""


def _attend_text(head_size: int, dtype: torch.dtype, lanes: int) -> str:
    head_bytes, size = head_size * dtype.itemsize, padded(head_size, lanes)

    def each_query(name: str, body: str) -> str:
        """For an item's queries: `%<name>_query`, `%<name>_sums`, `%<name>_scores` and `%<name>_keys`, how many."""
        row, group = f"{name}_row", f"{name}_group"
        inner = f"""
  %{name}_number_of_row = sub i64 %{row}, %first_row
  %{name}_queries_before = mul i64 %{name}_number_of_row, %item_heads
  %{name}_number = add i64 %{name}_queries_before, %{group}
  %{name}_offset = mul i64 %{name}_number, %query_floats
  %{name}_query = getelementptr float, ptr %own, i64 %{name}_offset
  %{name}_sums = getelementptr float, ptr %{name}_query, i64 {size}
  %{name}_scores = getelementptr float, ptr %{name}_sums, i64 {size}
  %{name}_head = add i64 %first_head, %{group}
  %{name}_head_offset = mul i64 %{name}_head, {head_bytes}
{body}"""
        outer = (
            f"{_row_text(row)}\n  %{name}_keys = add i64 %{row}_position, 1{for_each(group, '0', '%item_heads', inner)}"
        )
        return for_each(row, "%first_row", "%end_row", outer)

    def each_block(name: str, pool: str, body: str) -> str:
        """For each block, in `%tile`, and each query: from which key on, `%<name>_start`, and `%<name>_count` of it."""
        seen = f"""
  %{name}_left = sub i64 %{name}_keys, %{name}_start
  %{name}_is_before = icmp ult i64 %{name}_keys, %{name}_start
  %{name}_some = select i1 %{name}_is_before, i64 0, i64 %{name}_left
  %{name}_count = call i64 @llvm.umin.i64(i64 %{name}_some, i64 %block_size)
{body}"""
        outer = f"""
  %{name}_start = mul i64 %{name}_block, %block_size
  %{name}_id_at = getelementptr i64, ptr %last_row_table, i64 %{name}_block
  %{name}_id = load i64, ptr %{name}_id_at, align 8
  %{name}_block_offset = mul i64 %{name}_id, %block_stride
  %{name}_block_address = add i64 %{pool}, %{name}_block_offset
  %{name}_address = add i64 %{name}_block_address, %kv_offset
  %{name}_at = inttoptr i64 %{name}_address to ptr
  %{name}_all_left = sub i64 %num_keys, %{name}_start
  %{name}_all = call i64 @llvm.umin.i64(i64 %{name}_all_left, i64 %block_size)
  call void @widen(ptr %{name}_at, i64 %token_stride, i64 %{name}_all, ptr %tile)
{each_query(name, seen)}"""
        return for_each(f"{name}_block", "0", "%num_blocks", outer)

    begin = """
  %begin_from_row = mul i64 %begin_row, %query_stride
  %begin_offset_of_head = add i64 %begin_from_row, %begin_head_offset
  %begin_address = add i64 %query, %begin_offset_of_head
  %begin_from = inttoptr i64 %begin_address to ptr
  call void @begin(ptr %begin_from, float %scale_float, ptr %begin_query, ptr %begin_sums)"""
    score = """
  %score_to = getelementptr float, ptr %score_scores, i64 %score_start
  call void @score(ptr %score_query, ptr %tile, i64 %score_count, ptr %score_to)"""
    weigh = """
  call void @weigh(ptr %weigh_scores, i64 %weigh_keys)"""
    add = """
  %add_from = getelementptr float, ptr %add_scores, i64 %add_start
  call void @add(ptr %add_from, ptr %tile, i64 %add_count, ptr %add_sums)"""
    finish = """
  %finish_inverse_at = getelementptr float, ptr %finish_scores, i64 %finish_keys
  %finish_inverse = load float, ptr %finish_inverse_at, align 4
  %finish_to_row = mul i64 %finish_row, %output_stride
  %finish_offset_of_head = add i64 %finish_to_row, %finish_head_offset
  %finish_address = add i64 %output, %finish_offset_of_head
  %finish_to = inttoptr i64 %finish_address to ptr
  call void @finish(ptr %finish_sums, float %finish_inverse, ptr %finish_to)"""
    rows = [f"{name}_{part}" for name in ("begin", "score", "weigh", "add", "finish") for part in ("row", "group")]
    work = f"""
  %rows_id = udiv i64 %item, %heads_of_rows
  %heads_id = urem i64 %item, %heads_of_rows
  %first_row_at = getelementptr i64, ptr %first_rows_from, i64 %rows_id
  %first_row = load i64, ptr %first_row_at, align 8
  %end_row_at = getelementptr i64, ptr %first_row_at, i64 1
  %end_row = load i64, ptr %end_row_at, align 8
  %last_row = sub i64 %end_row, 1
{_row_text("last_row")}
  %last_block = udiv i64 %last_row_position, %block_size
  %num_blocks = add i64 %last_block, 1
  %num_keys = add i64 %last_row_position, 1
  %first_head = mul i64 %heads_id, %item_heads
  %kv_head = udiv i64 %first_head, %num_groups
  %kv_offset = mul i64 %kv_head, {head_bytes}
{each_query("begin", begin)}
{each_block("score", "keys", score)}
{each_query("weigh", weigh)}
{each_block("add", "values", add)}
{each_query("finish", finish)}"""
    return f"""
define void @attend(ptr %job) {{
{slots(*rows, "score_block", "add_block")}
{job_fields(*CALL, *SHARES)}
  %thread = atomicrmw add ptr %next_thread_field, i64 1 monotonic
  %own_offset = mul i64 %thread, %scratch_stride
  %scratch_from = inttoptr i64 %scratch to ptr
  %tile = getelementptr float, ptr %scratch_from, i64 %own_offset
  %tile_keys = add i64 %block_size, {lanes}
  %tile_floats = mul i64 %tile_keys, {size}
  %own = getelementptr float, ptr %tile, i64 %tile_floats
  %query_floats = add i64 %scores_stride, {2 * size}
  %scale_bits = trunc i64 %scale to i32
  %scale_float = bitcast i32 %scale_bits to float
  %heads_of_rows = udiv i64 %num_heads, %item_heads
  %first_rows_from = inttoptr i64 %first_rows to ptr
{for_each_taken("item", "%num_items", work)}
}}"""
