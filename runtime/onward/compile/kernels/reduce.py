"""Sums and extremes of element expressions over all axes but the last, or over everything.

`reduce_columns` leaves each thread's share in a partial result of its own; `finish_columns` combines the
shares in thread order and computes expressions of them. Sums go through short runs of rows, so rounding
errors do not pile up along a whole batch. Reproducible bit for bit at a given number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.element import DTYPES, Operand, load_operand
from onward.compile.kernels.expression import Expression, emit, flops, inputs_of
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.tile import split
from onward.compile.kernels.walk import decode
from onward.errors import ShapeError

__all__ = ["COMBINE", "Columns", "Finish", "finish_columns", "partial_size", "reduce_columns"]

COMBINE = {"sum": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}
"""Ways to combine, with the result over nothing."""


@dataclass(frozen=True)
class Columns:
    """Reduce expressions over [batch, *shape] to vectors along the last axis of `shape`.

    `everything` reduces the last axis too: each result is then one value, in lane 0. Strides are as in
    `Element`. `combine[i]` says how expression i is combined; `dtype` is that of all arithmetic and results.
    """

    shape: tuple[int, ...]
    operands: tuple[Operand, ...]
    expressions: tuple[Expression, ...]
    combine: tuple[str, ...]
    everything: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if inputs_of(self.expressions) > len(self.operands):
            raise ShapeError(f"the expressions use more than the {len(self.operands)} operands")
        if len(self.combine) != len(self.expressions) or not set(self.combine) <= set(COMBINE):
            raise ShapeError(f"combine={self.combine}: one of {', '.join(COMBINE)} for each expression")
        for operand in self.operands:
            if len(operand.strides) != len(self.shape) + 1:
                raise ShapeError(f"strides {operand.strides} for [batch, {', '.join(map(str, self.shape))}]")


def _width(spec: Columns, target: Target) -> int:
    """Elements of one result in a partial."""
    target = target.typed(spec.dtype)
    return target.lanes if spec.everything else -(-spec.shape[-1] // target.lanes) * target.lanes


def partial_size(spec: Columns, target: Target, threads: int) -> int:
    """Elements of all partial results on `threads` threads."""
    return threads * len(spec.expressions) * _width(spec, target)


def combine(f: Function, how: str, a: Value, b: Value) -> Value:
    """Two partial results as one."""
    match how:
        case "sum":
            return a + b
        case "prod":
            return a * b
        case "max":
            return f.maximum(a, b)
    return f.minimum(a, b)


def reduce_columns(spec: Columns, target: Target, name: str = "reduce") -> Kernel:
    """Partial results [thread][expression][column]. Slots: x0, x1, ..., partial, batch."""
    target = target.typed(spec.dtype)
    module = Module(target)
    f = module.entry()
    parameters = (*read(*(f"x{i}" for i in range(len(spec.operands)))), *write("partial"), *integer("batch"))
    values = slot_values(f, parameters)
    lanes, columns = target.lanes, spec.shape[-1]
    width = _width(spec, target)
    *middle, _ = spec.shape
    _, thread, threads = f.arguments
    partial = f.at(values["partial"], thread * (len(spec.expressions) * width))
    neutral = [f.value(COMBINE[how], f.vector) for how in spec.combine]
    for e, value in enumerate(neutral):
        with f.range(0, width, lanes) as i:
            f.vstore(value, partial, i + e * width)

    rows = values["batch"] * math.prod(middle)
    low, high = f.share(rows, thread, threads)
    wrap: Value | int = middle[-1] if middle else values["batch"]
    position = f.local("i64")
    f.store(low, position)
    with f.repeat() as leave:
        row = f.load(position, "i64")
        leave(f.compare("sge", row, high))
        count = f.smin(f.smin(high - row, f.value(wrap) - row % wrap), target.tuning.reduce_run)
        f.store(row + count, position)
        starts = decode(f, row, middle, [list(o.strides) for o in spec.operands])
        _run(f, spec, values, starts, count, columns, width, partial, neutral)
    f.ret()
    elements = math.prod(spec.shape)
    moved = sum(DTYPES[o.dtype][1] * elements for o in spec.operands if o.strides[0])
    return Kernel(
        name=name,
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, elements * (flops(spec.expressions) + len(spec.expressions))),
        bytes=Affine(0, moved),
        units=Affine(0, math.prod(middle)),
    )


def _run(
    f: Function,
    spec: Columns,
    values: dict[str, Value],
    starts: list[Value],
    count: Value,
    columns: int,
    width: int,
    partial: Value,
    neutral: list[Value],
) -> None:
    """Add `count` rows that differ in the last but one axis to the partial results.

    Each block of columns is as wide as registers allow, so that memory is read in long pieces.
    """
    lanes = f.lanes
    step = [o.strides[-2] for o in spec.operands]
    tail = f.mask(columns % lanes) if columns % lanes else None

    def block(first: Value, masks: Sequence[Value | None]) -> None:
        def row(j: Value, carry: list[Value]) -> list[Value]:
            out: list[Value] = []
            for v, mask in enumerate(masks):
                operands = [
                    load_operand(
                        f,
                        values[f"x{i}"],
                        starts[i] + j * step[i] + (first + v * lanes if o.strides[-1] else 0),
                        o.strides[-1],
                        o.dtype,
                        mask,
                    )
                    for i, o in enumerate(spec.operands)
                ]
                results = emit(f, spec.expressions, operands)
                for e, result in enumerate(results):
                    if mask is not None and spec.everything:
                        result = f.select(mask, result, neutral[e])
                    out.append(combine(f, spec.combine[e], carry[v * len(results) + e], result))
            return out

        totals = f.loop(0, count, carry=neutral * len(masks), body=row, nonempty=True)
        for v in range(len(masks)):
            for e, how in enumerate(spec.combine):
                at = f.value(e * width) if spec.everything else first + (e * width + v * lanes)
                before = f.vload(partial, at)
                f.vstore(combine(f, how, before, totals[v * len(neutral) + e]), partial, at)

    most = max(1, f.module.target.registers // 2 // len(spec.expressions))
    vectors = -(-columns // lanes)
    for size, first, pieces in split(vectors, most):
        masked = tail is not None and (first + size * pieces) == vectors
        with f.range(0, pieces - masked) as piece:
            block((piece * size + first) * lanes, (None,) * size)
        if masked:
            block(f.value((vectors - size) * lanes), (*(None,) * (size - 1), tail))


@dataclass(frozen=True)
class Finish:
    """What becomes of reduced columns: expressions of the reductions, operands 0, 1, ..., and of more.

    `operands` and `results` are vectors along the columns (stride 1) or single values (stride 0; as a result,
    the first column's).
    """

    operands: tuple[int, ...]
    results: tuple[int, ...]
    expressions: tuple[Expression, ...]


def finish_columns(spec: Columns, finish: Finish, target: Target, name: str = "finish") -> Kernel:
    """Combine partial results in thread order and compute. Slots: partial, x0, ..., y0, ..., parts.

    `parts` is the number of threads that `reduce_columns` ran on.
    """
    target = target.typed(spec.dtype)
    module = Module(target)
    f = module.entry()
    parameters = (
        *read("partial", *(f"x{i}" for i in range(len(finish.operands)))),
        *write(*(f"y{i}" for i in range(len(finish.results)))),
        *integer("parts"),
    )
    values = slot_values(f, parameters)
    lanes = target.lanes
    columns = 1 if spec.everything else spec.shape[-1]
    width, count = _width(spec, target), len(spec.expressions)
    _, thread, threads = f.arguments
    low, high = f.share(-(-columns // lanes), thread, threads)
    with f.range(low, high) as block:
        first = block * lanes
        mask = f.mask(columns - first)
        start = f.at(values["partial"], first)
        totals = f.loop(
            1,
            values["parts"],
            carry=[f.vload(start, e * width) for e in range(count)],
            body=lambda i, c: [
                combine(f, how, c[e], f.vload(start, i * (count * width) + e * width))
                for e, how in enumerate(spec.combine)
            ],
        )
        if spec.everything:
            totals = [
                f.splat(f.reduce(t, lambda a, b, how=how: combine(f, how, a, b)))  # type: ignore[misc]
                for t, how in zip(totals, spec.combine, strict=True)
            ]
        operands = [
            load_operand(f, values[f"x{i}"], first if step else f.value(0), step, spec.dtype, mask)
            for i, step in enumerate(finish.operands)
        ]
        results = emit(f, finish.expressions, [*totals, *operands])
        for i, (step, result) in enumerate(zip(finish.results, results, strict=True)):
            f.vstore(result, values[f"y{i}"], first, mask if step else f.mask(1))
    f.ret()
    return Kernel(
        name=name,
        ir=module.text(),
        parameters=parameters,
        flops=Affine(columns * flops(finish.expressions)),
        bytes=Affine(target.nbytes * columns * (count + len(finish.operands) + len(finish.results))),
        units=Affine(-(-columns // lanes)),
    )
