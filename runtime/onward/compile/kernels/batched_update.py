"""Batched update: one pass of an element expression over many tensors, such as all small parameters.

All elements of all tensors form one range that is split over threads, whatever the tensors' sizes. The
argument block holds a row for each tensor: where it ends in the whole range, then its operands' and results'
addresses.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from onward.compile.codegen.builder import Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.element import Element, ElementBody
from onward.compile.kernels.expression import flops
from onward.compile.kernels.kernel import Affine, Kernel, Parameter, integer, read, write
from onward.errors import ShapeError

__all__ = ["batched_update", "row_slots"]


def row_slots(spec: Element, row: int) -> tuple[str, ...]:
    """The names of a row's slots: its end, then the operands and the results as in an `element` kernel."""
    return tuple(p.name for p in _row_parameters(spec, row))


def _row_parameters(spec: Element, row: int) -> tuple[Parameter, ...]:
    operands = (f"x{i} {row}" for i in range(len(spec.operands)))
    results = (f"y{i} {row}" for i in range(len(spec.results)))
    return (*integer(f"end {row}"), *read(*operands), *write(*results))


def batched_update(spec: Element, rows: int, target: Target) -> Kernel:
    """The kernel for `rows` tensors [batch] whose passes are `spec`. Slots: rows, then each row's.

    The code does not depend on the number of rows. `units`, flops and bytes are for one element.

    Raises:
        ShapeError: `spec` is not over a batch of single elements of the type that it computes in.
    """
    parameters = (*integer("rows"), *(p for row in range(rows) for p in _row_parameters(spec, row)))
    return replace(_batched_update(spec, target), parameters=parameters)


@functools.lru_cache(512)
def _batched_update(spec: Element, target: Target) -> Kernel:
    tensors = (*spec.operands, *spec.results)
    if spec.shape or any(o.dtype != spec.dtype for o in tensors):
        raise ShapeError(f"a batched update is over a batch of single {spec.dtype} elements")
    target = target.typed(spec.dtype)
    module = Module(target)
    f = module.entry()
    args, thread, threads = f.arguments
    width = 1 + len(tensors)
    rows, table = f.load(args, "i64", 0), f.at(args, 1, "i64")
    total = f.load(table, "i64", (rows - 1) * width)
    block = target.tuning.element_block * target.lanes
    low, high = f.share((total + (block - 1)) // block, thread, threads)
    low, high = low * block, f.smin(high * block, total)
    steps = [o.strides[0] for o in tensors]

    def one(index: Value, carry: list[Value]) -> list[Value]:
        row = f.at(table, index * width, "i64")
        begin, end = carry[0], f.load(row, "i64")
        first, last = f.smax(low, begin) - begin, f.smin(high, end) - begin
        with f.when(f.compare("slt", first, last)):
            pointers = [f.load(row, "ptr", 1 + i) for i in range(len(tensors))]
            ElementBody(f, spec, pointers).run([f.value(0)] * len(tensors), steps, first, last)
        return [end]

    f.loop(0, rows, carry=[f.value(0)], body=one, nonempty=True)
    f.ret()
    return Kernel(
        name="batched update",
        ir=module.text(),
        parameters=(),
        flops=Affine(0, flops(spec.expressions)),
        bytes=Affine(0, target.nbytes * sum(steps)),
        units=Affine(0, 1),
    )
