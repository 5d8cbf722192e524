"""Panels: a matrix in blocks of columns, [block][k][column], as tiles of products read it.

A transposed matrix is transposed back by shuffles of lanes x lanes squares in registers: element by
element that of a weight takes longer than a product of 64 rows with it.
"""

from __future__ import annotations

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.transpose import transposed
from onward.compile.kernels.kernel import Affine, Kernel, read, slot_values, write
from onward.compile.kernels.tile import vectors_for

__all__ = ["block_width", "define_pack", "pack_columns", "packed_size", "panel_size", "whole_lanes"]


def block_width(n: int, target: Target) -> int:
    """Columns of a block for an n-column product."""
    return vectors_for(target, n) * target.lanes


def whole_lanes(size: int, target: Target) -> int:
    """The next multiple of the vector width."""
    return -(-size // target.lanes) * target.lanes


def panel_size(n: int, k: int, target: Target) -> int:
    """Elements of one block of a k x n matrix; k is rounded up to whole vectors."""
    return block_width(n, target) * whole_lanes(k, target)


def packed_size(n: int, k: int, target: Target) -> int:
    """Elements of a k x n matrix in blocks: use b_k = block_width, b_block = panel_size."""
    return -(-n // block_width(n, target)) * panel_size(n, k, target)


def pack_columns(n: int, k: int, n_stride: int, k_stride: int, target: Target) -> Kernel:
    """A k x n matrix with any strides into blocks of columns. Slots: b, packed.

    What columns past n hold is anything; so are rows past k.
    """
    module = Module(target)
    f = module.entry()
    parameters = (*read("b"), *write("packed"))
    values = slot_values(f, parameters)
    width, size = block_width(n, target), panel_size(n, k, target)
    most = target.tuning.pack_rows
    blocks, parts = -(-n // width), -(-k // most)
    pack = define_pack(module, width, size, n_stride, k_stride)
    low, high = f.share(blocks * parts, *f.arguments[1:])
    with f.range(low, high) as unit:
        block, first = unit // parts, unit % parts * most
        source = f.at(values["b"], block * (width * n_stride) + first * k_stride)
        sink = f.at(values["packed"], block * size + first * width)
        columns = f.smin(width, f.value(n) - block * width)
        f.invoke(pack, [source, sink, columns, f.smin(most, f.value(k) - first)])
    f.ret()
    moved = target.nbytes * (n * k + packed_size(n, k, target))
    return Kernel(
        f"pack_columns {k}x{n}", module.text(), parameters, bytes=Affine(moved), units=Affine(blocks * parts)
    )


def define_pack(module: Module, width: int, size: int, n_stride: int, k_stride: int) -> Function:
    """Write a function of (source, panels, columns, k): k rows of columns into panels `size` elements apart.

    Rows up to the next multiple of the vector width are written too.
    """
    parameters = (("source", "ptr"), ("panels", "ptr"), ("columns", "i64"), ("k", "i64"))
    square = _square(module, width, n_stride) if n_stride != 1 and k_stride == 1 else None
    f = module.function("pack", parameters)
    source, panels, columns, k = f.arguments
    lanes = f.lanes
    starts = range(0, width, lanes)
    if n_stride == 1:
        # Row by row, as memory has them.
        whole = columns // width
        masks = [f.mask(f.smax(0, columns - whole * width - start)) for start in starts]
        with f.range(0, k) as row:
            line, sink = f.at(source, row * k_stride), f.at(panels, row * width)
            with f.range(0, whole) as panel:
                for start in starts:
                    f.vstore(f.vload(line, panel * width + start), sink, panel * size + start)
            with f.when(f.compare("slt", whole * width, columns)):
                for start, mask in zip(starts, masks, strict=True):
                    f.vstore(f.vload(line, whole * width + start, mask), sink, whole * size + start)
        f.ret()
        return f
    with f.range(0, columns, width) as first:
        panel = f.at(panels, first // width * size)
        present = f.smin(width, columns - first)
        if square is not None:
            with f.range(0, present, lanes) as j, f.range(0, k, lanes) as row:
                corner, sink = f.at(source, (first + j) * n_stride + row), f.at(panel, row * width + j)
                f.invoke(square, [corner, sink, present - j - 1, k - row])
        else:
            with f.range(0, k) as row, f.range(0, present) as j:
                value = f.load(source, None, row * k_stride + (first + j) * n_stride)
                f.store(value, f.at(panel, row * width + j))
    f.ret()
    return f


def _square(module: Module, width: int, stride: int) -> Function:
    """A function of (source, sink, last, k): lines that are `stride` apart as columns of rows `width` apart.

    Line `last` stands for those after it. Only the first k elements of a line are read.
    """
    parameters = (("source", "ptr"), ("sink", "ptr"), ("last", "i64"), ("k", "i64"))
    f = module.function("square", parameters)
    source, sink, last, k = f.arguments
    mask = f.mask(k)
    lines = [f.vload(source, f.smin(i, last) * stride, mask) for i in range(f.lanes)]
    for i, row in enumerate(transposed(f, lines)):
        f.vstore(row, sink, i * width)
    f.ret()
    return f
