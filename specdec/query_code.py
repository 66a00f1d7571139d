"""The LLVM text of what `attention_code.py` does with a query: scores, their exponentials, a weighted sum of values."""

from __future__ import annotations

from typing import Final

import torch

from specdec.vector_code import (
    FLOATS,
    broadcast,
    constant,
    exponential_function,
    for_each,
    fused,
    joined,
    largest_of,
    load_floats,
    slots,
    store_floats,
    sum_of,
    sums_of,
)

KEYS_UNIT: Final = 8
"""Keys whose scores are worked out at once; of those beyond the last, nothing is used."""
_LEAST: Final = "0xFFF0000000000000"


def padded(head_size: int) -> int:
    """A head's numbers and zeros that fill a vector."""
    return -(-head_size // 8) * 8


def query_code(head_size: int, dtype: torch.dtype) -> str:
    """The functions `begin`, `widen`, `score`, `weigh`, `add` and `finish`."""
    texts = [function(head_size, dtype) for function in (_begin_text, _widen_text, _finish_text)]
    return joined([exponential_function(), _WEIGH_TEXT, _score_text(head_size), _add_text(head_size), *texts])


def _vectors(head_size: int) -> list[tuple[int, int]]:
    """(where it begins, how many numbers it has) of each vector of a head."""
    return [(start, min(8, head_size - start)) for start in range(0, head_size, 8)]


def _begin_text(head_size: int, dtype: torch.dtype) -> str:
    """`begin`: a query, scaled, in fp32, and sums of zeros."""
    lines = []
    for i, (start, count) in enumerate(_vectors(head_size)):
        lines += [
            f"  %from_{i} = getelementptr i8, ptr %from, i64 {start * dtype.itemsize}",
            *load_floats(f"unscaled_{i}", f"from_{i}", dtype, count),
            f"  %scaled_{i} = fmul {FLOATS} %unscaled_{i}, %scales",
            f"  %query_{i} = getelementptr float, ptr %query, i64 {start}",
            f"  store {FLOATS} %scaled_{i}, ptr %query_{i}, align 4",
            f"  %sums_{i} = getelementptr float, ptr %sums, i64 {start}",
            f"  store {FLOATS} zeroinitializer, ptr %sums_{i}, align 4",
        ]
    return f"""
define internal void @begin(ptr %from, float %scale, ptr %query, ptr %sums) {{
{joined(broadcast("scales", "scale"))}
{joined(lines)}
  ret void
}}"""


def _widen_text(head_size: int, dtype: torch.dtype) -> str:
    """`widen`: a block's keys or values, of one head, in fp32, one behind the other."""
    lines = []
    for i, (start, count) in enumerate(_vectors(head_size)):
        lines += [
            f"  %from_{i} = getelementptr i8, ptr %from, i64 {start * dtype.itemsize}",
            *load_floats(f"part_{i}", f"from_{i}", dtype, count),
            f"  %to_{i} = getelementptr float, ptr %to, i64 {start}",
            f"  store {FLOATS} %part_{i}, ptr %to_{i}, align 4",
        ]
    body = f"""
  %offset = mul i64 %j, %stride
  %from = getelementptr i8, ptr %block, i64 %offset
  %to_offset = mul i64 %j, {padded(head_size)}
  %to = getelementptr float, ptr %tile, i64 %to_offset
{joined(lines)}"""
    return f"""
define internal void @widen(ptr %block, i64 %stride, i64 %count, ptr %tile) {{
{slots("j")}
{for_each("j", "0", "%count", body)}
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
{joined(lines)}
{joined(sums_of("dots", [f"product_{key}_{size // 8 - 1}" for key in keys]))}
  %score = getelementptr float, ptr %scores, i64 %first
  store {FLOATS} %dots, ptr %score, align 4"""
    return f"""
define internal void @score(ptr %query, ptr %tile, i64 %count, ptr %scores) {{
{slots("j")}
  %rounded_up = add i64 %count, {KEYS_UNIT - 1}
  %num_units = lshr i64 %rounded_up, 3
{for_each("j", "0", "%num_units", body)}
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
{slots("j", "k")}
  %largest.at = alloca {FLOATS}
  %totals.at = alloca {FLOATS}
  store {FLOATS} splat (float {_LEAST}), ptr %largest.at
  store {FLOATS} zeroinitializer, ptr %totals.at
  %scores_end = getelementptr float, ptr %scores, i64 %count
  store {FLOATS} splat (float {_LEAST}), ptr %scores_end, align 4
  %rounded_up = add i64 %count, 7
  %num_vectors = lshr i64 %rounded_up, 3
{for_each("j", "0", "%num_vectors", _LARGEST_BODY)}
  %all_largest = load {FLOATS}, ptr %largest.at
{joined(largest_of("largest", "all_largest"))}
{joined(broadcast("maxima", "largest"))}
{for_each("k", "0", "%num_vectors", _EXPONENTIAL_BODY)}
  %all_totals = load {FLOATS}, ptr %totals.at
{joined(sum_of("total", "all_totals"))}
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
{joined(broadcast(f"weights_{j}", f"weight_{j}"))}
{joined(body)}"""
        loops.append(joined(before) + for_each(j, "0", "%count", text) + "\n" + joined(after))
    sums = [f"  %sum_{i}.at = alloca {FLOATS}" for i in range(size // 8)]
    return f"""
define internal void @add(ptr %weights, ptr %tile, i64 %count, ptr %sums) {{
{slots(*names)}
{joined(sums)}
{joined(loops)}
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
            f"  %to_{i} = getelementptr i8, ptr %to, i64 {start * dtype.itemsize}",
            *store_floats(f"result_{i}", f"to_{i}", dtype, count),
        ]
    return f"""
define internal void @finish(ptr %sums, float %inverse, ptr %to) {{
{joined(broadcast("inverses", "inverse"))}
{joined(lines)}
  ret void
}}"""
