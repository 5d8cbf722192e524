"""Products with a transposed right side in place: C[m, n] = A[m, k] B[n, k]^T as dot products along k.

Lanes run along k, which is contiguous on both sides, so a weight that changes at every step needs no packing.
A tile keeps a vector of partial sums for each pair of a row and a column; shuffles then add up the lanes of
all its sums together, each in the same order whatever the tile. The rows of B that make a block of columns
stay in the first-level cache while the rows of A pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Int, Value
from onward.compile.kernels.expression import emit
from onward.compile.kernels.gemm import Gemm, describe, result_of
from onward.compile.kernels.kernel import Kernel, integer, read, slot_values

__all__ = ["dots"]


def dots(spec: Gemm, target: Target) -> Kernel:
    """The kernel for lines along k on both sides. Slots: a, b, c, e0, ... (epilogue operands), batch.

    Raises `ValueError` for other layouts, a run-time k, outer loops, or sums that are added to C.
    """
    if spec.a_k != 1 or spec.b_k != 1 or spec.b_block or spec.k is None:
        raise ValueError("dot products read lines of known length, contiguous on both sides")
    if spec.outer or spec.accumulate or spec.partial:
        raise ValueError("dot products make one matrix and store it once")
    target = target.typed(spec.dtype)
    module = Module(target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(spec.epilogue.operands)))
    parameters = (*read("a", "b"), *result_of(spec), *read(*extra), *integer("batch"))
    values = slot_values(f, parameters)
    _product(f, spec, values)
    f.ret()
    return describe(spec, "dots", module.text(), parameters)


def _block_columns(n: int, target: Target) -> int:
    """Columns of a block: nearly equal blocks, their sums at most half a vector of 16 or 8 lanes."""
    most = min(target.lanes, max(4, target.lanes // 2))
    return -(-n // -(-n // most))


def _tile_rows(columns: int, target: Target) -> int:
    """Rows of a tile whose sums, with a vector of each of its rows and one of a column, fit the registers."""
    spare = 1 if target.fused else 2
    return max(1, min((target.registers - spare) // (columns + 1), target.tuning.dots_rows))


def _product(f: Function, spec: Gemm, values: dict[str, Value]) -> None:
    """All tiles: units are rows of tiles in blocks of columns, a block's rows one after the other."""
    target = f.module.target
    _, thread, threads = f.arguments
    columns = _block_columns(spec.n, target)
    whole, rest = divmod(spec.n, columns)
    m: Int = values["batch"] if spec.m is None else spec.m
    step = _tile_rows(columns, target)
    steps = f.smax(1, (f.value(m) + (step - 1)) // step)
    low, high = f.share(steps * (whole + (rest > 0)), thread, threads)
    for width, first, last in ((columns, 0, whole), (rest, whole, whole + 1)):
        if width == 0 or first == last:
            continue
        sizes = sorted({_tile_rows(width, target), 2, 1}, reverse=True)
        tiles = {rows: _tile(f.module, spec, rows, width) for rows in sizes}
        begin, end = f.smax(first, low // steps), f.smin(last, (high + (steps - 1)) // steps)
        with f.range(begin, end) as block:
            row = f.smax(0, low - block * steps) * step
            stop = f.smin(m, (high - block * steps) * step)
            _rows(f, spec, tiles, values, block * columns, row, stop)


def _rows(
    f: Function,
    spec: Gemm,
    tiles: dict[int, Function],
    values: dict[str, Value],
    column: Value,
    row: Value,
    stop: Value,
) -> None:
    """The rows [row, stop) of a block of columns, by tiles from the highest to the lowest."""
    b = f.at(values["b"], column * spec.b_column)
    for rows, tile in tiles.items():
        end = row + f.smax(0, stop - row) // rows * rows
        with f.range(row, end, rows) as r:
            place = r * spec.c_row + column
            operands = [
                f.at(values[f"e{i}"], column if kind == "channel" else place)
                for i, kind in enumerate(spec.epilogue.operands)
            ]
            a, c = f.at(values["a"], r * spec.a_row), f.at(values["c"], place)
            f.invoke(tile, [a, b, c, *operands])
        row = end


def _tile(module: Module, spec: Gemm, rows: int, columns: int) -> Function:
    """Write a function of (A, B, C, epilogue addresses...): dot products of rows and columns, finished."""
    kinds = spec.epilogue.operands
    names = ("a", "b", "c", *(f"e{i}" for i in range(len(kinds))))
    f = module.function(f"tile_{rows}x{columns}", [(name, "ptr") for name in names])
    a, b, c, *sources = f.arguments
    assert spec.k is not None
    tail = spec.k % f.lanes

    def step(place: Int, sums: Sequence[Value], mask: Value | None = None) -> list[Value]:
        x, y = f.at(a, place), f.at(b, place)
        lines = [f.vload(x, i * spec.a_row, mask) for i in range(rows)]
        out = list(sums)
        for j in range(columns):
            line = f.vload(y, j * spec.b_column, mask)
            for i in range(rows):
                out[i * columns + j] = f.fma(lines[i], line, sums[i * columns + j])
        return out

    sums = f.loop(0, spec.k - tail, f.lanes, [f.zero()] * (rows * columns), body=step)
    if tail:
        sums = step(spec.k - tail, sums, f.mask(tail))
    mask = f.mask(columns)
    channel = [
        f.vload(s, 0, mask) if kind == "channel" else None for s, kind in zip(sources, kinds, strict=True)
    ]
    for i in range(rows):
        operands = [_lane_sums(f, sums[i * columns : (i + 1) * columns])]
        for source, vector in zip(sources, channel, strict=True):
            operands.append(vector or f.vload(source, i * spec.c_row, mask))
        (result,) = emit(f, [spec.epilogue.expression], operands)
        f.vstore(result, c, i * spec.c_row, mask)
    f.ret()
    return f


def _lane_sums(f: Function, sums: Sequence[Value]) -> Value:
    """The sum of the lanes of vector i in lane i, for at most as many vectors as lanes; others hold anything.

    Halving: of two vectors that differ in a bit of their index, each keeps the lanes where that bit of the
    lane is its own, and adds the lanes of the other kind. Bits without vectors are folded at the end.
    """
    level = list(sums)
    bit = 1
    while bit < f.lanes:
        level = [
            _merged(f, level[i], level[min(i + 1, len(level) - 1)], bit) for i in range(0, len(level), 2)
        ]
        bit *= 2
    return level[0]


def _merged(f: Function, x: Value, y: Value, bit: int) -> Value:
    """Pairs of lanes that differ in a bit added up: x's where the bit is clear, y's where it is set."""
    lanes = range(f.lanes)
    kept = [i + f.lanes if i & bit else i for i in lanes]
    moved = [(i ^ bit) + f.lanes if i & bit else i ^ bit for i in lanes]
    return f.shuffle(x, y, kept) + f.shuffle(x, y, moved)
