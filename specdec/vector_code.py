"""Pieces of LLVM's text that kernels for a CPU share: loops, and what is done with a register of 8 or 16 floats."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

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


def for_each_taken(index: str, count: str, body: str) -> str:
    """The body for each `%index` below count that this thread takes, by `%next_<index>_field`; then it returns."""
    return f"""
  br label %take
take:
  %{index} = atomicrmw add ptr %next_{index}_field, i64 1 monotonic
  %is_any = icmp ult i64 %{index}, {count}
  br i1 %is_any, label %work, label %end
work:
{body}
  br label %take
end:
  ret void"""


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


@dataclass(frozen=True, slots=True)
class Vectors:
    """What is done with vectors of so many floats: a register's 8 (AVX2) or 16 (AVX-512); written out, their type."""

    lanes: int

    def __str__(self) -> str:
        return f"<{self.lanes} x float>"

    @property
    def integers(self) -> str:
        """The type of as many 32-bit integers."""
        return f"<{self.lanes} x i32>"

    @property
    def booleans(self) -> str:
        """The type of what compares two of them."""
        return f"<{self.lanes} x i1>"

    def load(self, name: str, pointer: str, dtype: torch.dtype, count: int | None = None) -> list[str]:
        """`%name`: the `count` numbers at `%pointer`, else as many as there is room for, and zeros."""
        scalar, align = _SCALARS[dtype]
        if count in (None, self.lanes):
            lines = [f"  %{name}_raw = load <{self.lanes} x {scalar}>, ptr %{pointer}, align {align}"]
        else:
            lines, before = [], "zeroinitializer"
            for i in range(count):
                after = f"%{name}_raw" if i == count - 1 else f"%{name}_raw_{i}"
                one = f"{scalar} %{name}_scalar_{i}"
                lines += [
                    f"  %{name}_at_{i} = getelementptr {scalar}, ptr %{pointer}, i64 {i}",
                    f"  %{name}_scalar_{i} = load {scalar}, ptr %{name}_at_{i}, align {align}",
                    f"  {after} = insertelement <{self.lanes} x {scalar}> {before}, {one}, i32 {i}",
                ]
                before = after
        return lines + self._widen(name, dtype)

    def _widen(self, name: str, dtype: torch.dtype) -> list[str]:
        """`%name` of `%name_raw`, which has the dtype's numbers, bfloat16's as 16-bit integers."""
        if dtype is torch.bfloat16:
            return [
                f"  %{name}_wide = zext <{self.lanes} x i16> %{name}_raw to {self.integers}",
                f"  %{name}_bits = shl {self.integers} %{name}_wide, splat (i32 16)",
                f"  %{name} = bitcast {self.integers} %{name}_bits to {self}",
            ]
        if dtype is torch.float16:
            return [f"  %{name} = fpext <{self.lanes} x half> %{name}_raw to {self}"]
        return [f"  %{name} = bitcast {self} %{name}_raw to {self}"]

    def store(self, name: str, pointer: str, dtype: torch.dtype, count: int | None = None) -> list[str]:
        """The first `count` numbers of `%name`, else all, rounded to the nearest with ties to even, to `%pointer`."""
        scalar, align = _SCALARS[dtype]
        narrow = f"<{self.lanes} x {scalar}>"
        lines = self._narrow(name, dtype)
        if count in (None, self.lanes):
            return [*lines, f"  store {narrow} %{name}_narrow, ptr %{pointer}, align {align}"]
        for i in range(count):
            lines += [
                f"  %{name}_one_{i} = extractelement {narrow} %{name}_narrow, i32 {i}",
                f"  %{name}_to_{i} = getelementptr {scalar}, ptr %{pointer}, i64 {i}",
                f"  store {scalar} %{name}_one_{i}, ptr %{name}_to_{i}, align {align}",
            ]
        return lines

    def _narrow(self, name: str, dtype: torch.dtype) -> list[str]:
        whole = self.integers
        if dtype is torch.bfloat16:
            # What is not a number stays none, where adding could make it infinite.
            chosen = f"{whole} splat (i32 32704), {whole} %{name}_number"
            return [
                f"  %{name}_bits = bitcast {self} %{name} to {whole}",
                f"  %{name}_upper = lshr {whole} %{name}_bits, splat (i32 16)",
                f"  %{name}_last = and {whole} %{name}_upper, splat (i32 1)",
                f"  %{name}_added = add {whole} %{name}_last, splat (i32 32767)",
                f"  %{name}_rounded = add {whole} %{name}_bits, %{name}_added",
                f"  %{name}_number = lshr {whole} %{name}_rounded, splat (i32 16)",
                f"  %{name}_is_nan = fcmp uno {self} %{name}, zeroinitializer",
                f"  %{name}_wide = select {self.booleans} %{name}_is_nan, {chosen}",
                f"  %{name}_narrow = trunc {whole} %{name}_wide to <{self.lanes} x i16>",
            ]
        if dtype is torch.float16:
            return [f"  %{name}_narrow = fptrunc {self} %{name} to <{self.lanes} x half>"]
        return [f"  %{name}_narrow = bitcast {self} %{name} to {self}"]

    def fused(self, name: str, factor: str, other: str, summand: str) -> str:
        """`%name` = factor * other + summand, rounded once; each an operand."""
        operands = ", ".join(f"{self} {operand}" for operand in (factor, other, summand))
        return f"  %{name} = call {self} @llvm.fma.v{self.lanes}f32({operands})"

    def broadcast(self, name: str, scalar: str) -> list[str]:
        """`%name`: the float `%scalar`, in all places."""
        return [
            f"  %{name}_first = insertelement {self} poison, float %{scalar}, i32 0",
            f"  %{name} = shufflevector {self} %{name}_first, {self} poison, {self.integers} zeroinitializer",
        ]

    def sum_of(self, name: str, vector: str) -> list[str]:
        """`%name`: the sum of the floats of `%vector`, halves added to halves."""
        return self._folded(
            name, vector, lambda half, result, *parts: [f"  %{result} = fadd {half} %{parts[0]}, %{parts[1]}"]
        )

    def largest_of(self, name: str, vector: str) -> list[str]:
        """`%name`: the largest of the floats of `%vector`."""

        def larger(half: Vectors, result: str, one: str, other: str) -> list[str]:
            return [
                f"  %{result}_is_one = fcmp ogt {half} %{one}, %{other}",
                f"  %{result} = select {half.booleans} %{result}_is_one, {half} %{one}, {half} %{other}",
            ]

        return self._folded(name, vector, larger)

    def _folded(self, name: str, vector: str, combine: Callable[[Vectors, str, str, str], list[str]]) -> list[str]:
        """`%name`: the halves of `%vector` combined, and the halves of that, until one float is left."""
        lines, whole, before = [], self, vector
        while whole.lanes > 1:
            half = Vectors(whole.lanes // 2)
            parts = []
            for part, start in (("low", 0), ("high", half.lanes)):
                parts.append(f"{name}_{part}_{half.lanes}")
                chosen = _indices(range(start, start + half.lanes))
                lines.append(f"  %{parts[-1]} = shufflevector {whole} %{before}, {whole} poison, {chosen}")
            before, whole = f"{name}_of_{half.lanes}", half
            lines += combine(half, before, *parts)
        return [*lines, f"  %{name} = extractelement {whole} %{before}, i32 0"]

    def sums_of(self, name: str, vectors: list[str]) -> list[str]:
        """`%name`: the sum of each of as many vectors as it has floats, neighbours added to neighbours.

        First within each four floats, which no shuffle leaves cheaply, then of fours.
        """
        assert len(vectors) == self.lanes, "a sum for each place"
        lines = []
        level = 0
        while len(vectors) > 1:
            orders = self._neighbours(1 if level < 2 else 4)
            sums: list[str] = []
            for one, other in zip(vectors[::2], vectors[1::2], strict=True):
                result = name if len(vectors) == 2 else f"{name}_{level}_{len(sums)}"
                for part, order in enumerate(orders):
                    lines.append(
                        f"  %{result}_part_{part} = shufflevector {self} %{one}, {self} %{other}, {_indices(order)}"
                    )
                lines.append(f"  %{result} = fadd {self} %{result}_part_0, %{result}_part_1")
                sums.append(result)
            vectors, level = sums, level + 1
        return lines

    def _neighbours(self, size: int) -> tuple[list[int], list[int]]:
        """Of two vectors the places of each first, and of each second, of two neighbours of so many floats.

        Single ones of both vectors by turns, two of each, so that fours stay what they are.
        """
        first: list[int] = []
        lanes = self.lanes
        step = 4 if size == 1 else lanes
        for start in range(0, lanes, step):
            for vector in (0, lanes):
                for place in range(start, start + step, 2 * size):
                    first += range(vector + place, vector + place + size)
        return first, [place + size for place in first]

    def exponential_function(self) -> str:
        """The function `exponentials`: of numbers none of which is above 0; of those below -87 it is 0."""
        lines = [
            f"define internal {self} @exponentials({self} %x) alwaysinline {{",
            self.fused("halves", "%x", _splat(1.4426950408889634), _splat(0.5)),
            f"  %floor = call {self} @llvm.floor.v{self.lanes}f32({self} %halves)",
            f"  %is_small = fcmp olt {self} %x, {_splat(_LEAST)}",
            f"  %is_number = fcmp oge {self} %x, {_splat(_LEAST)}",
            f"  %n = select {self.booleans} %is_number, {self} %floor, {self} zeroinitializer",
            self.fused("rest_0", "%n", _splat(-_LN_2[0]), "%x"),
            self.fused("rest", "%n", _splat(-_LN_2[1]), "%rest_0"),
            self.fused("p_1", _splat(_COEFFICIENTS[0]), "%rest", _splat(_COEFFICIENTS[1])),
            *(self.fused(f"p_{i}", f"%p_{i - 1}", "%rest", _splat(_COEFFICIENTS[i])) for i in range(2, 6)),
            f"  %square = fmul {self} %rest, %rest",
            self.fused("nearly", "%p_5", "%square", "%rest"),
            f"  %mantissa = fadd {self} %nearly, {_splat(1.0)}",
            f"  %whole = fptosi {self} %n to {self.integers}",
            f"  %biased = add {self.integers} %whole, splat (i32 127)",
            f"  %shifted = shl {self.integers} %biased, splat (i32 23)",
            f"  %power = bitcast {self.integers} %shifted to {self}",
            f"  %result = fmul {self} %mantissa, %power",
            f"  %kept = select {self.booleans} %is_small, {self} zeroinitializer, {self} %result",
            f"  ret {self} %kept",
            "}",
        ]
        return joined(lines)


def _indices(order: Iterable[int]) -> str:
    """What a shuffle chooses."""
    chosen = [f"i32 {i}" for i in order]
    return f"<{len(chosen)} x i32> <{', '.join(chosen)}>"


DECLARATIONS = """
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare <8 x float> @llvm.floor.v8f32(<8 x float>)
declare <16 x float> @llvm.floor.v16f32(<16 x float>)
declare i64 @llvm.umin.i64(i64, i64)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""
