"""Products of few rows with quantised weights: every weight is widened in registers, and read once.

So few rows read weights for longer than they multiply: what counts is how many bytes a weight has.
"""

from __future__ import annotations

from collections.abc import Sequence

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.expression import emit
from onward.compile.kernels.gemm import Gemm, describe, result_of
from onward.compile.kernels.integer_weights import (
    COLUMNS,
    dequantised,
    scale_slots,
    scales_at,
    widened,
)
from onward.compile.kernels.kernel import Kernel, integer, read, slot_values

__all__ = ["integer_rows"]

_CHAINS = 2
"""Sums for each result of a single row, which otherwise wait for each other."""

_SPARE = 3
"""Registers beside the sums of a tile and its scales: a row of A, and weights that are being widened."""


def _tiles(target: Target) -> tuple[tuple[int, int], ...]:
    """Rows and vectors of tiles, the highest first: few rows go with many columns."""
    found: dict[int, int] = {}
    for vectors in (2, 4):
        rows = (target.registers - _SPARE - vectors) // vectors
        found |= {r: vectors for r in ((12, 8, 6) if vectors == 2 else (4, 2, 1)) if r <= rows}
    return tuple(sorted(found.items(), reverse=True))


def integer_rows(spec: Gemm, target: Target) -> Kernel:
    """The kernel. Slots: a, b, scale, zero (where there are), c, e0, ... (epilogue operands), batch (m).

    A's rows are contiguous.
    """
    assert spec.weights is not None
    module = Module(target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(spec.epilogue.operands)))
    reads = read("a", "b", *scale_slots(spec.weights))
    parameters = (*reads, *result_of(spec), *read(*extra), *integer("batch"))
    values = slot_values(f, parameters)
    tiles = [(r, min(v * f.lanes, COLUMNS), v) for r, v in _tiles(target)]
    m = values["batch"]
    widest = max(width for _, width, _ in tiles)
    low, high = f.share(-(-spec.n // widest), *f.arguments[1:])
    with f.range(low, high) as unit:
        done: Value = f.value(0)
        for rows, width, vectors in tiles:
            tile = _define_tile(module, spec, rows, vectors)
            until = done + (m - done) // rows * rows
            end = f.smin((unit + 1) * widest, spec.n)
            with f.range(done, until, rows) as row, f.range(unit * widest, end, width) as column:
                place = column // COLUMNS * (COLUMNS * spec.weights.lines) + column % COLUMNS
                c = row * spec.c_row + column
                operands = [
                    f.at(values[f"e{i}"], column if kind == "channel" else c)
                    for i, kind in enumerate(spec.epilogue.operands)
                ]
                a, panel = f.at(values["a"], row * spec.a_row), f.at(values["b"], place, "i8")
                scale, zero = values["scale"], values.get("zero", values["scale"])
                f.invoke(tile, [a, panel, scale, zero, f.at(values["c"], c), *operands, column])
            done = until
    f.ret()
    return describe(spec, "integer_rows", module.text(), parameters)


def _define_tile(module: Module, spec: Gemm, rows: int, vectors: int) -> Function:
    """Write a function of (a, packed, scale, zero, c, e0, ..., column): a tile, finished."""
    weights, kinds = spec.weights, spec.epilogue.operands
    assert weights is not None
    names = ("a", "b", "scale", "zero", "c", *(f"e{i}" for i in range(len(kinds))))
    f = module.function(f"tile_{rows}", [*((n, "ptr") for n in names), ("column", "i64")])
    a, b, scale, zero, c, *sources, column = f.arguments
    lanes, step = f.lanes, 8 // weights.bits
    chains = _CHAINS if rows == 1 else 1
    late = weights.blocks == 1 or rows == 1  # sums are scaled, not weights
    shifted = weights.zeros and rows == 1  # zero points are taken off sums, as a multiple of A's sum
    columns = [column + v * lanes for v in range(vectors)]

    def add(row: Value, carry: Sequence[Value], lines: int, block: Value, depth: int) -> list[Value]:
        """`depth` rows of B in `lines` of bytes."""
        given = scales_at(f, weights, scale, zero if weights.zeros and not shifted else None, block, columns)
        out = list(carry)
        for line in range(lines):
            packed = f.at(b, (row // step + line) * COLUMNS, "i8")
            for v in range(vectors):
                for i, q in enumerate(widened(f, weights, f.at(packed, v * lanes, "i8"))):
                    at = line * step + i
                    if at >= depth:
                        continue
                    zero_point = given.zero[v]
                    if not late:
                        w = dequantised(f, q, given, v)
                    else:
                        w = q if zero_point is None or shifted else q - zero_point
                    if shifted and v == 0:
                        out[-1] = out[-1] + f.broadcast(a, row + at)
                    for r in range(rows):
                        n = ((at % chains) * rows + r) * vectors + v
                        scalar = f.broadcast(a, row + (r * spec.a_row + at))
                        out[n] = f.fma(scalar, w, out[n])
        return out

    lines = _CHAINS // step if step < _CHAINS else 1
    stride = lines * step
    sums = rows * vectors

    def over_block(block: Value, carry: Sequence[Value], top: Value, bottom: Value) -> list[Value]:
        even = top + (bottom - top) // stride * stride
        out = f.loop(top, even, stride, carry, body=lambda row, now: add(row, now, lines, block, stride))
        out = f.loop(even, bottom, 1, out, body=lambda row, now: add(row, now, 1, block, 1))
        if not late:
            return out
        if chains > 1:
            out = [*(out[i] + out[sums + i] for i in range(sums)), *out[chains * sums :]]
        given = scales_at(f, weights, scale, zero if shifted else None, block, columns)
        if shifted:
            taken = [f.neg(x) for x in given.zero if x is not None]
            out = [f.fma(out[-1], x, y) for x, y in zip(taken, out[:-1], strict=True)]
        return [x * given.scale[i % vectors] for i, x in enumerate(out)]

    nothing = [f.zero()] * (chains * sums + shifted)
    if weights.blocks == 1:
        total = over_block(f.value(0), nothing, f.value(0), f.value(weights.k))
    else:

        def next_block(block: Value, carry: list[Value]) -> list[Value]:
            top = block * weights.block
            bottom = f.smin(top + weights.block, weights.k)
            if not late:
                return over_block(block, carry, top, bottom)
            found = over_block(block, nothing, top, bottom)
            return [x + y for x, y in zip(carry, found, strict=True)]

        total = f.loop(0, weights.blocks, 1, nothing[:sums], body=next_block, nonempty=True)
    masks = [f.mask(f.value(spec.n) - start) for start in columns]
    for v in range(vectors):
        for r in range(rows):
            operands = [total[r * vectors + v]]
            for source, kind in zip(sources, kinds, strict=True):
                first = v * lanes if kind == "channel" else r * spec.c_row + v * lanes
                operands.append(f.vload(source, first, masks[v]))
            (result,) = emit(f, [spec.epilogue.expression], operands)
            f.vstore(result, c, r * spec.c_row + v * lanes, masks[v])
    f.ret()
    return f
