"""Kernels over rows: reductions along the last axis and elements that use them, one row at a time.

Softmax, its cross-entropy and their gradients, LayerNorm and the like: each row is reduced in one or more
passes while it is in the cache, then results are written.
"""

from __future__ import annotations

from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.element import DTYPES, Operand, load_operand, store_result
from onward.compile.kernels.expression import Expression, emit, flops
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.reduce import COMBINE, combine
from onward.errors import ShapeError

__all__ = ["Rows", "rows_kernel"]


@dataclass(frozen=True)
class Rows:
    """Work on [batch, columns], row by row.

    Expressions see, in this order: the `operands` (each with a stride along rows and one of 0 or 1 along
    columns), the column's number, then the reductions made so far. `passes` are (combine, expression, after):
    the expression is combined along the row, and `after`, an expression of the operands' first elements, the
    reductions so far and this one last, is what later expressions see. `results` are written with their
    expressions at every column; `row_results` hold one value for each row, given as (dtype, expression).
    """

    columns: int
    operands: tuple[Operand, ...]
    passes: tuple[tuple[str, Expression, Expression | None], ...]
    results: tuple[tuple[Operand, Expression], ...]
    row_results: tuple[tuple[str, Expression], ...] = ()
    dtype: str = "float32"

    @property
    def column(self) -> int:
        """The operand number of the column's number."""
        return len(self.operands)

    def __post_init__(self) -> None:
        for operand in (*self.operands, *(o for o, _ in self.results)):
            if len(operand.strides) != 2:
                raise ShapeError(f"strides {operand.strides} of an operand of [batch, columns]")


def rows_kernel(spec: Rows, target: Target, name: str = "rows") -> Kernel:
    """The kernel. Slots: x0, ... (operands), y0, ... (results), r0, ... (row results), batch."""
    target = target.typed(spec.dtype)
    module = Module(target)
    f = module.entry()
    parameters = (
        *read(*(f"x{i}" for i in range(len(spec.operands)))),
        *write(*(f"y{i}" for i in range(len(spec.results)))),
        *write(*(f"r{i}" for i in range(len(spec.row_results)))),
        *integer("batch"),
    )
    values = slot_values(f, parameters)
    low, high = f.share(values["batch"], *f.arguments[1:])
    with f.range(low, high) as row:
        _Row(f, spec, values, row).emit()
    f.ret()
    work = sum(flops([e]) + 1 for _, e, _ in spec.passes) + flops([e for _, e in spec.results])
    moved = sum(
        DTYPES[o.dtype][1] * (spec.columns if o.strides[1] else 1)
        for o in (*spec.operands, *(o for o, _ in spec.results))
        if o.strides[0]
    )
    return Kernel(
        name=name,
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, spec.columns * work),
        bytes=Affine(0, moved),
        units=Affine(0, 1),
    )


class _Row:
    def __init__(self, f: Function, spec: Rows, values: dict[str, Value], row: Value) -> None:
        self.f = f
        self.spec = spec
        self.values = values
        self.row = row
        self.starts = [row * o.strides[0] for o in spec.operands]
        self.fixed = {
            i: load_operand(f, values[f"x{i}"], self.starts[i], 0, o.dtype, None)
            for i, o in enumerate(spec.operands)
            if o.strides[1] == 0
        }
        self.reduced: list[Value] = []

    def _operands(self, first: Value, mask: Value | None) -> list[Value]:
        f = self.f
        found = [
            self.fixed[i]
            if i in self.fixed
            else load_operand(f, self.values[f"x{i}"], self.starts[i] + first, 1, o.dtype, mask)
            for i, o in enumerate(self.spec.operands)
        ]
        number = f.splat(f.cast("sitofp", first, f.float)) + f.cast("sitofp", f.lane_ids("i32"), f.vector)
        return [*found, number, *self.reduced]

    def _reduce(self, how: str, expression: Expression) -> Value:
        f, lanes, columns = self.f, self.f.lanes, self.spec.columns
        neutral = f.value(COMBINE[how], f.vector)

        def add(first: Value, carry: list[Value], mask: Value | None) -> list[Value]:
            (value,) = emit(f, [expression], self._operands(first, mask))
            if mask is not None:
                value = f.select(mask, value, neutral)
            return [combine(f, how, carry[0], value)]

        whole = columns // lanes * lanes
        total = f.loop(0, whole, lanes, [neutral], body=lambda i, c: add(i, c, None))
        if columns % lanes:
            total = add(f.value(whole), total, f.mask(columns % lanes))
        return f.splat(f.reduce(total[0], lambda a, b: combine(f, how, a, b)))

    def emit(self) -> None:
        f, spec, lanes, columns = self.f, self.spec, self.f.lanes, self.spec.columns
        zero = f.value(0)
        for how, expression, after in spec.passes:
            total = self._reduce(how, expression)
            if after is not None:
                (total,) = emit(f, [after], [*self._operands(zero, f.mask(1)), total])
            self.reduced.append(total)
        if spec.results:
            whole = columns // lanes * lanes
            with f.range(0, whole, lanes) as first:
                self._write(first, None)
            if columns % lanes:
                self._write(f.value(whole), f.mask(columns % lanes))
        if spec.row_results:
            results = emit(f, [e for _, e in spec.row_results], self._operands(zero, f.mask(1)))
            for i, ((dtype, _), result) in enumerate(zip(spec.row_results, results, strict=True)):
                store_result(f, result, self.values[f"r{i}"], self.row, dtype, f.mask(1))

    def _write(self, first: Value, mask: Value | None) -> None:
        results = emit(self.f, [e for _, e in self.spec.results], self._operands(first, mask))
        for i, ((operand, _), result) in enumerate(zip(self.spec.results, results, strict=True)):
            at = self.row * operand.strides[0] + first
            store_result(self.f, result, self.values[f"y{i}"], at, operand.dtype, mask)
