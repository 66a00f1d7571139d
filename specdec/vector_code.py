"""Pieces of LLVM's text that kernels for a CPU share: eight numbers of a dtype to floats and back, and exponentials."""

from __future__ import annotations

import struct
from collections.abc import Callable

import torch

FLOATS = "<8 x float>"

_SCALARS = {torch.float32: ("float", 4), torch.float16: ("half", 2), torch.bfloat16: ("i16", 2)}


def joined(lines: list[str]) -> str:
    """One below the other."""
    return "\n".join(lines)


def job_fields(*names: str) -> str:
    """Of each 64-bit number of `%job` its place, `%<name>_field`, and itself, `%<name>`, unless threads count in it."""
    lines = []
    for i, name in enumerate(names):
        lines.append(f"  %{name}_field = getelementptr i64, ptr %job, i64 {i}")
        if not name.startswith("next_"):
            lines.append(f"  %{name} = load i64, ptr %{name}_field, align 8")
    return joined(lines)


def slots(*indices: str) -> str:
    """Of a function's loops by for_each."""
    return joined([f"  %{index}.at = alloca i64" for index in indices])


def for_each(index: str, start: str, stop: str, body: str) -> str:
    """The body for each `%index` from start up to stop, in its slot `%index.at`."""
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


def load_floats(name: str, pointer: str, dtype: torch.dtype, count: int = 8) -> list[str]:
    """`%name` <8 x float>: the `count` numbers at `%pointer`, and zeros."""
    scalar, align = _SCALARS[dtype]
    if count == 8:
        lines = [f"  %{name}_raw = load <8 x {scalar}>, ptr %{pointer}, align {align}"]
    else:
        lines, before = [], "zeroinitializer"
        for i in range(count):
            after = f"%{name}_raw" if i == count - 1 else f"%{name}_raw_{i}"
            lines += [
                f"  %{name}_at_{i} = getelementptr {scalar}, ptr %{pointer}, i64 {i}",
                f"  %{name}_scalar_{i} = load {scalar}, ptr %{name}_at_{i}, align {align}",
                f"  {after} = insertelement <8 x {scalar}> {before}, {scalar} %{name}_scalar_{i}, i32 {i}",
            ]
            before = after
    return lines + _widen(name, dtype)


def _widen(name: str, dtype: torch.dtype) -> list[str]:
    """`%name` <8 x float> of `%name_raw`, which has the dtype's numbers, bfloat16's as <8 x i16>."""
    if dtype is torch.bfloat16:
        return [
            f"  %{name}_wide = zext <8 x i16> %{name}_raw to <8 x i32>",
            f"  %{name}_bits = shl <8 x i32> %{name}_wide, splat (i32 16)",
            f"  %{name} = bitcast <8 x i32> %{name}_bits to {FLOATS}",
        ]
    if dtype is torch.float16:
        return [f"  %{name} = fpext <8 x half> %{name}_raw to {FLOATS}"]
    return [f"  %{name} = bitcast {FLOATS} %{name}_raw to {FLOATS}"]


def store_floats(name: str, pointer: str, dtype: torch.dtype, count: int = 8) -> list[str]:
    """The first `count` numbers of `%name` <8 x float>, rounded to the nearest with ties to even, to `%pointer`."""
    scalar, align = _SCALARS[dtype]
    lines = _narrow(name, dtype)
    if count == 8:
        return [*lines, f"  store <8 x {scalar}> %{name}_narrow, ptr %{pointer}, align {align}"]
    for i in range(count):
        lines += [
            f"  %{name}_one_{i} = extractelement <8 x {scalar}> %{name}_narrow, i32 {i}",
            f"  %{name}_to_{i} = getelementptr {scalar}, ptr %{pointer}, i64 {i}",
            f"  store {scalar} %{name}_one_{i}, ptr %{name}_to_{i}, align {align}",
        ]
    return lines


def _narrow(name: str, dtype: torch.dtype) -> list[str]:
    if dtype is torch.bfloat16:
        # What is not a number stays none, where adding could make it infinite.
        return [
            f"  %{name}_bits = bitcast {FLOATS} %{name} to <8 x i32>",
            f"  %{name}_upper = lshr <8 x i32> %{name}_bits, splat (i32 16)",
            f"  %{name}_last = and <8 x i32> %{name}_upper, splat (i32 1)",
            f"  %{name}_added = add <8 x i32> %{name}_last, splat (i32 32767)",
            f"  %{name}_rounded = add <8 x i32> %{name}_bits, %{name}_added",
            f"  %{name}_number = lshr <8 x i32> %{name}_rounded, splat (i32 16)",
            f"  %{name}_is_nan = fcmp uno {FLOATS} %{name}, zeroinitializer",
            f"  %{name}_wide = select <8 x i1> %{name}_is_nan, <8 x i32> splat (i32 32704), <8 x i32> %{name}_number",
            f"  %{name}_narrow = trunc <8 x i32> %{name}_wide to <8 x i16>",
        ]
    if dtype is torch.float16:
        return [f"  %{name}_narrow = fptrunc {FLOATS} %{name} to <8 x half>"]
    return [f"  %{name}_narrow = bitcast {FLOATS} %{name} to {FLOATS}"]


def fused(name: str, factor: str, other: str, summand: str) -> str:
    """`%name` = factor * other + summand, rounded once; each an operand <8 x float>."""
    operands = ", ".join(f"{FLOATS} {operand}" for operand in (factor, other, summand))
    return f"  %{name} = call {FLOATS} @llvm.fma.v8f32({operands})"


def broadcast(name: str, scalar: str) -> list[str]:
    """`%name` <8 x float>, eight times the float `%scalar`."""
    return [
        f"  %{name}_first = insertelement {FLOATS} poison, float %{scalar}, i32 0",
        f"  %{name} = shufflevector {FLOATS} %{name}_first, {FLOATS} poison, <8 x i32> zeroinitializer",
    ]


def sum_of(name: str, vector: str) -> list[str]:
    """`%name`: the sum of the eight floats of `%vector`, halves added to halves."""
    return _folded(name, vector, lambda result, wide, one, other: [f"  %{result} = fadd {wide} %{one}, %{other}"])


def largest_of(name: str, vector: str) -> list[str]:
    """`%name`: the largest of the eight floats of `%vector`."""

    def larger(result: str, wide: str, one: str, other: str) -> list[str]:
        booleans = wide.replace("float", "i1")
        return [
            f"  %{result}_is_one = fcmp ogt {wide} %{one}, %{other}",
            f"  %{result} = select {booleans} %{result}_is_one, {wide} %{one}, {wide} %{other}",
        ]

    return _folded(name, vector, larger)


def _folded(name: str, vector: str, combine: Callable[[str, str, str, str], list[str]]) -> list[str]:
    """`%name`: the halves of `%vector` combined, and the halves of that, until one float is left."""
    lines, size, before = [], 8, vector
    while size > 1:
        size //= 2
        wide, narrow = f"<{2 * size} x float>", f"<{size} x float>"
        for part, start in (("low", 0), ("high", size)):
            chosen = ", ".join(f"i32 {i}" for i in range(start, start + size))
            lines.append(
                f"  %{name}_{part}_{size} = shufflevector {wide} %{before}, {wide} poison, <{size} x i32> <{chosen}>"
            )
        before, halves = f"{name}_of_{size}", (f"{name}_low_{size}", f"{name}_high_{size}")
        lines += combine(before, narrow, *halves)
    return [*lines, f"  %{name} = extractelement <1 x float> %{before}, i32 0"]


def sums_of(name: str, vectors: list[str]) -> list[str]:
    """`%name` <8 x float>: the sum of each of eight vectors, neighbours added to neighbours."""
    lines = []
    pairs = ((0, 2, 8, 10, 4, 6, 12, 14), (1, 3, 9, 11, 5, 7, 13, 15))
    halves = ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
    level = 0
    while len(vectors) > 1:
        chosen = halves if len(vectors) == 2 else pairs
        sums: list[str] = []
        for one, other in zip(vectors[::2], vectors[1::2], strict=True):
            result = name if len(vectors) == 2 else f"{name}_{level}_{len(sums)}"
            for part, order in enumerate(chosen):
                indices = ", ".join(f"i32 {i}" for i in order)
                lines.append(
                    f"  %{result}_part_{part} = shufflevector {FLOATS} %{one}, {FLOATS} %{other}, <8 x i32> <{indices}>"
                )
            lines.append(f"  %{result} = fadd {FLOATS} %{result}_part_0, %{result}_part_1")
            sums.append(result)
        vectors, level = sums, level + 1
    return lines


def constant(value: float) -> str:
    """As LLVM writes floats: by the bits of the double that is the nearest float."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return f"0x{struct.unpack('Q', struct.pack('d', rounded))[0]:016X}"


def _splat(value: float) -> str:
    return f"splat (float {constant(value)})"


# Cephes' expf (Moshier 1989): 2^n times a polynomial of what is left, good to two units in the last place.
_COEFFICIENTS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LN_2 = (0.693359375, -2.12194440e-4)
_LEAST = -87.0


def exponential_function() -> str:
    """The function `exponentials`: of eight numbers none of which is above 0; of those below -87 it is 0."""
    lines = [
        f"define internal {FLOATS} @exponentials({FLOATS} %x) alwaysinline {{",
        fused("halves", "%x", _splat(1.4426950408889634), _splat(0.5)),
        f"  %floor = call {FLOATS} @llvm.floor.v8f32({FLOATS} %halves)",
        f"  %is_small = fcmp olt {FLOATS} %x, {_splat(_LEAST)}",
        f"  %is_number = fcmp oge {FLOATS} %x, {_splat(_LEAST)}",
        f"  %n = select <8 x i1> %is_number, {FLOATS} %floor, {FLOATS} zeroinitializer",
        fused("rest_0", "%n", _splat(-_LN_2[0]), "%x"),
        fused("rest", "%n", _splat(-_LN_2[1]), "%rest_0"),
        fused("p_1", _splat(_COEFFICIENTS[0]), "%rest", _splat(_COEFFICIENTS[1])),
        *(fused(f"p_{i}", f"%p_{i - 1}", "%rest", _splat(_COEFFICIENTS[i])) for i in range(2, 6)),
        f"  %square = fmul {FLOATS} %rest, %rest",
        fused("nearly", "%p_5", "%square", "%rest"),
        f"  %mantissa = fadd {FLOATS} %nearly, {_splat(1.0)}",
        f"  %whole = fptosi {FLOATS} %n to <8 x i32>",
        "  %biased = add <8 x i32> %whole, splat (i32 127)",
        "  %shifted = shl <8 x i32> %biased, splat (i32 23)",
        f"  %power = bitcast <8 x i32> %shifted to {FLOATS}",
        f"  %result = fmul {FLOATS} %mantissa, %power",
        f"  %kept = select <8 x i1> %is_small, {FLOATS} zeroinitializer, {FLOATS} %result",
        f"  ret {FLOATS} %kept",
        "}",
    ]
    return "\n".join(lines)


DECLARATIONS = """
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)
declare <8 x float> @llvm.floor.v8f32(<8 x float>)
declare i64 @llvm.umin.i64(i64, i64)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""
