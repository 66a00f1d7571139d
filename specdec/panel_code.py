"""The LLVM text of `panel_product.py`'s kernel, for registers of L = 8 floats (AVX2) or 16 (AVX-512).

A thread converts a block of rows to fp32, then multiplies them, a group of up to max_group_rows at a time, with one
panel after the other: for each input, two times L weights are widened and each row's number is multiplied into its two
sums, all of which stay in registers. Meanwhile it fetches the panel that it will read next, a share of it in each
group, so that memory works while the processor multiplies.
"""

from __future__ import annotations

from typing import Final

import torch

from specdec.vector_code import DECLARATIONS, Vectors, job_fields, joined

INPUTS_UNIT: Final = 8
"""Inputs that are converted at once."""


def panel_size(lanes: int) -> int:
    """Output features of a panel: two registers."""
    return 2 * lanes


def max_group_rows(lanes: int) -> int:
    """Rows whose two sums fit beside weights and a row's number: 12 of AVX2's 16 registers, 24 of AVX-512's 32."""
    return {8: 6, 16: 12}[lanes]


# What a job says, 64-bit numbers in this order: pointers, counts, and strides in numbers of their tensor.
CALL: Final = ("next_chunk", "next_thread", "x", "x_stride", "weight", "bias", "y", "scratch")
SHARES: Final = (
    *("num_panels", "num_pairs", "y_stride", "num_rows", "block_rows"),
    *("num_chunks", "num_chunks_in_all", "chunk_panels", "scratch_stride"),
)


def panel_code(dtype: torch.dtype, lanes: int) -> str:
    """A module whose function `work` takes a job, for bfloat16 or for float16."""
    groups = (_group_text(num_rows, dtype, lanes) for num_rows in range(1, max_group_rows(lanes) + 1))
    return joined([DECLARATIONS, *groups, _work_text(dtype, lanes)])


def _group_text(num_rows: int, dtype: torch.dtype, lanes: int) -> str:
    """The function that multiplies so many rows of x, in fp32, with one panel."""
    both = [(row, half) for row in range(num_rows) for half in (0, 1)]
    wide, pair_bytes = Vectors(lanes), _pair_bytes(lanes)
    lines = [
        f"define internal void @multiply_{num_rows}(ptr %x, i64 %x_stride, ptr %panel, i64 %num_pairs, ptr %bias,",
        "    ptr %y, i64 %y_stride, ptr %next_panel, i64 %pairs_before, i64 %pair_share) {",
        "entry:",
        f"  %bias_1 = getelementptr float, ptr %bias, i64 {lanes}",
        f"  %start_0 = load {wide}, ptr %bias, align 4",
        f"  %start_1 = load {wide}, ptr %bias_1, align 4",
        "  br label %loop",
        "loop:",
        "  %pair = phi i64 [0, %entry], [%next_pair, %loop]",
        *(
            f"  %before_{row}_{half} = phi {wide} [%start_{half}, %entry], [%after_{row}_{half}, %loop]"
            for row, half in both
        ),
        f"  %offset = mul i64 %pair, {pair_bytes}",
        "  %here = getelementptr i8, ptr %panel, i64 %offset",
        "  %pairs_done = add i64 %pair, %pairs_before",
        "  %shared = mul i64 %pairs_done, %pair_share",
        "  %pair_ahead = lshr i64 %shared, 16",
        f"  %offset_ahead = mul i64 %pair_ahead, {pair_bytes}",
        *_prefetch(pair_bytes),
        *(_load_bfloat16_pairs(lanes) if dtype is torch.bfloat16 else _load_float16_pairs(lanes)),
        "  %input = shl i64 %pair, 1",
    ]
    for row in range(num_rows):
        lines += [
            f"  %row_{row} = mul i64 %x_stride, {row}",
            f"  %place_{row} = add i64 %row_{row}, %input",
            f"  %even_at_{row} = getelementptr float, ptr %x, i64 %place_{row}",
            f"  %odd_at_{row} = getelementptr float, ptr %even_at_{row}, i64 1",
            f"  %even_number_{row} = load float, ptr %even_at_{row}, align 4",
            f"  %odd_number_{row} = load float, ptr %odd_at_{row}, align 4",
            *wide.broadcast(f"x_even_{row}", f"even_number_{row}"),
            *wide.broadcast(f"x_odd_{row}", f"odd_number_{row}"),
        ]
        for half in (0, 1):
            between, before = f"between_{row}_{half}", f"%before_{row}_{half}"
            lines += [
                wide.fused(between, f"%even_{half}", f"%x_even_{row}", before),
                wide.fused(f"after_{row}_{half}", f"%odd_{half}", f"%x_odd_{row}", f"%{between}"),
            ]
    lines += [
        "  %next_pair = add i64 %pair, 1",
        "  %is_more = icmp ult i64 %next_pair, %num_pairs",
        "  br i1 %is_more, label %loop, label %out",
        "out:",
        *(f"  %y_row_{row} = mul i64 %y_stride, {row}" for row in range(num_rows)),
    ]
    for row, half in both:
        name = f"{row}_{half}"
        lines += [
            f"  %y_place_{name} = add i64 %y_row_{row}, {lanes * half}",
            f"  %y_at_{name} = getelementptr i16, ptr %y, i64 %y_place_{name}",
            *wide.store(f"after_{name}", f"y_at_{name}", dtype),
        ]
    return joined([*lines, "  ret void", "}"])


def _pair_bytes(lanes: int) -> int:
    """Of a panel's weights of two inputs."""
    return 2 * panel_size(lanes) * 2


def _prefetch(pair_bytes: int) -> list[str]:
    """Fetch a pair of the next panel, `%offset_ahead` bytes from its beginning, a line of the cache at a time."""
    lines = []
    for start in range(0, pair_bytes, 64):
        lines += [
            f"  %line_{start} = add i64 %offset_ahead, {start}",
            f"  %ahead_{start} = getelementptr i8, ptr %next_panel, i64 %line_{start}",
            f"  call void @llvm.prefetch.p0(ptr %ahead_{start}, i32 0, i32 2, i32 1)",
        ]
    return lines


def _load_bfloat16_pairs(lanes: int) -> list[str]:
    """A 32-bit number holds two inputs' weights; each becomes a float in its upper half."""
    lines, wide = [], Vectors(lanes)
    for half in (0, 1):
        lines += [
            f"  %at_{half} = getelementptr i8, ptr %here, i64 {4 * lanes * half}",
            f"  %both_{half} = load {wide.integers}, ptr %at_{half}, align 32",
            f"  %even_bits_{half} = shl {wide.integers} %both_{half}, splat (i32 16)",
            f"  %odd_bits_{half} = and {wide.integers} %both_{half}, splat (i32 -65536)",
            f"  %even_{half} = bitcast {wide.integers} %even_bits_{half} to {wide}",
            f"  %odd_{half} = bitcast {wide.integers} %odd_bits_{half} to {wide}",
        ]
    return lines


def _load_float16_pairs(lanes: int) -> list[str]:
    lines, wide, short = [], Vectors(lanes), f"<{lanes} x half>"
    for i, name in enumerate(("even_0", "even_1", "odd_0", "odd_1")):
        lines += [
            f"  %at_{name} = getelementptr i8, ptr %here, i64 {2 * lanes * i}",
            f"  %half_{name} = load {short}, ptr %at_{name}, align 16",
            f"  %{name} = fpext {short} %half_{name} to {wide}",
        ]
    return lines


def _work_text(dtype: torch.dtype, lanes: int) -> str:
    """What a thread does: take chunks of panels, block of rows after block, till none is left."""
    units = Vectors(INPUTS_UNIT)
    converted = joined(units.load("floats", "short_at", dtype))
    sizes = range(1, max_group_rows(lanes) + 1)
    choices = " ".join(f"i64 {size}, label %group_of_{size}" for size in sizes)
    calls = joined(
        [
            f"""group_of_{size}:
  call void @multiply_{size}(ptr %group_x, i64 %num_features, ptr %panel_at, i64 %num_pairs, ptr %bias_here,
    ptr %y_here, i64 %y_stride, ptr %next_panel_at, i64 %pairs_before, i64 %pair_share)
  br label %group_done"""
            for size in sizes
        ]
    )
    return f"""
define void @work(ptr %job) {{
entry:
{job_fields(*CALL, *SHARES)}
  %x_from = inttoptr i64 %x to ptr
  %weight_from = inttoptr i64 %weight to ptr
  %bias_from = inttoptr i64 %bias to ptr
  %y_from = inttoptr i64 %y to ptr
  %scratch_from = inttoptr i64 %scratch to ptr
  %thread = atomicrmw add ptr %next_thread_field, i64 1 monotonic
  %own_offset = mul i64 %thread, %scratch_stride
  %own = getelementptr float, ptr %scratch_from, i64 %own_offset
  %first_number = atomicrmw add ptr %next_chunk_field, i64 1 monotonic
  %num_features = shl i64 %num_pairs, 1
  %panel_bytes = mul i64 %num_pairs, {_pair_bytes(lanes)}
  br label %take

take:
  %held_block = phi i64 [-1, %entry], [%block, %chunk_done]
  %number = phi i64 [%first_number, %entry], [%following, %chunk_done]
  %is_any = icmp ult i64 %number, %num_chunks_in_all
  br i1 %is_any, label %begin, label %end

begin:
  %following = atomicrmw add ptr %next_chunk_field, i64 1 monotonic
  %following_chunk = urem i64 %following, %num_chunks
  %following_panel = mul i64 %following_chunk, %chunk_panels
  %block = udiv i64 %number, %num_chunks
  %chunk = urem i64 %number, %num_chunks
  %first_row = mul i64 %block, %block_rows
  %rows_left = sub i64 %num_rows, %first_row
  %rows = call i64 @llvm.umin.i64(i64 %rows_left, i64 %block_rows)
  %is_held = icmp eq i64 %block, %held_block
  br i1 %is_held, label %multiply, label %convert_row

convert_row:
  %converted = phi i64 [0, %begin], [%next_converted, %row_done]
  %from_row = add i64 %first_row, %converted
  %from_offset = mul i64 %from_row, %x_stride
  %from = getelementptr i16, ptr %x_from, i64 %from_offset
  %to_offset = mul i64 %converted, %num_features
  %to = getelementptr float, ptr %own, i64 %to_offset
  br label %convert

convert:
  %feature = phi i64 [0, %convert_row], [%next_feature, %convert]
  %short_at = getelementptr i16, ptr %from, i64 %feature
{converted}
  %float_at = getelementptr float, ptr %to, i64 %feature
  store {units} %floats, ptr %float_at, align 4
  %next_feature = add i64 %feature, {INPUTS_UNIT}
  %is_more_of_row = icmp ult i64 %next_feature, %num_features
  br i1 %is_more_of_row, label %convert, label %row_done

row_done:
  %next_converted = add i64 %converted, 1
  %is_more_rows = icmp ult i64 %next_converted, %rows
  br i1 %is_more_rows, label %convert_row, label %multiply

multiply:
  %first_panel = mul i64 %chunk, %chunk_panels
  %chunk_end = add i64 %first_panel, %chunk_panels
  %end_panel = call i64 @llvm.umin.i64(i64 %chunk_end, i64 %num_panels)
  %rows_up = add i64 %rows, {max_group_rows(lanes) - 1}
  %num_groups = udiv i64 %rows_up, {max_group_rows(lanes)}
  %least_rows = udiv i64 %rows, %num_groups
  %num_larger = urem i64 %rows, %num_groups
  %pair_share = udiv i64 65536, %num_groups
  br label %panel

panel:
  %panel_id = phi i64 [%first_panel, %multiply], [%next_panel, %panel_done]
  %panel_offset = mul i64 %panel_id, %panel_bytes
  %panel_at = getelementptr i8, ptr %weight_from, i64 %panel_offset
  %column = mul i64 %panel_id, {panel_size(lanes)}
  %next_panel = add i64 %panel_id, 1
  %is_last = icmp eq i64 %next_panel, %end_panel
  %ahead_panel = select i1 %is_last, i64 %following_panel, i64 %next_panel
  %ahead_offset = mul i64 %ahead_panel, %panel_bytes
  %next_panel_at = getelementptr i8, ptr %weight_from, i64 %ahead_offset
  %bias_here = getelementptr float, ptr %bias_from, i64 %column
  br label %group

group:
  %group_id = phi i64 [0, %panel], [%next_group, %group_done]
  %row = phi i64 [0, %panel], [%next_row, %group_done]
  %is_larger = icmp ult i64 %group_id, %num_larger
  %one_more = zext i1 %is_larger to i64
  %group_rows = add i64 %least_rows, %one_more
  %pairs_before = mul i64 %group_id, %num_pairs
  %group_offset = mul i64 %row, %num_features
  %group_x = getelementptr float, ptr %own, i64 %group_offset
  %y_row = add i64 %first_row, %row
  %y_row_offset = mul i64 %y_row, %y_stride
  %y_offset = add i64 %y_row_offset, %column
  %y_here = getelementptr i16, ptr %y_from, i64 %y_offset
  switch i64 %group_rows, label %end [{choices}]

{calls}

group_done:
  %next_row = add i64 %row, %group_rows
  %next_group = add i64 %group_id, 1
  %is_more_groups = icmp ult i64 %next_group, %num_groups
  br i1 %is_more_groups, label %group, label %panel_done

panel_done:
  %is_more_panels = icmp ult i64 %next_panel, %end_panel
  br i1 %is_more_panels, label %panel, label %chunk_done

chunk_done:
  br label %take

end:
  ret void
}}
"""
