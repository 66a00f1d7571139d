"""The LLVM text of what `attention_code.py` does with a query: scores, their exponentials, a weighted sum of values."""

from __future__ import annotations

from typing import Final

import torch

from specdec.vector_code import Vectors, constant, for_each, joined, slots

_LEAST: Final = "0xFFF0000000000000"


def padded(count: int, lanes: int) -> int:
    """So many numbers, and those that fill the last register up."""
    return -(-count // lanes) * lanes


def query_code(head_size: int, dtype: torch.dtype, lanes: int) -> str:
    """The functions `begin`, `widen`, `score`, `weigh`, `add` and `finish`.

    `score` works out the scores of `lanes` keys at once; of those beyond the last, nothing is used.
    """
    vectors = Vectors(lanes)
    texts = (function(head_size, dtype, vectors) for function in (_begin_text, _widen_text, _finish_text))
    sums = (_weigh_text(vectors), _score_text(head_size, vectors), _add_text(head_size, vectors))
    return joined([vectors.exponential_function(), *sums, *texts])


def _parts(head_size: int, lanes: int) -> list[tuple[int, int]]:
    """(where it begins, how many numbers it has) of each register of a head."""
    return [(start, min(lanes, head_size - start)) for start in range(0, head_size, lanes)]


def _begin_text(head_size: int, dtype: torch.dtype, vectors: Vectors) -> str:
    """`begin`: a query, scaled, in fp32, and sums of zeros."""
    lines = []
    for i, (start, count) in enumerate(_parts(head_size, vectors.lanes)):
        lines += [
            f"  %from_{i} = getelementptr i8, ptr %from, i64 {start * dtype.itemsize}",
            *vectors.load(f"unscaled_{i}", f"from_{i}", dtype, count),
            f"  %scaled_{i} = fmul {vectors} %unscaled_{i}, %scales",
            f"  %query_{i} = getelementptr float, ptr %query, i64 {start}",
            f"  store {vectors} %scaled_{i}, ptr %query_{i}, align 4",
            f"  %sums_{i} = getelementptr float, ptr %sums, i64 {start}",
            f"  store {vectors} zeroinitializer, ptr %sums_{i}, align 4",
        ]
    return f"""
define internal void @begin(ptr %from, float %scale, ptr %query, ptr %sums) {{
{joined(vectors.broadcast("scales", "scale"))}
{joined(lines)}
  ret void
}}"""


def _widen_text(head_size: int, dtype: torch.dtype, vectors: Vectors) -> str:
    """`widen`: a block's keys or values, of one head, in fp32, one behind the other."""
    lines = []
    for i, (start, count) in enumerate(_parts(head_size, vectors.lanes)):
        lines += [
            f"  %from_{i} = getelementptr i8, ptr %from, i64 {start * dtype.itemsize}",
            *vectors.load(f"part_{i}", f"from_{i}", dtype, count),
            f"  %to_{i} = getelementptr float, ptr %to, i64 {start}",
            f"  store {vectors} %part_{i}, ptr %to_{i}, align 4",
        ]
    body = f"""
  %offset = mul i64 %j, %stride
  %from = getelementptr i8, ptr %block, i64 %offset
  %to_offset = mul i64 %j, {padded(head_size, vectors.lanes)}
  %to = getelementptr float, ptr %tile, i64 %to_offset
{joined(lines)}"""
    return f"""
define internal void @widen(ptr %block, i64 %stride, i64 %count, ptr %tile) {{
{slots("j")}
{for_each("j", "0", "%count", body)}
  ret void
}}"""


def _score_text(head_size: int, vectors: Vectors) -> str:
    """`score`: one query's products with keys, a register of scores at a time, the last one whole."""
    size, lanes = padded(head_size, vectors.lanes), vectors.lanes
    lines = []
    for i in range(size // lanes):
        lines += [
            f"  %query_at_{i} = getelementptr float, ptr %query, i64 {lanes * i}",
            f"  %query_{i} = load {vectors}, ptr %query_at_{i}, align 4",
        ]
        for key in range(lanes):
            before = f"%product_{key}_{i - 1}" if i else "zeroinitializer"
            lines += [
                f"  %key_at_{key}_{i} = getelementptr float, ptr %key, i64 {size * key + lanes * i}",
                f"  %key_{key}_{i} = load {vectors}, ptr %key_at_{key}_{i}, align 4",
                vectors.fused(f"product_{key}_{i}", f"%key_{key}_{i}", f"%query_{i}", before),
            ]
    body = f"""
  %first = mul i64 %j, {lanes}
  %key_offset = mul i64 %first, {size}
  %key = getelementptr float, ptr %tile, i64 %key_offset
{joined(lines)}
{joined(vectors.sums_of("dots", [f"product_{key}_{size // lanes - 1}" for key in range(lanes)]))}
  %score = getelementptr float, ptr %scores, i64 %first
  store {vectors} %dots, ptr %score, align 4"""
    return f"""
define internal void @score(ptr %query, ptr %tile, i64 %count, ptr %scores) {{
{slots("j")}
  %rounded_up = add i64 %count, {lanes - 1}
  %num_units = udiv i64 %rounded_up, {lanes}
{for_each("j", "0", "%num_units", body)}
  ret void
}}"""


def _weigh_text(vectors: Vectors) -> str:
    """`weigh`: scores become weights, and behind them lies what makes their sum 1."""
    lanes = vectors.lanes
    largest = f"""
  %first_score = mul i64 %j, {lanes}
  %score_at = getelementptr float, ptr %scores, i64 %first_score
  %score = load {vectors}, ptr %score_at, align 4
  %so_far = load {vectors}, ptr %largest.at
  %is_larger = fcmp ogt {vectors} %score, %so_far
  %larger = select {vectors.booleans} %is_larger, {vectors} %score, {vectors} %so_far
  store {vectors} %larger, ptr %largest.at"""
    exponentials = f"""
  %first = mul i64 %k, {lanes}
  %some_at = getelementptr float, ptr %scores, i64 %first
  %some = load {vectors}, ptr %some_at, align 4
  %below = fsub {vectors} %some, %maxima
  %weights = call {vectors} @exponentials({vectors} %below)
  store {vectors} %weights, ptr %some_at, align 4
  %totals_so_far = load {vectors}, ptr %totals.at
  %totals_now = fadd {vectors} %totals_so_far, %weights
  store {vectors} %totals_now, ptr %totals.at"""
    return f"""
define internal void @weigh(ptr %scores, i64 %count) {{
{slots("j", "k")}
  %largest.at = alloca {vectors}
  %totals.at = alloca {vectors}
  store {vectors} splat (float {_LEAST}), ptr %largest.at
  store {vectors} zeroinitializer, ptr %totals.at
  %scores_end = getelementptr float, ptr %scores, i64 %count
  store {vectors} splat (float {_LEAST}), ptr %scores_end, align 4
  %rounded_up = add i64 %count, {lanes - 1}
  %num_vectors = udiv i64 %rounded_up, {lanes}
{for_each("j", "0", "%num_vectors", largest)}
  %all_largest = load {vectors}, ptr %largest.at
{joined(vectors.largest_of("largest", "all_largest"))}
{joined(vectors.broadcast("maxima", "largest"))}
{for_each("k", "0", "%num_vectors", exponentials)}
  %all_totals = load {vectors}, ptr %totals.at
{joined(vectors.sum_of("total", "all_totals"))}
  %inverse = fdiv float {constant(1.0)}, %total
  store float %inverse, ptr %scores_end, align 4
  ret void
}}"""


def _add_text(head_size: int, vectors: Vectors) -> str:
    """`add`: to a query's sums, values by their weights; eight registers of sums at a time."""
    size, lanes = padded(head_size, vectors.lanes), vectors.lanes
    names, loops = [], []
    for start in range(0, size // lanes, 8):
        j = f"j{start}"
        names.append(j)
        before, body, after = [], [], []
        for i in range(start, min(start + 8, size // lanes)):
            before += [
                f"  %sums_at_{i} = getelementptr float, ptr %sums, i64 {lanes * i}",
                f"  %before_{i} = load {vectors}, ptr %sums_at_{i}, align 4",
                f"  store {vectors} %before_{i}, ptr %sum_{i}.at",
            ]
            body += [
                f"  %value_at_{i} = getelementptr float, ptr %value_{j}, i64 {lanes * i}",
                f"  %value_{i} = load {vectors}, ptr %value_at_{i}, align 4",
                f"  %so_far_{i} = load {vectors}, ptr %sum_{i}.at",
                vectors.fused(f"now_{i}", f"%value_{i}", f"%weights_{j}", f"%so_far_{i}"),
                f"  store {vectors} %now_{i}, ptr %sum_{i}.at",
            ]
            after += [
                f"  %after_{i} = load {vectors}, ptr %sum_{i}.at",
                f"  store {vectors} %after_{i}, ptr %sums_at_{i}, align 4",
            ]
        text = f"""
  %offset_{j} = mul i64 %{j}, {size}
  %value_{j} = getelementptr float, ptr %tile, i64 %offset_{j}
  %weight_at_{j} = getelementptr float, ptr %weights, i64 %{j}
  %weight_{j} = load float, ptr %weight_at_{j}, align 4
{joined(vectors.broadcast(f"weights_{j}", f"weight_{j}"))}
{joined(body)}"""
        loops.append(joined(before) + for_each(j, "0", "%count", text) + "\n" + joined(after))
    sums = [f"  %sum_{i}.at = alloca {vectors}" for i in range(size // lanes)]
    return f"""
define internal void @add(ptr %weights, ptr %tile, i64 %count, ptr %sums) {{
{slots(*names)}
{joined(sums)}
{joined(loops)}
  ret void
}}"""


def _finish_text(head_size: int, dtype: torch.dtype, vectors: Vectors) -> str:
    """`finish`: a query's sums become its output."""
    lines = []
    for i, (start, count) in enumerate(_parts(head_size, vectors.lanes)):
        lines += [
            f"  %sums_at_{i} = getelementptr float, ptr %sums, i64 {start}",
            f"  %sums_{i} = load {vectors}, ptr %sums_at_{i}, align 4",
            f"  %result_{i} = fmul {vectors} %sums_{i}, %inverses",
            f"  %to_{i} = getelementptr i8, ptr %to, i64 {start * dtype.itemsize}",
            *vectors.store(f"result_{i}", f"to_{i}", dtype, count),
        ]
    return f"""
define internal void @finish(ptr %sums, float %inverse, ptr %to) {{
{joined(vectors.broadcast("inverses", "inverse"))}
{joined(lines)}
  ret void
}}"""
