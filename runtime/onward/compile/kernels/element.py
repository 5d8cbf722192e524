"""Fused element expressions over strided operands: one pass, vectors along the last axis.

The iteration space is [batch, *shape]; every operand has a stride for each axis, 0 where it is broadcast. The
last axis has stride 1 or 0. Axes that all operands walk without a gap are merged first, so the common case is
one long run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.conversions import STORAGE, as_stored, computed
from onward.compile.codegen.spelling import is_float
from onward.compile.codegen.target import Target
from onward.compile.codegen.types import INTEGER_TYPES
from onward.compile.codegen.values import Value
from onward.compile.kernels.expression import Expression, emit, flops, inputs_of
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.walk import flat, merge, nested
from onward.errors import ShapeError

__all__ = [
    "DTYPES",
    "Element",
    "Operand",
    "channel",
    "contiguous",
    "element",
    "load_operand",
    "scalar",
    "store_result",
]

DTYPES = STORAGE
"""Operand types, their LLVM type and bytes. Operands become numbers of the type that is computed in, so as
float32 integers are exact up to 2**24; a bool result is 1 where the expression is not 0."""


@dataclass(frozen=True)
class Operand:
    """Where an operand's elements are: strides in elements along the batch and each axis of the shape."""

    strides: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.strides[-1] not in (0, 1):
            raise ShapeError(
                f"an element operand has stride {self.strides[-1]} along its last axis, not 0 or 1"
            )
        if self.dtype not in DTYPES:
            raise ShapeError(f"an element operand of dtype {self.dtype}: choose one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Element:
    """`results[i]` is expression i of the operands; all over [batch, *shape].

    A result may be an operand's own buffer when both have the same strides. `dtype` is that of arithmetic: a
    float, or the integers that operands and results have that are not truth values.
    """

    shape: tuple[int, ...]
    operands: tuple[Operand, ...]
    results: tuple[Operand, ...]
    expressions: tuple[Expression, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.results) != len(self.expressions):
            raise ShapeError(f"{len(self.expressions)} expressions for {len(self.results)} results")
        if inputs_of(self.expressions) > len(self.operands):
            raise ShapeError(f"the expressions use more than the {len(self.operands)} operands")
        for operand in (*self.operands, *self.results):
            if len(operand.strides) != len(self.shape) + 1:
                raise ShapeError(f"strides {operand.strides} for [batch, {', '.join(map(str, self.shape))}]")


def contiguous(shape: Sequence[int], dtype: str = "float32") -> Operand:
    """A whole tensor [batch, *shape] without gaps."""
    strides = [1]
    for size in reversed(shape):
        strides.append(strides[-1] * size)
    if len(shape) == 0:
        return Operand((1,), dtype)
    return Operand(tuple(reversed(strides)), dtype)


def scalar(shape: Sequence[int], dtype: str = "float32") -> Operand:
    """One value for everything."""
    return Operand((0,) * (len(shape) + 1), dtype)


def channel(shape: Sequence[int], dtype: str = "float32") -> Operand:
    """A vector along the last axis."""
    return Operand((*((0,) * len(shape)), 1), dtype)


def element(spec: Element, target: Target, name: str = "element") -> Kernel:
    """The kernel. Slots: x0, x1, ... (operands), y0, y1, ... (results), batch."""
    target = target.integral(spec.dtype) if spec.dtype in INTEGER_TYPES else target.typed(spec.dtype)
    module = Module(target)
    f = module.entry()
    tensors = (
        *read(*(f"x{i}" for i in range(len(spec.operands)))),
        *write(*(f"y{i}" for i in range(len(spec.results)))),
    )
    parameters = (*tensors, *integer("batch"))
    values = slot_values(f, parameters)
    multiple, sizes, walks = merge(spec.shape, [o.strides for o in (*spec.operands, *spec.results)])
    pointers = [values[p.name] for p in tensors]
    body = ElementBody(f, spec, pointers)
    total = values["batch"] * multiple
    if not sizes:
        flat(f, total, body, [w[0] for w in walks])
    else:
        nested(f, total, sizes, walks, body)
    f.ret()
    elements = math.prod(spec.shape)
    moved = sum(
        DTYPES[o.dtype][1]
        * math.prod(s for s, w in zip(spec.shape, o.strides[1:], strict=True) if w or s == 1)
        for o in (*spec.operands, *spec.results)
        if o.strides[0]
    )
    return Kernel(
        name=name,
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, elements * flops(spec.expressions)),
        bytes=Affine(0, moved),
        units=Affine(0, max(1, elements // 64)),
    )


def load_operand(
    f: Function, pointer: Value, index: Value, step: int, dtype: str, mask: Value | None
) -> Value:
    """A vector (step 1) or a splat (step 0) of elements in the module's type."""
    type_, _ = DTYPES[dtype]
    if step == 0:
        return f.splat(computed(f, f.load(pointer, type_, index), dtype, f.float))
    return computed(f, f.vload(pointer, index, mask, type_), dtype, f.float)


def store_result(f: Function, x: Value, pointer: Value, index: Value, dtype: str, mask: Value | None) -> None:
    """Store a vector of the module's type (or of truth values) as elements of a type."""
    type_, _ = DTYPES[dtype]
    if x.type.endswith(" x i1>"):
        if is_float(type_):
            vector = f"<{f.lanes} x {type_}>"
            x = f.select(x, f.value(1.0, vector), f.value(0.0, vector))
        elif dtype in ("float16", "bfloat16"):
            x = as_stored(f, f.select(x, f.value(1.0, f.vector), f.value(0.0, f.vector)), dtype)
        else:
            x = f.cast("zext", x, f"<{f.lanes} x {type_}>")
    elif dtype == "bool":
        x = f.cast("zext", f.compare("une" if is_float(f.float) else "ne", x, 0.0), f"<{f.lanes} x i8>")
    elif dtype in ("float16", "bfloat16"):
        x = as_stored(f, x, dtype)
    elif not is_float(f.float):
        assert type_ == f.float, "a pass in integers of one type"
    elif is_float(type_):
        if type_ != f.float:
            x = f.cast("fpext" if type_ == "double" else "fptrunc", x, f"<{f.lanes} x {type_}>")
    else:
        x = f.cast("fptosi", x, f"<{f.lanes} x {type_}>")
    f.vstore(x, pointer, index, mask)


@final
class ElementBody:
    """Loads the operands of one vector of elements, computes, stores."""

    def __init__(self, f: Function, spec: Element, pointers: list[Value]) -> None:
        self.f = f
        self.spec = spec
        self.pointers = pointers
        self.heavy = flops(spec.expressions) > f.module.target.tuning.element_heavy

    def at(self, starts: Sequence[Value], steps: Sequence[int], offset: Value, mask: Value | None) -> None:
        f, spec = self.f, self.spec
        count = len(spec.operands)
        operands = [
            load_operand(
                f, self.pointers[i], starts[i] + offset if steps[i] else starts[i], steps[i], o.dtype, mask
            )
            for i, o in enumerate(spec.operands)
        ]
        results = emit(f, spec.expressions, operands)
        for i, (o, result) in enumerate(zip(spec.results, results, strict=True)):
            if steps[count + i] != 1:
                raise ShapeError("a result is broadcast: every element of it would be written several times")
            store_result(f, result, self.pointers[count + i], starts[count + i] + offset, o.dtype, mask)

    def run(self, starts: Sequence[Value], steps: Sequence[int], low: Value, high: Value) -> None:
        """Elements low to high of one run; several vectors at a time where they are cheap."""
        f, lanes = self.f, self.f.lanes
        several = 1 if self.heavy else f.module.target.tuning.element_vectors
        # The index that each loop ends at is the next one's start, as all steps divide the whole.
        whole = low + (high - low) // (several * lanes) * (several * lanes)
        with f.range(low, whole, several * lanes) as i:
            for v in range(several):
                self.at(starts, steps, i + v * lanes, None)
        with f.range(whole, high, lanes) as i:
            self.at(starts, steps, i, f.mask(high - i))
