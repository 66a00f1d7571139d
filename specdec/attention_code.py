"""The LLVM text of `row_attention.py`'s kernel.

A thread takes some queries of one sequence, of the heads that share keys, and works out the scores of all of them block
by block of keys; then their exponentials, relative to the largest of each; then, block by block, the values' weighted
sums. A block is fetched and widened to fp32 once for all of them, while each query's sums are its own.
"""

from __future__ import annotations

from typing import Final

import torch

from specdec.vector_code import (
    DECLARATIONS,
    FLOATS,
    broadcast,
    constant,
    exponential_function,
    fused,
    largest_of,
    load_floats,
    store_floats,
    sum_of,
    sums_of,
)

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
KEYS_UNIT: Final = 8
"""Keys whose scores are worked out at once; of those beyond the last, nothing is used."""
_NUMBER_BYTES: Final = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}
_LEAST: Final = "0xFFF0000000000000"


def padded(head_size: int) -> int:
    """A head's numbers and zeros that fill a vector."""
    return -(-head_size // 8) * 8


def scratch_floats(head_size: int, num_queries: int, scores_stride: int, block_size: int) -> int:
    """What a thread takes for so many queries at once: a block, and of each the query, its sums and its scores."""
    return padded(head_size) * (block_size + KEYS_UNIT) + num_queries * (2 * padded(head_size) + scores_stride)


def attention_code(head_size: int, dtype: torch.dtype) -> str:
    """A module: `store` writes a job's keys and values into the pool, `attend` works out its output."""
    functions = (_store_text, _begin_text, _widen_text, _finish_text, _attend_text)
    texts = [function(head_size, dtype) for function in functions]
    texts += [_score_text(head_size), _add_text(head_size)]
    return "\n".join((DECLARATIONS, exponential_function(), _WEIGH_TEXT, *texts))


def _lines(lines: list[str]) -> str:
    return "\n".join(lines)


def _vectors(head_size: int) -> list[tuple[int, int]]:
    """(where it begins, how many numbers it has) of each vector of a head."""
    return [(start, min(8, head_size - start)) for start in range(0, head_size, 8)]


def _fields() -> str:
    lines = []
    for i, name in enumerate((*CALL, *SHARES)):
        lines.append(f"  %{name}_field = getelementptr i64, ptr %job, i64 {i}")
        if not name.startswith("next_"):
            lines.append(f"  %{name} = load i64, ptr %{name}_field, align 8")
    return _lines(lines)


def _for(index: str, start: str, stop: str, body: str) -> str:
    """The body for each `%index` from start up to stop, whose slot `%index.at` the function has."""
    return f"""
  store i64 {start}, ptr %{index}.at
  br label %{index}.test
{index}.test:
  %{index} = load i64, ptr %{index}.at
  %{index}.is_inside = icmp ult i64 %{index}, {stop}
  br i1 %{index}.is_inside, label %{index}.body, label %{index}.end
{index}.body:
{body}
  %{index}.next = add i64 %{index}, 1
  store i64 %{index}.next, ptr %{index}.at
  br label %{index}.test
{index}.end:"""


def _slots(*indices: str) -> str:
    return _lines([f"  %{index}.at = alloca i64" for index in indices])


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
{_lines(copies)}"""
    return f"""
define void @store(ptr %job) {{
{_slots("row")}
{_fields()}
  %num_kv_heads = udiv i64 %num_heads, %num_groups
  %row_bytes = mul i64 %num_kv_heads, {head_size * _NUMBER_BYTES[dtype]}
{_for("row", "0", "%num_rows", body)}
  ret void
}}"""


def _begin_text(head_size: int, dtype: torch.dtype) -> str:
    """`begin`: a query, scaled, in fp32, and sums of zeros."""
    lines = []
    for i, (start, count) in enumerate(_vectors(head_size)):
        lines += [
            f"  %from_{i} = getelementptr i8, ptr %from, i64 {start * _NUMBER_BYTES[dtype]}",
            *load_floats(f"unscaled_{i}", f"from_{i}", dtype, count),
            f"  %scaled_{i} = fmul {FLOATS} %unscaled_{i}, %scales",
            f"  %query_{i} = getelementptr float, ptr %query, i64 {start}",
            f"  store {FLOATS} %scaled_{i}, ptr %query_{i}, align 4",
            f"  %sums_{i} = getelementptr float, ptr %sums, i64 {start}",
            f"  store {FLOATS} zeroinitializer, ptr %sums_{i}, align 4",
        ]
    return f"""
define internal void @begin(ptr %from, float %scale, ptr %query, ptr %sums) {{
{_lines(broadcast("scales", "scale"))}
{_lines(lines)}
  ret void
}}"""


def _widen_text(head_size: int, dtype: torch.dtype) -> str:
    """`widen`: a block's keys or values, of one head, in fp32, one behind the other."""
    lines = []
    for i, (start, count) in enumerate(_vectors(head_size)):
        lines += [
            f"  %from_{i} = getelementptr i8, ptr %from, i64 {start * _NUMBER_BYTES[dtype]}",
            *load_floats(f"part_{i}", f"from_{i}", dtype, count),
            f"  %to_{i} = getelementptr float, ptr %to, i64 {start}",
            f"  store {FLOATS} %part_{i}, ptr %to_{i}, align 4",
        ]
    body = f"""
  %offset = mul i64 %j, %stride
  %from = getelementptr i8, ptr %block, i64 %offset
  %to_offset = mul i64 %j, {padded(head_size)}
  %to = getelementptr float, ptr %tile, i64 %to_offset
{_lines(lines)}"""
    return f"""
define internal void @widen(ptr %block, i64 %stride, i64 %count, ptr %tile) {{
{_slots("j")}
{_for("j", "0", "%count", body)}
  ret void
}}"""


def _score_text(head_size: int) -> str:
    """`score`: one query's products with keys, eight at a time; up to seven more scores than asked for are written."""
    size, keys = padded(head_size), range(KEYS_UNIT)
    lines = []
    for i in range(size // 8):
        lines += [
            f"  %query_at_{i} = getelementptr float, ptr %query, i64 {8 * i}",
            f"  %query_{i} = load {FLOATS}, ptr %query_at_{i}, align 4",
        ]
        for key in keys:
            before = f"%product_{key}_{i - 1}" if i else "zeroinitializer"
            lines += [
                f"  %key_at_{key}_{i} = getelementptr float, ptr %key, i64 {size * key + 8 * i}",
                f"  %key_{key}_{i} = load {FLOATS}, ptr %key_at_{key}_{i}, align 4",
                fused(f"product_{key}_{i}", f"%key_{key}_{i}", f"%query_{i}", before),
            ]
    body = f"""
  %first = shl i64 %j, 3
  %key_offset = mul i64 %first, {size}
  %key = getelementptr float, ptr %tile, i64 %key_offset
{_lines(lines)}
{_lines(sums_of("dots", [f"product_{key}_{size // 8 - 1}" for key in keys]))}
  %score = getelementptr float, ptr %scores, i64 %first
  store {FLOATS} %dots, ptr %score, align 4"""
    return f"""
define internal void @score(ptr %query, ptr %tile, i64 %count, ptr %scores) {{
{_slots("j")}
  %rounded_up = add i64 %count, {KEYS_UNIT - 1}
  %num_units = lshr i64 %rounded_up, 3
{_for("j", "0", "%num_units", body)}
  ret void
}}"""


_LARGEST_BODY: Final = f"""
  %first_score = shl i64 %j, 3
  %score_at = getelementptr float, ptr %scores, i64 %first_score
  %score = load {FLOATS}, ptr %score_at, align 4
  %so_far = load {FLOATS}, ptr %largest.at
  %is_larger = fcmp ogt {FLOATS} %score, %so_far
  %larger = select <8 x i1> %is_larger, {FLOATS} %score, {FLOATS} %so_far
  store {FLOATS} %larger, ptr %largest.at"""
_EXPONENTIAL_BODY: Final = f"""
  %first = shl i64 %k, 3
  %some_at = getelementptr float, ptr %scores, i64 %first
  %some = load {FLOATS}, ptr %some_at, align 4
  %below = fsub {FLOATS} %some, %maxima
  %weights = call {FLOATS} @exponentials({FLOATS} %below)
  store {FLOATS} %weights, ptr %some_at, align 4
  %totals_so_far = load {FLOATS}, ptr %totals.at
  %totals_now = fadd {FLOATS} %totals_so_far, %weights
  store {FLOATS} %totals_now, ptr %totals.at"""
_WEIGH_TEXT: Final = f"""
define internal void @weigh(ptr %scores, i64 %count) {{
{_slots("j", "k")}
  %largest.at = alloca {FLOATS}
  %totals.at = alloca {FLOATS}
  store {FLOATS} splat (float {_LEAST}), ptr %largest.at
  store {FLOATS} zeroinitializer, ptr %totals.at
  %scores_end = getelementptr float, ptr %scores, i64 %count
  store {FLOATS} splat (float {_LEAST}), ptr %scores_end, align 4
  %rounded_up = add i64 %count, 7
  %num_vectors = lshr i64 %rounded_up, 3
{_for("j", "0", "%num_vectors", _LARGEST_BODY)}
  %all_largest = load {FLOATS}, ptr %largest.at
{_lines(largest_of("largest", "all_largest"))}
{_lines(broadcast("maxima", "largest"))}
{_for("k", "0", "%num_vectors", _EXPONENTIAL_BODY)}
  %all_totals = load {FLOATS}, ptr %totals.at
{_lines(sum_of("total", "all_totals"))}
  %inverse = fdiv float {constant(1.0)}, %total
  store float %inverse, ptr %scores_end, align 4
  ret void
}}"""
"""`weigh`: scores become weights, and behind them lies what makes their sum 1."""


def _add_text(head_size: int) -> str:
    """`add`: to a query's sums, values by their weights; eight vectors of sums at a time, in registers."""
    size = padded(head_size)
    names, loops = [], []
    for start in range(0, size // 8, 8):
        j = f"j{start}"
        names.append(j)
        before, body, after = [], [], []
        for i in range(start, min(start + 8, size // 8)):
            before += [
                f"  %sums_at_{i} = getelementptr float, ptr %sums, i64 {8 * i}",
                f"  %before_{i} = load {FLOATS}, ptr %sums_at_{i}, align 4",
                f"  store {FLOATS} %before_{i}, ptr %sum_{i}.at",
            ]
            body += [
                f"  %value_at_{i} = getelementptr float, ptr %value_{j}, i64 {8 * i}",
                f"  %value_{i} = load {FLOATS}, ptr %value_at_{i}, align 4",
                f"  %so_far_{i} = load {FLOATS}, ptr %sum_{i}.at",
                fused(f"now_{i}", f"%value_{i}", f"%weights_{j}", f"%so_far_{i}"),
                f"  store {FLOATS} %now_{i}, ptr %sum_{i}.at",
            ]
            after += [
                f"  %after_{i} = load {FLOATS}, ptr %sum_{i}.at",
                f"  store {FLOATS} %after_{i}, ptr %sums_at_{i}, align 4",
            ]
        text = f"""
  %offset_{j} = mul i64 %{j}, {size}
  %value_{j} = getelementptr float, ptr %tile, i64 %offset_{j}
  %weight_at_{j} = getelementptr float, ptr %weights, i64 %{j}
  %weight_{j} = load float, ptr %weight_at_{j}, align 4
{_lines(broadcast(f"weights_{j}", f"weight_{j}"))}
{_lines(body)}"""
        loops.append(_lines(before) + _for(j, "0", "%count", text) + "\n" + _lines(after))
    sums = [f"  %sum_{i}.at = alloca {FLOATS}" for i in range(size // 8)]
    return f"""
define internal void @add(ptr %weights, ptr %tile, i64 %count, ptr %sums) {{
{_slots(*names)}
{_lines(sums)}
{_lines(loops)}
  ret void
}}"""


def _finish_text(head_size: int, dtype: torch.dtype) -> str:
    """`finish`: a query's sums become its output."""
    lines = []
    for i, (start, count) in enumerate(_vectors(head_size)):
        lines += [
            f"  %sums_at_{i} = getelementptr float, ptr %sums, i64 {start}",
            f"  %sums_{i} = load {FLOATS}, ptr %sums_at_{i}, align 4",
            f"  %result_{i} = fmul {FLOATS} %sums_{i}, %inverses",
            f"  %to_{i} = getelementptr i8, ptr %to, i64 {start * _NUMBER_BYTES[dtype]}",
            *store_floats(f"result_{i}", f"to_{i}", dtype, count),
        ]
    return f"""
define internal void @finish(ptr %sums, float %inverse, ptr %to) {{
{_lines(broadcast("inverses", "inverse"))}
{_lines(lines)}
  ret void
}}"""


def _attend_text(head_size: int, dtype: torch.dtype) -> str:
    head_bytes = head_size * _NUMBER_BYTES[dtype]

    def each_query(name: str, body: str) -> str:
        """For an item's queries: `%<name>_query`, `%<name>_sums`, `%<name>_scores` and `%<name>_keys`, how many."""
        row, group = f"{name}_row", f"{name}_group"
        inner = f"""
  %{name}_number_of_row = sub i64 %{row}, %first_row
  %{name}_queries_before = mul i64 %{name}_number_of_row, %item_heads
  %{name}_number = add i64 %{name}_queries_before, %{group}
  %{name}_offset = mul i64 %{name}_number, %query_floats
  %{name}_query = getelementptr float, ptr %own, i64 %{name}_offset
  %{name}_sums = getelementptr float, ptr %{name}_query, i64 {padded(head_size)}
  %{name}_scores = getelementptr float, ptr %{name}_sums, i64 {padded(head_size)}
  %{name}_head = add i64 %first_head, %{group}
  %{name}_head_offset = mul i64 %{name}_head, {head_bytes}
{body}"""
        outer = f"{_row_text(row)}\n  %{name}_keys = add i64 %{row}_position, 1{_for(group, '0', '%item_heads', inner)}"
        return _for(row, "%first_row", "%end_row", outer)

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
        return _for(f"{name}_block", "0", "%num_blocks", outer)

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
    return f"""
define void @attend(ptr %job) {{
{_slots(*rows, "score_block", "add_block")}
{_fields()}
  %thread = atomicrmw add ptr %next_thread_field, i64 1 monotonic
  %own_offset = mul i64 %thread, %scratch_stride
  %scratch_from = inttoptr i64 %scratch to ptr
  %tile = getelementptr float, ptr %scratch_from, i64 %own_offset
  %tile_keys = add i64 %block_size, {KEYS_UNIT}
  %tile_floats = mul i64 %tile_keys, {padded(head_size)}
  %own = getelementptr float, ptr %tile, i64 %tile_floats
  %query_floats = add i64 %scores_stride, {2 * padded(head_size)}
  %scale_bits = trunc i64 %scale to i32
  %scale_float = bitcast i32 %scale_bits to float
  %heads_of_rows = udiv i64 %num_heads, %item_heads
  %first_rows_from = inttoptr i64 %first_rows to ptr
  br label %take

take:
  %item = atomicrmw add ptr %next_item_field, i64 1 monotonic
  %is_any = icmp ult i64 %item, %num_items
  br i1 %is_any, label %work, label %end

work:
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
{each_query("finish", finish)}
  br label %take

end:
  ret void
}}"""
