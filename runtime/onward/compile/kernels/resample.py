"""Resize (interpolation): y[i, j] = Σ rows[i, a] · columns[j, b] · x[a, b], each sum over a few positions.

Which positions and with which weights is in tables, not in the code, so that an upsampling, its gradient and
a cubic filter are one kernel. What lies inside a pixel, its channels, is in the lanes. Sums have one order
whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, final

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.kernel import Affine, Kernel, Parameter, integer, read, slot_values, write

__all__ = ["Grid", "Taps", "resample"]


@dataclass(frozen=True)
class Taps:
    """How the positions of an axis are made.

    Attributes:
        extent: how many there are.
        moved: whether there are tables; without, position i is position i of the operand.
        taps: how many terms each has; None: as its table of starts says.
        weighted: whether they have weights; without, all are 1.
        outside: whether there is a table of what is added; where it is not 0, nothing else is.
    """

    extent: int
    moved: bool = False
    taps: int | None = 1
    weighted: bool = False
    outside: bool = False


@dataclass(frozen=True)
class Grid:
    """Strides in elements of the batch, a row and a column, of operand and result; `inner` elements follow
    each other inside a pixel."""

    x: tuple[int, int, int]
    y: tuple[int, int, int]
    rows: Taps
    columns: Taps
    inner: int
    dtype: str = "float32"


def resample(grid: Grid, target: Target) -> Kernel:
    """Slots: x, y; for each axis that is moved its tables `rows_index`, `rows_start`, `rows_weight`,
    `rows_outside`, those that it has; batch."""
    target = target.typed(grid.dtype)
    module = Module(target)
    f = module.entry()
    tables = [*_tables("rows", grid.rows), *_tables("columns", grid.columns)]
    parameters: tuple[Parameter, ...] = (*read("x", *tables), *write("y"), *integer("batch"))
    values = slot_values(f, parameters)
    rows, columns = _Axis(f, values, "rows", grid.rows), _Axis(f, values, "columns", grid.columns)
    low, high = f.share(values["batch"] * grid.rows.extent, *f.arguments[1:])
    with f.range(low, high) as unit:
        n, i = unit // grid.rows.extent, unit % grid.rows.extent
        source = f.at(values["x"], n * grid.x[0])
        line = f.at(values["y"], n * grid.y[0] + i * grid.y[1])
        with f.range(0, grid.columns.extent) as j:
            sink = f.at(line, j * grid.y[2])
            first = _outside(f, rows, columns, i, j)
            for start, vectors, mask in _blocks(f, grid.inner, target.tuning.pool_vectors):
                _pixel(f, grid, (rows, i), (columns, j), source, sink, first, (start, vectors, mask))
    f.ret()
    elements = grid.rows.extent * grid.columns.extent * grid.inner
    terms = (grid.rows.taps or 2) * (grid.columns.taps or 2)
    return Kernel(
        name=f"resample {grid.rows.extent}x{grid.columns.extent}x{grid.inner}",
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, 2 * elements * terms if grid.rows.weighted or grid.columns.weighted else 0),
        bytes=Affine(0, target.nbytes * elements * (1 + terms)),
        units=Affine(0, grid.rows.extent),
    )


def _tables(name: str, taps: Taps) -> list[str]:
    if not taps.moved:
        return []
    wanted = {"start": taps.taps is None, "weight": taps.weighted, "outside": taps.outside}
    return [f"{name}_index", *(f"{name}_{table}" for table, has in wanted.items() if has)]


_Terms: TypeAlias = Callable[[Value, "Value | None", list[Value]], list[Value]]


@final
class _Axis:
    def __init__(self, f: Function, values: dict[str, Value], name: str, taps: Taps) -> None:
        self.f = f
        self.taps = taps
        self.table = {key: values.get(f"{name}_{key}") for key in ("index", "start", "weight", "outside")}

    def outside(self, i: Value) -> Value | None:
        table = self.table["outside"]
        return None if table is None else self.f.load(table, None, i)

    def terms(self, i: Value, carry: list[Value], term: _Terms) -> list[Value]:
        """`term(position, weight, carry)` for each term of position i."""
        f, index = self.f, self.table["index"]
        if index is None:
            return term(i, None, carry)

        def one(k: Value, inner: list[Value]) -> list[Value]:
            weight = self.table["weight"]
            return term(f.load(index, "i64", k), None if weight is None else f.load(weight, None, k), inner)

        if (start := self.table["start"]) is not None:
            return f.loop(f.load(start, "i64", i), f.load(start, "i64", i + 1), 1, carry, body=one)
        assert self.taps.taps is not None
        for tap in range(self.taps.taps):
            carry = one(i * self.taps.taps + tap, carry)
        return carry


def _outside(f: Function, rows: _Axis, columns: _Axis, i: Value, j: Value) -> Value | None:
    """What a pixel starts with."""
    row, column = rows.outside(i), columns.outside(j)
    if row is None or column is None:
        return row if column is None else column
    return f.select(f.compare("une", row, 0.0), row, column)


def _pixel(
    f: Function,
    grid: Grid,
    row: tuple[_Axis, Value],
    column: tuple[_Axis, Value],
    source: Value,
    sink: Value,
    first: Value | None,
    block: tuple[Value, int, Value | None],
) -> None:
    start, vectors, mask = block

    def across(a: Value, row_weight: Value | None, carry: list[Value]) -> list[Value]:
        line = f.at(source, a * grid.x[1])

        def along(b: Value, weight: Value | None, inner: list[Value]) -> list[Value]:
            place = b * grid.x[2] + start
            found = [f.vload(line, place + v * f.lanes, mask) for v in range(vectors)]
            factors = [w for w in (row_weight, weight) if w is not None]
            if not factors:
                return [e if c.ref == "zeroinitializer" else c + e for c, e in zip(inner, found, strict=True)]
            factor = f.splat(factors[0] if len(factors) == 1 else factors[0] * factors[1])
            return [f.fma(e, factor, c) for c, e in zip(inner, found, strict=True)]

        return column[0].terms(column[1], carry, along)

    initial = f.zero() if first is None else f.splat(first)
    totals = row[0].terms(row[1], [initial] * vectors, across)
    for v, total in enumerate(totals):
        f.vstore(total, sink, start + v * f.lanes, mask)


def _blocks(f: Function, inner: int, most: int) -> Iterator[tuple[Value, int, Value | None]]:
    """Blocks of `most` vectors, then of one, then what is left under a mask; code is written for each."""
    lanes = f.lanes
    whole = inner // (most * lanes) * (most * lanes)
    single = inner // lanes * lanes
    for low, high, vectors in ((0, whole, most), (whole, single, 1)):
        if high > low:
            with f.range(low, high, vectors * lanes) as start:
                yield start, vectors, None
    if inner > single:
        yield f.value(single), 1, f.mask(inner - single)
