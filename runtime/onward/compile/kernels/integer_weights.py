"""Quantised weights as products read them: packed integers, widened to the floats that they stand for.

A weight [k, n] lies in blocks of 64 columns, [block][k][column], a byte an integer; integers of 4 bits share
one, the even row in its low bits. So the columns of a tile are read a cache line after the other. Whoever
multiplies in bytes reads groups of four rows, [block][k / 4][column][4], as vpdpbusd takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Int, Value
from onward.compile.kernels.kernel import Affine, Kernel, read, slot_values, write

__all__ = [
    "COLUMNS",
    "IntegerWeights",
    "Scales",
    "define_dequantise",
    "dequantised",
    "pack_weights",
    "packed_weight_bytes",
    "scale_slots",
    "scales_at",
    "widened",
]

COLUMNS = 64
"""Columns of a block."""


@dataclass(frozen=True)
class IntegerWeights:
    """A weight [k, n] of signed integers; w = (q − zero) · scale.

    Attributes:
        n, k: extents.
        bits: 8, or 4.
        block: rows that share scales; an even number, or k.
        zeros: whether there are zero points; else all are 0.
    """

    n: int
    k: int
    bits: int
    block: int
    zeros: bool

    @property
    def lines(self) -> int:
        """Rows of bytes."""
        return -(-self.k * self.bits // 8)

    @property
    def blocks(self) -> int:
        """Rows of scales."""
        return -(-self.k // self.block)


def packed_weight_bytes(weights: IntegerWeights) -> int:
    """Bytes of a weight as it is packed."""
    return -(-weights.n // COLUMNS) * COLUMNS * weights.lines


def scale_slots(weights: IntegerWeights | None) -> tuple[str, ...]:
    """The slots of scales and zero points, [blocks, n] in float32 and int8, that kernels have."""
    if weights is None:
        return ()
    return ("scale", "zero") if weights.zeros else ("scale",)


def pack_weights(weights: IntegerWeights, target: Target) -> Kernel:
    """Rows of bytes into blocks of columns. Slots: b, packed.

    What columns past n hold is 0.
    """
    module = Module(target)
    f = module.entry()
    parameters = (*read("b"), *write("packed"))
    values = slot_values(f, parameters)
    lines, n = weights.lines, weights.n
    low, high = f.share(-(-n // COLUMNS), *f.arguments[1:])
    with f.range(low, high) as block:
        column = block * COLUMNS
        masks = [f.mask(f.smax(0, f.value(n - start) - column)) for start in range(0, COLUMNS, f.lanes)]
        with f.range(0, lines) as line:
            source = f.at(values["b"], line * n + column, "i8")
            sink = f.at(values["packed"], (block * lines + line) * COLUMNS, "i8")
            for i, mask in enumerate(masks):
                f.vstore(f.vload(source, i * f.lanes, mask, "i8"), sink, i * f.lanes)
    f.ret()
    return Kernel(
        f"pack_weights {weights.k}x{n} int{weights.bits}",
        module.text(),
        parameters,
        bytes=Affine(lines * n + packed_weight_bytes(weights)),
        units=Affine(-(-n // COLUMNS)),
    )


@dataclass(frozen=True, eq=False)
class Scales:
    """The scales, and zero points as floats, of neighbouring vectors of columns."""

    scale: Sequence[Value]
    zero: Sequence[Value | None]


def scales_at(
    f: Function, weights: IntegerWeights, scale: Value, zero: Value | None, row: Int, columns: Sequence[Int]
) -> Scales:
    """Those of a row of scales, for vectors that begin at these columns."""
    masks = [f.mask(f.value(weights.n) - column) for column in columns]
    places = [f.value(row) * weights.n + column for column in columns]
    found: list[Value | None] = [None] * len(masks)
    if zero is not None:
        whole = [f.vload(zero, place, mask, "i8") for place, mask in zip(places, masks, strict=True)]
        found = [f.cast("sitofp", x, f.vector) for x in whole]
    return Scales([f.vload(scale, p, mask) for p, mask in zip(places, masks, strict=True)], found)


def widened(f: Function, weights: IntegerWeights, packed: Value) -> list[Value]:
    """The integers of a vector of columns as floats: those of one row, or of two that share bytes."""
    whole = f"<{f.lanes} x i32>"
    stored = f.cast("sext", f.vload(packed, 0, None, "i8"), whole)
    if weights.bits == 8:
        return [f.cast("sitofp", stored, f.vector)]
    if f.module.target.x86 and f.lanes == 16:
        # One permutation looks a number up by the low four bits of each lane.
        numbers = ", ".join(f"float {i if i < 8 else i - 16:.1f}" for i in range(16))
        table = Value(f, f"<{numbers}>", f.vector)
        look = "llvm.x86.avx512.permvar.sf.512"
        return [f.call(look, f.vector, (table, x)) for x in (stored, f.binary("lshr", stored, 4))]
    rows = f.binary("ashr", f.binary("shl", stored, 28), 28), f.binary("ashr", stored, 4)
    return [f.cast("sitofp", x, f.vector) for x in rows]


def dequantised(f: Function, q: Value, scales: Scales, vector: int) -> Value:
    """(q − zero) · scale, rounded once as DequantizeLinear does."""
    zero = scales.zero[vector]
    return f.exact("fmul", q if zero is None else q - zero, scales.scale[vector])


def define_dequantise(module: Module, weights: IntegerWeights, width: int, size: int) -> Function:
    """Write a function of (packed, scale, zero, panels, start, end, first, count): rows of panels as floats.

    `count` rows from `first`, which is even, of panels [start, end) of `width` columns go into `panels`,
    `size` elements apart. A row more may be written.
    """
    names = ("packed", "scale", "zero", "panels")
    counts = ("start", "end", "first", "count")
    f = module.function("dequantise", [(n, "ptr") for n in names] + [(n, "i64") for n in counts])
    packed, scale, zero, panels, start, end, first, count = f.arguments
    step = 8 // weights.bits
    last = -(-weights.n // COLUMNS) * COLUMNS - f.lanes
    with f.range(start, end) as panel:
        sink = f.at(panels, (panel - start) * size)
        # Vectors past the last column read the last one.
        columns = [f.smin(panel * width + v, last) for v in range(0, width, f.lanes)]
        sources = [
            f.at(packed, column // COLUMNS * (COLUMNS * weights.lines) + column % COLUMNS, "i8")
            for column in columns
        ]
        stop = first + count
        with f.range(first // weights.block, (stop + (weights.block - 1)) // weights.block) as block:
            top = f.smax(first, block * weights.block)
            bottom = f.smin(stop, (block + 1) * weights.block)
            given = scales_at(f, weights, scale, zero if weights.zeros else None, block, columns)
            with f.range(top, bottom, step) as row:
                for v, source in enumerate(sources):
                    line = f.at(source, row // step * COLUMNS, "i8")
                    for i, q in enumerate(widened(f, weights, line)):
                        place = (row - first + i) * width + v * f.lanes
                        f.vstore(dequantised(f, q, given, v), sink, place)
    f.ret()
    return f
