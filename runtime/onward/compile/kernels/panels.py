"""Panels: a matrix in blocks of columns, [block][k][column], as tiles of products read it.

A transposed matrix is turned by shuffles of lanes x lanes squares in registers: element by element the
turning of a weight takes longer than a product of 64 rows with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from onward.compile.codegen.builder import Function, Int, Module, Value
from onward.compile.codegen.target import Target
from onward.compile.kernels.kernel import Affine, Kernel, slot_values
from onward.compile.kernels.tile import vectors_for

__all__ = ["block_width", "define_pack", "pack_columns", "packed_size", "panel_size", "whole_lanes"]


def block_width(n: int, target: Target) -> int:
    """Columns of a block for an n-column product."""
    return vectors_for(target, n) * target.lanes


def whole_lanes(size: int, target: Target) -> int:
    """The next multiple of the vector width."""
    return -(-size // target.lanes) * target.lanes


def panel_size(n: int, k: int, target: Target) -> int:
    """Floats of one block of a k x n matrix; k is rounded up to whole vectors."""
    return block_width(n, target) * whole_lanes(k, target)


def packed_size(n: int, k: int, target: Target) -> int:
    """Floats of a k x n matrix in blocks: use b_k = block_width, b_block = panel_size."""
    return -(-n // block_width(n, target)) * panel_size(n, k, target)


_DEPTH = 256
"""Rows of a panel that are packed as one unit of work."""


def pack_columns(n: int, k: int, n_stride: int, k_stride: int, target: Target) -> Kernel:
    """A k x n matrix with any strides into blocks of columns, zero past n. Slots: b, packed."""
    module = Module(target)
    f = module.entry()
    slots = ("b", "packed")
    values = slot_values(f, slots, frozenset())
    width = block_width(n, target)
    blocks, parts = -(-n // width), -(-k // _DEPTH)
    whole, rest = divmod(n, width)
    functions = {
        True: define_pack(module, "whole", width, width, n_stride, k_stride) if whole else None,
        False: define_pack(module, "rest", width, rest, n_stride, k_stride) if rest else None,
    }
    low, high = f.share(blocks * parts, *f.arguments[1:])
    with f.range(low, high) as unit:
        block, first = unit // parts, unit % parts * _DEPTH
        source = f.at(values["b"], block * (width * n_stride) + first * k_stride)
        sink = f.at(values["packed"], block * panel_size(n, k, target) + first * width)
        for full, function in functions.items():
            if function is not None:
                with f.when(f.compare("slt" if full else "sge", block, whole)):
                    f.invoke(function, [source, sink, f.smin(_DEPTH, f.value(k) - first)])
    f.ret()
    size = 4 * (n * k + packed_size(n, k, target))
    return Kernel(
        f"pack_columns {k}x{n}", module.text(), slots, bytes=Affine(size), units=Affine(blocks * parts)
    )


def define_pack(
    module: Module, name: str, width: int, columns: int, n_stride: int, k_stride: int
) -> Function:
    """Write a function of (source, panel, k): k rows of `columns` columns into rows of `width` floats.

    Columns past `columns` become zero. Where columns are contiguous in the source, rows up to the next
    multiple of the vector width are written too.
    """
    f = module.function(f"pack_{name}", (("source", "ptr"), ("panel", "ptr"), ("k", "i64")))
    source, panel, k = f.arguments
    lanes = f.lanes
    for v in range(width // lanes):
        present = min(max(0, columns - v * lanes), lanes)
        sink, start = f.at(panel, v * lanes), f.at(source, v * lanes * n_stride)
        if n_stride == 1:
            continue
        if k_stride == 1 and present:
            _turn(f, start, sink, k, present, n_stride, width)
            continue
        with f.range(0, k) as row:
            vector = f.zero()
            for lane in range(present):
                vector = f.insert(vector, f.load(start, "float", row * k_stride + lane * n_stride), lane)
            f.vstore(vector, sink, row * width)
    if n_stride == 1:
        with f.range(0, k) as row:
            line, sink = f.at(source, row * k_stride), f.at(panel, row * width)
            for v in range(width // lanes):
                present = columns - v * lanes
                value = f.vload(line, v * lanes, f.mask(present)) if present > 0 else f.zero()
                f.vstore(value, sink, v * lanes)
    f.ret()
    return f


def _turn(f: Function, source: Value, sink: Value, k: Value, columns: int, stride: int, width: int) -> None:
    """Columns that are contiguous in memory, `stride` apart, as the first lanes of rows."""
    lanes = f.lanes

    def square(first: Int, mask: Value | None) -> None:
        line = f.at(source, first)
        rows = [f.vload(line, i * stride, mask) if i < columns else f.zero() for i in range(lanes)]
        place = f.at(sink, f.value(first) * width)
        for i, row in enumerate(transposed(f, rows)):
            f.vstore(row, place, i * width)

    whole = k // lanes * lanes
    with f.range(0, whole, lanes) as first:
        square(first, None)
    with f.when(f.compare("slt", whole, k)):
        square(whole, f.mask(k - whole))


def transposed(f: Function, rows: Sequence[Value]) -> list[Value]:
    """A square of lanes x lanes floats, one vector a row, turned.

    Every step is one shuffle of the instruction set: 4 x 4 squares inside 128 bits are turned by unpacking,
    then runs of 128 bits among themselves.
    """
    lanes = f.lanes
    starts = range(0, lanes, 4)
    singles = [[q + i for q in starts for i in order] for order in _unpack(1, lanes)]
    pairs = [[q + i for q in starts for i in order] for order in _unpack(2, lanes)]
    out: list[Value] = []
    for base in starts:
        a, b, c, d = rows[base : base + 4]
        ab, cd = [f.shuffle(a, b, m) for m in singles], [f.shuffle(c, d, m) for m in singles]
        out += [f.shuffle(x, y, m) for x, y in zip(ab, cd, strict=True) for m in pairs]
    for j in range(4):
        out[j::4] = _runs_turned(f, out[j::4])
    return out


def _unpack(size: int, lanes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where four lanes come from when the first or last two of each operand are taken, `size` at a time."""
    if size == 1:
        return (0, lanes, 1, lanes + 1), (2, lanes + 2, 3, lanes + 3)
    return (0, 1, lanes, lanes + 1), (2, 3, lanes + 2, lanes + 3)


def _runs_turned(f: Function, rows: Sequence[Value]) -> list[Value]:
    """A square of runs of four lanes turned: the even and the odd runs of neighbours, each half again."""
    if len(rows) == 1:
        return list(rows)
    halves = []
    for first in (0, 4):
        chosen = [start + i for start in range(first, 2 * f.lanes, 8) for i in range(4)]
        joined = [f.shuffle(a, b, chosen) for a, b in zip(rows[::2], rows[1::2], strict=True)]
        halves.append(_runs_turned(f, joined))
    return [row for pair in zip(*halves, strict=True) for row in pair]
