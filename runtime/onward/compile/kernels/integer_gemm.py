"""Products of 8-bit integers summed in int32, from floats that hold integers times a scale and to floats.

C = float((A / scale_a) · (B / scale_b)) · scale_a · scale_b: both sides hold whole numbers times their scale,
as FakeQuantize leaves them, so the sums are exact and the result is rounded once. A is turned into unsigned
bytes, q − low, some rows at a time; B into signed ones beforehand, four rows of it next to each other as
vpdpbusd reads them, with the sums of its columns, which take −low out again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.expression import emit
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.tile import IDENTITY, Epilogue

__all__ = [
    "IntegerGemm",
    "define_tile",
    "integer_gemm",
    "line_bytes",
    "pack_integers",
    "packed_bytes",
    "to_bytes",
]

_GROUP = 4
"""Bytes of a lane, which one instruction multiplies and adds up."""

_ROWS, _VECTORS = 6, 4
"""A tile's rows and vectors: 24 sums, 4 vectors of B and one of A fit 32 registers."""

_BLOCK = 48
"""Rows of A that are turned into bytes at a time; tiles of all columns then read them from a near cache."""


@dataclass(frozen=True)
class IntegerGemm:
    """A product of `m` rows at run time, [m, k] by [k, n].

    Attributes:
        n, k: extents.
        a_row, c_row: distances of rows, in elements; within a row elements follow each other.
        scale: of A.
        low: the smallest of A's integers; the largest is at most 255 above.
        epilogue: what happens to results before they are stored.
    """

    n: int
    k: int
    a_row: int
    c_row: int
    scale: float
    low: int
    epilogue: Epilogue = IDENTITY


def _groups(k: int) -> int:
    """Fours of rows of B, for whole vectors of bytes of A."""
    return -(-k // 16) * 16 // _GROUP


def line_bytes(k: int) -> int:
    """Bytes of a row of A."""
    return _groups(k) * _GROUP


def packed_bytes(n: int, k: int, target: Target) -> int:
    """Bytes of B as it is packed."""
    return -(-n // target.lanes) * _groups(k) * target.lanes * _GROUP


def pack_integers(
    n: int, k: int, n_stride: int, k_stride: int, scales: int, spec: IntegerGemm, target: Target
) -> Kernel:
    """B / scale_b as signed bytes, −low times the sums of its columns, and the scales of results.

    `scales` is the distance of scales in the slot `scale`: 1, or 0 for one scale. Slots: b, scale, packed,
    sums, factors. `sums` and `factors` have an entry a column of whole vectors.
    """
    module = Module(target)
    f = module.entry()
    parameters = (*read("b", "scale"), *write("packed", "sums", "factors"))
    values = slot_values(f, parameters)
    lanes, groups = target.lanes, _groups(k)
    low, high = f.share(-(-n // lanes), *f.arguments[1:])
    whole = f"<{lanes} x i32>"
    byte = f.splat(f.value(255, "i32"))
    with f.range(low, high) as block:
        column = block * lanes
        mask = f.mask(f.value(n) - column)
        if scales:
            scale = f.vload(values["scale"], column, mask)
        else:
            scale = f.splat(f.load(values["scale"], f.float, 0))
        source = f.at(values["b"], column * n_stride)
        sink = f.at(values["packed"], block * (groups * lanes), "i32")

        def word(
            start: Value,
            rows: int,
            total: Value,
            source: Value = source,
            sink: Value = sink,
            scale: Value = scale,
            mask: Value | None = mask,
        ) -> Value:
            """Four rows as one vector of words."""
            bits = f.zero(whole)
            for j in range(rows):
                line = f.at(source, (start * _GROUP + j) * k_stride)
                x = f.vload(line, 0, mask) if n_stride == 1 else f.gather(line, n_stride, mask)
                q = _rounded(f, x / scale)
                if mask is not None:  # lanes past n have no scale to divide by
                    q = f.select(mask, q, f.zero(whole))
                total = total + q
                kept = f.binary("and", q, byte)
                bits = f.binary("or", bits, f.binary("shl", kept, f.splat(f.value(8 * j, "i32"))))
            f.store(bits, sink, start)
            return total

        full, rest = divmod(k, _GROUP)

        def next_word(i: Value, carry: Sequence[Value], word: Callable[..., Value] = word) -> Sequence[Value]:
            return [word(i, _GROUP, carry[0])]

        (total,) = f.loop(0, full, 1, [f.zero(whole)], body=next_word)
        if rest:
            total = word(f.value(full), rest, total)
        with f.range(full + (rest > 0), groups) as i:
            f.store(f.zero(whole), sink, i)
        f.vstore(total * f.splat(f.value(spec.low, "i32")), values["sums"], column)
        f.vstore(scale * f.splat(f.value(spec.scale, f.float)), values["factors"], column)
    f.ret()
    moved = 4 * n * k + packed_bytes(n, k, target)
    return Kernel(
        f"pack_integers {k}x{n}",
        module.text(),
        parameters,
        bytes=Affine(moved),
        units=Affine(-(-n // lanes)),
    )


def integer_gemm(spec: IntegerGemm, target: Target) -> Kernel:
    """The product. Slots: a, packed, sums, factors, c, e0, ... (epilogue operands), scratch, batch (m)."""
    module = Module(target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(spec.epilogue.operands)))
    reads = read("a", "packed", "sums", "factors")
    parameters = (*reads, *write("c"), *read(*extra), *write("scratch"), *integer("batch"))
    values = slot_values(f, parameters)
    line = line_bytes(spec.k)
    m = values["batch"]
    _, thread, threads = f.arguments
    held = _BLOCK * line
    bytes_of_a = f.at(values["scratch"], thread * held, "i8")
    # Blocks are as many as threads where there are few rows.
    step = f.smax(1, f.smin(_BLOCK, (m + (threads - 1)) // threads))
    low, high = f.share((m + (step - 1)) // step, thread, threads)
    turn = _bytes_of_rows(module, spec)
    vectors, tail = -(-spec.n // f.lanes), spec.n % f.lanes
    whole, rest = divmod(vectors - (tail > 0), _VECTORS)
    parts = [(_VECTORS, 0, whole, 0)] if whole else []
    if rest or tail:
        parts.append((rest + (tail > 0), whole, whole + 1, tail))
    tiles = {
        (rows, width, cut): define_tile(module, spec, rows, width, cut)
        for width, _, _, cut in parts
        for rows in (_ROWS, 2, 1)
    }
    with f.range(low, high) as block:
        first = block * step
        rows = f.smin(step, m - first)
        f.invoke(turn, [f.at(values["a"], first * spec.a_row), bytes_of_a, rows])
        for width, begin, end, cut in parts:
            with f.range(begin, end) as part:
                column = part * (_VECTORS * f.lanes)
                panel = f.at(values["packed"], column * line, "i8")
                done: Value = f.value(0)
                for height in (_ROWS, 2, 1):
                    until = done + f.smax(0, rows - done) // height * height
                    with f.range(done, until, height) as r:
                        place = (first + r) * spec.c_row + column
                        operands = [
                            f.at(values[f"e{i}"], column if kind == "channel" else place)
                            for i, kind in enumerate(spec.epilogue.operands)
                        ]
                        f.invoke(
                            tiles[height, width, cut],
                            [
                                f.at(bytes_of_a, r * line, "i8"),
                                panel,
                                f.at(values["sums"], column),
                                f.at(values["factors"], column),
                                f.at(values["c"], place),
                                *operands,
                            ],
                        )
                    done = until
    f.ret()
    work = 2 * spec.n * spec.k
    return Kernel(
        f"integer_gemm mx{spec.k}x{spec.n}",
        module.text(),
        parameters,
        flops=Affine(0, work),
        bytes=Affine(packed_bytes(spec.n, spec.k, target), 4 * (spec.k + spec.n)),
        units=Affine(0, 1),
        scratch=held,
    )


def _rounded(f: Function, x: Value) -> Value:
    """The nearest integers of a vector of floats, int32."""
    whole = f.intrinsic("nearbyint", x.type, (x,))
    return f.cast("fptosi", whole, f"<{f.lanes} x i32>")


def to_bytes(f: Function, spec: IntegerGemm) -> Callable[[Value], Value]:
    """A function of a vector of A that gives its integers less the smallest, as unsigned bytes.

    Added to 1.5 · 2²³, a number is rounded to a whole one, which then is in the lowest bits.
    """
    inverse = f.splat(f.value(1.0 / spec.scale, f.float))
    shift = f.splat(f.value(float(3 * (1 << 22) - spec.low), f.float))

    def turned(x: Value) -> Value:
        bits = f.bitcast(f.fma(x, inverse, shift), f"<{f.lanes} x i32>")
        return f.cast("trunc", bits, f"<{f.lanes} x i8>")

    return turned


def _bytes_of_rows(module: Module, spec: IntegerGemm) -> Function:
    """Write a function of (a, bytes, rows): rows of A as unsigned bytes, in lines of whole vectors."""
    f = module.function("bytes_of_rows", [("a", "ptr"), ("bytes", "ptr"), ("rows", "i64")])
    a, out, rows = f.arguments
    line = line_bytes(spec.k)
    turned = to_bytes(f, spec)

    tail = spec.k % f.lanes
    with f.range(0, rows) as r:
        source, sink = f.at(a, r * spec.a_row), f.at(out, r * line, "i8")
        with f.range(0, spec.k - tail, f.lanes) as k:
            f.vstore(turned(f.vload(source, k)), sink, k)
        if tail:
            last = spec.k - tail
            f.vstore(turned(f.vload(source, last, f.mask(tail))), sink, last)
    f.ret()
    return f


def define_tile(module: Module, spec: IntegerGemm, rows: int, vectors: int, tail: int) -> Function:
    """Write a function of (A's bytes, panels, sums, factors, C, epilogue addresses...): a tile, finished."""
    kinds = spec.epilogue.operands
    names = ("a", "b", "sums", "factors", "c", *(f"e{i}" for i in range(len(kinds))))
    f = module.function(f"tile_{rows}x{vectors}_{tail}", [(name, "ptr") for name in names])
    a, b, sums, factors, c, *sources = f.arguments
    lanes, groups = f.lanes, _groups(spec.k)
    line, panel = groups * _GROUP, groups * lanes
    whole, packed = f"<{lanes} x i32>", f"<{lanes * _GROUP} x i8>"

    def step(g: Value, carry: Sequence[Value]) -> list[Value]:
        columns = [f.vload(b, g * lanes + v * panel, element="i32") for v in range(vectors)]
        columns = [f.bitcast(x, packed) for x in columns]
        out = list(carry)
        for i in range(rows):
            four = f.splat(f.load(f.at(a, i * line, "i8"), "i32", g))
            left = f.bitcast(four, packed)
            for v in range(vectors):
                n = i * vectors + v
                out[n] = f.call("llvm.x86.avx512.vpdpbusd.512", whole, (out[n], left, columns[v]))
        return out

    start = [f.vload(sums, v * lanes, element="i32") for v in range(vectors)] * rows
    total = f.loop(0, groups, 1, start, body=step, nonempty=True)
    masks = [f.mask(tail) if tail and v == vectors - 1 else None for v in range(vectors)]
    for v in range(vectors):
        factor = f.vload(factors, v * lanes)
        channel = [
            f.vload(s, v * lanes, masks[v]) if kind == "channel" else None
            for s, kind in zip(sources, kinds, strict=True)
        ]
        for i in range(rows):
            operands = [f.cast("sitofp", total[i * vectors + v], f.vector) * factor]
            for source, vector in zip(sources, channel, strict=True):
                operands.append(vector or f.vload(source, i * spec.c_row + v * lanes, masks[v]))
            (result,) = emit(f, [spec.epilogue.expression], operands)
            f.vstore(result, c, i * spec.c_row + v * lanes, masks[v])
    f.ret()
    return f
