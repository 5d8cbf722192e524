"""Embedding lookup (Gather along the first axis), and its gradient, which adds rows back.

Rows are of the target's type. Indices are int64. Negative ones count from the end, as in ONNX's Gather; the
caller checks their range.
"""

from __future__ import annotations

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, update, write

__all__ = ["gather_rows", "scatter_rows"]


def _row(f: Function, values: dict[str, Value], i: Value, rows: int) -> Value:
    index = f.load(values["index"], "i64", i)
    return f.select(f.compare("slt", index, 0), index + rows, index)


def gather_rows(rows: int, columns: int, target: Target) -> Kernel:
    """y[i] = table[index[i]] for i below batch. Slots: table, index, y, batch."""
    module = Module(target)
    f = module.entry()
    parameters = (*read("table", "index"), *write("y"), *integer("batch"))
    values = slot_values(f, parameters)
    low, high = f.share(values["batch"], *f.arguments[1:])
    whole = columns // f.lanes * f.lanes
    with f.range(low, high) as i:
        source = f.at(values["table"], _row(f, values, i, rows) * columns)
        sink = f.at(values["y"], i * columns)
        with f.range(0, whole, f.lanes) as c:
            f.vstore(f.vload(source, c), sink, c)
        if columns > whole:
            mask = f.mask(columns - whole)
            f.vstore(f.vload(source, whole, mask), sink, whole, mask)
    f.ret()
    return Kernel(
        f"gather_rows {rows}x{columns}",
        module.text(),
        parameters,
        bytes=Affine(0, 2 * target.nbytes * columns),
        units=Affine(0, 1),
    )


def scatter_rows(rows: int, columns: int, target: Target, *, skip: int | None = None) -> Kernel:
    """dtable[index[i]] += dy[i] in order of i; dtable is not cleared. Slots: dy, index, dtable, batch.

    Threads own columns, not rows, so sums have one order whatever the number of threads. `skip` leaves out
    one index (a padding row).
    """
    module = Module(target)
    f = module.entry()
    parameters = (*read("dy", "index"), *update("dtable"), *integer("batch"))
    values = slot_values(f, parameters)
    lanes = f.lanes
    low, high = f.share(-(-columns // lanes), *f.arguments[1:])
    with f.range(0, values["batch"]) as i:
        row = _row(f, values, i, rows)
        wanted = f.compare("ne", row, rows if skip is None else skip % rows)
        with f.when(wanted):
            source = f.at(values["dy"], i * columns)
            sink = f.at(values["dtable"], row * columns)
            with f.range(low, high) as block:
                c = block * lanes
                mask = f.mask(columns - c) if columns % lanes else None
                f.vstore(f.vload(sink, c, mask) + f.vload(source, c, mask), sink, c, mask)
    f.ret()
    return Kernel(
        f"scatter_rows {rows}x{columns}",
        module.text(),
        parameters,
        flops=Affine(0, columns),
        bytes=Affine(0, 3 * target.nbytes * columns),
        units=Affine(-(-columns // lanes)),
    )
