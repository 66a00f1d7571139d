"""The LLVM text of `vector_ops.py`'s kernels: norms, rotations and activations, a row at a time.

Threads take rows by turns. All is worked out in fp32 and rounded where a tensor is written; a row's sums have an order
that its size and the registers' give, so nothing depends on what other rows there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from specdec.vector_code import DECLARATIONS, Vectors, constant, for_each, for_each_taken, job_fields, joined, slots

# What a job says, 64-bit numbers in this order: pointers, and strides in bytes. `eps` is a float's bits.
NORM_JOB: Final = ("next_row", "x", "x_stride", "added", "added_stride", "sums", "weight", "y", "eps", "num_rows")
ROTATE_JOB: Final = (
    "next_row",
    "heads",
    "row_stride",
    "head_stride",
    "positions",
    "cos",
    "sin",
    "num_heads",
    "num_rows",
)
SILU_JOB: Final = ("next_row", "gate_up", "gate_up_stride", "y", "num_rows")


def norm_code(size: int, dtype: torch.dtype, lanes: int, *, has_added: bool) -> str:
    """`norm`: y = x / sqrt(mean of x^2 + eps) * weight; with `has_added`, of sums = x + added, rounded first."""
    vectors = Vectors(lanes)

    def square(name: str, offset: str, count: int) -> list[str]:
        lines = _load(vectors, f"{name}_x", "%x_at", offset, dtype, count)
        if has_added:
            lines += [
                *_load(vectors, f"{name}_added", "%added_at", offset, dtype, count),
                f"  %{name}_sum = fadd {vectors} %{name}_x, %{name}_added",
                *_store(vectors, f"{name}_sum", "%sums_at", offset, dtype, count),
                *_load(vectors, f"{name}_rounded", "%sums_at", offset, dtype, count),
            ]
        number = f"%{name}_rounded" if has_added else f"%{name}_x"
        return [
            *lines,
            f"  %{name}_before = load {vectors}, ptr %squares.at",
            vectors.fused(f"{name}_after", number, number, f"%{name}_before"),
            f"  store {vectors} %{name}_after, ptr %squares.at",
        ]

    def scale(name: str, offset: str, count: int) -> list[str]:
        return [
            *_load(vectors, f"{name}_number", "%sums_at" if has_added else "%x_at", offset, dtype, count),
            *_load(vectors, f"{name}_weight", "%weight_from", offset, dtype, count),
            f"  %{name}_scaled = fmul {vectors} %{name}_number, %inverses",
            f"  %{name}_result = fmul {vectors} %{name}_scaled, %{name}_weight",
            *_store(vectors, f"{name}_result", "%y_at", offset, dtype, count),
        ]

    row_bytes = size * dtype.itemsize
    body = f"""
{_row_pointer("x", "%x_stride")}
{_row_pointer("added", "%added_stride")}
{_row_pointer("sums", str(row_bytes))}
{_row_pointer("y", str(row_bytes))}
  store {vectors} zeroinitializer, ptr %squares.at
{_each_vector("square", size, dtype, lanes, square)}
  %squares = load {vectors}, ptr %squares.at
{joined(vectors.sum_of("total", "squares"))}
  %mean = fmul float %total, {constant(1.0 / size)}
  %above = fadd float %mean, %eps_float
  %root = call float @llvm.sqrt.f32(float %above)
  %inverse = fdiv float {constant(1.0)}, %root
{joined(vectors.broadcast("inverses", "inverse"))}
{_each_vector("scale", size, dtype, lanes, scale)}"""
    return f"""
{DECLARATIONS}
declare float @llvm.sqrt.f32(float)
define void @norm(ptr %job) {{
{slots("square", "scale")}
  %squares.at = alloca {vectors}
{job_fields(*NORM_JOB)}
  %weight_from = inttoptr i64 %weight to ptr
  %eps_bits = trunc i64 %eps to i32
  %eps_float = bitcast i32 %eps_bits to float
{for_each_taken("row", "%num_rows", body)}
}}"""


def rotate_code(size: int, dtype: torch.dtype, lanes: int) -> str:
    """`rotate`: each head, in place, by the tables' row of its position: first half beside second half."""
    vectors, half = Vectors(lanes), size // 2

    def turn(name: str, offset: str, count: int) -> list[str]:
        second = f"%{name}_second_offset"
        lines = [f"  {second} = add i64 {offset}, {half * dtype.itemsize}"]
        for part, at in (("first", offset), ("second", second)):
            for table in ("head", "cos", "sin"):
                lines += _load(vectors, f"{name}_{part}_{table}", f"%{table}_at", at, dtype, count)
        for part, other in (("first", "second"), ("second", "first")):
            lines += [
                f"  %{name}_{part}_across = fmul {vectors} %{name}_{other}_head, %{name}_{part}_sin",
                vectors.fused(
                    f"{name}_{part}", f"%{name}_{part}_head", f"%{name}_{part}_cos", f"%{name}_{part}_across"
                ),
            ]
        return [
            *lines,
            *_store(vectors, f"{name}_first", "%head_at", offset, dtype, count),
            *_store(vectors, f"{name}_second", "%head_at", second, dtype, count),
        ]

    heads = for_each(
        "head",
        "0",
        "%num_heads",
        f"""
  %head_offset = mul i64 %head, %head_stride
  %head_at = getelementptr i8, ptr %heads_at, i64 %head_offset
{_each_vector("turn", half, dtype, lanes, turn)}""",
    )
    tables = joined(
        [
            f"""  %{table}_address = add i64 %{table}, %table_offset
  %{table}_at = inttoptr i64 %{table}_address to ptr"""
            for table in ("cos", "sin")
        ]
    )
    body = f"""
{_row_pointer("heads", "%row_stride")}
  %positions_from = inttoptr i64 %positions to ptr
  %position_at = getelementptr i64, ptr %positions_from, i64 %row
  %position = load i64, ptr %position_at, align 8
  %table_offset = mul i64 %position, {size * dtype.itemsize}
{tables}
{heads}"""
    return f"""
{DECLARATIONS}
define void @rotate(ptr %job) {{
{slots("head", "turn")}
{job_fields(*ROTATE_JOB)}
{for_each_taken("row", "%num_rows", body)}
}}"""


def silu_code(size: int, dtype: torch.dtype, lanes: int) -> str:
    """`silu_mul`: gate / (1 + exp(-gate)) * up."""
    vectors = Vectors(lanes)
    one = f"splat (float {constant(1.0)})"

    def activate(name: str, offset: str, count: int) -> list[str]:
        return [
            f"  %{name}_up_offset = add i64 {offset}, {size * dtype.itemsize}",
            *_load(vectors, f"{name}_gate", "%gate_up_at", offset, dtype, count),
            *_load(vectors, f"{name}_up", "%gate_up_at", f"%{name}_up_offset", dtype, count),
            # Of minus the absolute value, which cannot overflow.
            f"  %{name}_bits = bitcast {vectors} %{name}_gate to {vectors.integers}",
            f"  %{name}_below_bits = or {vectors.integers} %{name}_bits, splat (i32 -2147483648)",
            f"  %{name}_below = bitcast {vectors.integers} %{name}_below_bits to {vectors}",
            f"  %{name}_power = call {vectors} @exponentials({vectors} %{name}_below)",
            f"  %{name}_is_above = fcmp oge {vectors} %{name}_gate, zeroinitializer",
            f"  %{name}_share = select {vectors.booleans} %{name}_is_above, {vectors} {one}, {vectors} %{name}_power",
            f"  %{name}_whole = fadd {vectors} %{name}_power, {one}",
            f"  %{name}_sigmoid = fdiv {vectors} %{name}_share, %{name}_whole",
            f"  %{name}_silu = fmul {vectors} %{name}_gate, %{name}_sigmoid",
            f"  %{name}_result = fmul {vectors} %{name}_silu, %{name}_up",
            *_store(vectors, f"{name}_result", "%y_at", offset, dtype, count),
        ]

    body = f"""
{_row_pointer("gate_up", "%gate_up_stride")}
{_row_pointer("y", str(size * dtype.itemsize))}
{_each_vector("activate", size, dtype, lanes, activate)}"""
    return f"""
{DECLARATIONS}
{vectors.exponential_function()}
define void @silu_mul(ptr %job) {{
{slots("activate")}
{job_fields(*SILU_JOB)}
{for_each_taken("row", "%num_rows", body)}
}}"""


def _row_pointer(name: str, stride: str) -> str:
    """`%<name>_at`, where this row of the tensor at `%<name>` begins."""
    return f"""  %{name}_row_offset = mul i64 %row, {stride}
  %{name}_row_address = add i64 %{name}, %{name}_row_offset
  %{name}_at = inttoptr i64 %{name}_row_address to ptr"""


def _each_vector(
    name: str, size: int, dtype: torch.dtype, lanes: int, body: Callable[[str, str, int], list[str]]
) -> str:
    """The body for each register's worth of a row: names' beginning, offset in bytes and how many numbers it has."""
    num_whole, num_left = divmod(size, lanes)
    step = lanes * dtype.itemsize
    whole = [f"  %{name}_offset = mul i64 %{name}, {step}", *body(name, f"%{name}_offset", lanes)]
    text = for_each(name, "0", str(num_whole), joined(whole))
    left = body(f"{name}_left", str(num_whole * step), num_left) if num_left else []
    return joined([text, *left])


def _load(vectors: Vectors, name: str, base: str, offset: str, dtype: torch.dtype, count: int) -> list[str]:
    """`%<name>`: the numbers at `base`, so many bytes on."""
    return [
        f"  %{name}_at = getelementptr i8, ptr {base}, i64 {offset}",
        *vectors.load(name, f"{name}_at", dtype, count),
    ]


def _store(vectors: Vectors, name: str, base: str, offset: str, dtype: torch.dtype, count: int) -> list[str]:
    """`%<name>` to `base`, so many bytes on."""
    return [
        f"  %{name}_to = getelementptr i8, ptr {base}, i64 {offset}",
        *vectors.store(name, f"{name}_to", dtype, count),
    ]
