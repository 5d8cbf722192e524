"""Batch normalization: coefficients per channel, and an element-wise part, which fuses.

- training: slope, shift, mean, σ⁻¹ and new statistics from (X, scale, B, statistics); Y = X slope + shift;
- inference: slope and shift from (scale, B, mean, var), once for given weights; Y = X slope + shift;
- gradient: a, b, c, dscale and dB from (dY, X, mean, σ⁻¹, scale); dX = a dY + b X + c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.compile.context import Context, Queries
from onward.compile.kernels import norm
from onward.compile.kernels.element import Operand
from onward.compile.kernels.expression import operand
from onward.compile.program import Operation, Program, asked
from onward.compile.registry import lowers, splits
from onward.compile.rules.element import elements, expressed
from onward.compile.rules.reduction import reduce_in_two
from onward.compile.tensors import Tensor, gapless
from onward.graph import Array, Expression, Op
from onward.graph.requests import BatchNormalization, BatchNormalizationGradient, Request, Static, Values

__all__: list[str] = []

_FLOATS = frozenset(map(np.dtype, (np.float32, np.float64)))


# -- what the program has in place of one operation ----------------------------------------------------------


@dataclass(frozen=True)
class Statistics(Request):
    """Slope, shift, mean, σ⁻¹ and the running statistics' successors, from a batch."""

    outputs: Values
    x: ir.Value
    scale: ir.Value
    bias: ir.Value
    mean: ir.Value
    variance: ir.Value
    epsilon: float
    momentum: float

    @property
    def channels_last(self) -> Values:
        return (self.x,)


@dataclass(frozen=True)
class Frozen(Request):
    """Slope and shift from running statistics."""

    outputs: Values
    scale: ir.Value
    bias: ir.Value
    mean: ir.Value
    variance: ir.Value
    epsilon: float


@dataclass(frozen=True)
class StatisticsGradient(Request):
    """a, b and c of dX, and the gradients of scale and B."""

    outputs: Values
    dy: ir.Value
    x: ir.Value
    mean: ir.Value
    inverse: ir.Value
    scale: ir.Value

    @property
    def channels_last(self) -> Values:
        return self.dy, self.x

    @property
    def expressions(self) -> Values:
        return self.dy, self.x


@dataclass(frozen=True, kw_only=True)
class ScaleShift(Op):
    """X slope + shift."""

    def kernel(self, X: Array, slope: Array, shift: Array) -> Array:
        return X * slope + shift

    def element(self, X: Expression, slope: Expression, shift: Expression) -> Expression:
        return X * slope + shift


@dataclass(frozen=True, kw_only=True)
class ScaleShiftPair(Op):
    """a dY + b X + c."""

    def kernel(self, dY: Array, X: Array, a: Array, b: Array, c: Array) -> Array:
        return dY * a + (X * b + c)

    def element(
        self, dY: Expression, X: Expression, a: Expression, b: Expression, c: Expression
    ) -> Expression:
        return dY * a + (X * b + c)


@dataclass(frozen=True, kw_only=True)
class BatchCoefficients(Op):
    """As `Statistics`, an operation of the program."""

    epsilon: float
    momentum: float

    def kernel(self, X: Array, scale: Array, B: Array, mean: Array, var: Array) -> tuple[Array, ...]:
        axes = (0, *range(2, X.ndim))
        batch_mean, batch_var = X.mean(axes), X.var(axes)
        inverse = 1 / np.sqrt(batch_var + X.dtype.type(self.epsilon))
        slope = scale * inverse
        kept = X.dtype.type(self.momentum)
        moved = [old * kept + new * (1 - kept) for old, new in ((mean, batch_mean), (var, batch_var))]
        shift = B - batch_mean * slope
        return _wide(slope, X.ndim), _wide(shift, X.ndim), batch_mean, inverse, *moved

    def lower(
        self,
        static: Static,
        outputs: Values,
        X: ir.Value,
        scale: ir.Value,
        B: ir.Value,
        mean: ir.Value,
        var: ir.Value,
    ) -> Statistics:
        return Statistics(outputs, X, scale, B, mean, var, self.epsilon, self.momentum)


@dataclass(frozen=True, kw_only=True)
class FrozenCoefficients(Op):
    """As `Frozen`, an operation of the program."""

    epsilon: float

    def kernel(self, scale: Array, B: Array, mean: Array, var: Array) -> tuple[Array, ...]:
        slope = scale / np.sqrt(var + var.dtype.type(self.epsilon))
        return slope, B - mean * slope

    def lower(
        self, static: Static, outputs: Values, scale: ir.Value, B: ir.Value, mean: ir.Value, var: ir.Value
    ) -> Frozen:
        return Frozen(outputs, scale, B, mean, var, self.epsilon)


@dataclass(frozen=True, kw_only=True)
class GradientCoefficients(Op):
    """As `StatisticsGradient`, an operation of the program."""

    def kernel(self, dY: Array, X: Array, mean: Array, inverse: Array, scale: Array) -> tuple[Array, ...]:
        axes, count = (0, *range(2, X.ndim)), X.size // X.shape[1]
        dB = dY.sum(axes)
        dscale = (dY * (X - _wide(mean, X.ndim))).sum(axes) * inverse
        a = scale * inverse
        b = -a * inverse * dscale / count
        c = -a * dB / count - b * mean
        return *(_wide(v, X.ndim) for v in (a, b, c)), dscale, dB

    def lower(self, static: Static, outputs: Values, *operands: ir.Value) -> StatisticsGradient:
        return StatisticsGradient(outputs, *operands)


def _wide(vector: Array, rank: int) -> Array:
    return vector.reshape(1, -1, *(1,) * (rank - 2))


# -- splitting -----------------------------------------------------------------------------------------------


def _splits(program: Program, operation: Operation) -> bool:
    """Whether all operands are of one compiled type, and have elements, over one or two axes or none."""
    values = [v for v in operation.inputs if v is not None]
    dtypes = {program.dtypes[v] for v in values}
    return (
        len(program.shapes[values[0]]) in (2, 3, 4)
        and len(dtypes) == 1
        and dtypes <= _FLOATS
        and all(0 not in program.shapes[v] for v in values)
    )


def _key(x: ir.Value, epsilon: float) -> object:
    """What statistics are found by; a default epsilon is as good as the same one from an attribute."""
    return "batch statistics", x, float(np.float32(epsilon))


def _value(program: Program, like: ir.Value, name: str, shape: tuple[int, ...]) -> ir.Value:
    value = ir.Value(name=f"{like.name}/{name}", shape=ir.Shape(shape), type=like.type)
    program.shapes[value], program.dtypes[value] = shape, program.dtypes[like]
    return value


@splits(BatchNormalization)
def split(
    program: Program, operation: Operation, request: BatchNormalization, shared: dict[object, Any]
) -> Sequence[Operation] | None:
    """Coefficients, and the element-wise part."""
    if not _splits(program, operation):
        return None
    y, x = operation.outputs[0], request.x
    shape = program.shapes[x]
    count, wide = shape[1], (1, shape[1], *(1,) * (len(shape) - 2))
    slope, shift = (_value(program, y, name, wide) for name in ("slope", "shift"))
    operator: BatchCoefficients | FrozenCoefficients
    inputs: Values
    outputs: Values
    weights = (request.scale, request.bias, request.mean, request.variance)
    if request.training:
        mean, inverse = (_value(program, y, name, (count,)) for name in ("mean", "inverse"))
        shared[_key(x, request.epsilon)] = (mean, inverse)
        inputs, outputs = (x, *weights), (slope, shift, mean, inverse, *operation.outputs[1:])
        operator = BatchCoefficients(
            output_count=len(outputs), epsilon=request.epsilon, momentum=request.momentum
        )
    else:
        inputs, outputs = weights, (slope, shift)
        operator = FrozenCoefficients(output_count=2, epsilon=request.epsilon)
    return [
        asked(program, Operation(operation.node, operator, inputs, outputs)),
        Operation(operation.node, ScaleShift(), (x, slope, shift), operation.outputs[:1]),
    ]


@splits(BatchNormalizationGradient)
def split_gradient(
    program: Program, operation: Operation, request: BatchNormalizationGradient, shared: dict[object, Any]
) -> Sequence[Operation] | None:
    """Coefficients from the forward pass's statistics, and the element-wise part."""
    found = shared.get(_key(request.x, request.epsilon))
    if found is None or not _splits(program, operation):
        return None
    shape = program.shapes[request.x]
    wide = (1, shape[1], *(1,) * (len(shape) - 2))
    parts = tuple(_value(program, operation.outputs[0], name, wide) for name in ("a", "b", "c"))
    outputs = (*parts, *operation.outputs[1:])
    coefficients = GradientCoefficients(output_count=len(outputs))
    inputs = (request.dy, request.x, *found, request.scale)
    return [
        asked(program, Operation(operation.node, coefficients, inputs, outputs)),
        Operation(operation.node, ScaleShiftPair(), (request.dy, request.x, *parts), operation.outputs[:1]),
    ]


# -- rules ---------------------------------------------------------------------------------------------------


def _channels_last(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides with the channel axis last."""
    order = (0, *range(2, len(tensor.shape)), 1)
    return tuple(tensor.shape[a] for a in order), tuple(tensor.strides[a] for a in order)


def _unsuited(q: Queries, request: Statistics | StatisticsGradient) -> str | None:
    if not q.has_image(request.x) and len(q.shape(request.x)) != 2:
        return "normalization of a value that is not kept channels-last"
    return None


@lowers(Statistics, suits=_unsuited)
def statistics(c: Context, request: Statistics) -> None:
    """Column sums of the distances from the first pixel, which is as good as the mean for their accuracy."""
    source = c.either(request.x)
    sizes, strides = _channels_last(source)
    first = (*(0,) * (len(sizes) - 1), 1)
    columns = norm.statistics(sizes[1:], Operand(strides, source.dtype.name))
    finish = norm.forward_finish(request.epsilon, request.momentum)
    start = Tensor(source.buffer, (sizes[-1],), (1,), source.dtype, source.offset)
    count = c.constant(np.array(prod(sizes[:-1]), c.dtype(request.x)))
    weights = (request.scale, request.bias, request.mean, request.variance)
    more = [start, count, *(c.plain(v) for v in weights)]
    # the kernel's order: mean, inverse, slope, shift, new running mean and variance
    slope, shift, mean, inverse, *moved = [c.new_plain(v) for v in request.outputs]
    moved += [c.vector(sizes[-1], c.dtype(request.x)) for _ in range(2 - len(moved))]
    results = [mean, inverse, slope, shift, *moved]
    reduce_in_two(c, sizes, columns, [(source, strides), (source, first)], finish, more, results)


@lowers(StatisticsGradient, suits=_unsuited)
def statistics_gradient(c: Context, request: StatisticsGradient) -> None:
    """Column sums over dY and X, which may be expressions."""
    read = expressed(c, request.dy, request.x)
    sizes = read.sizes
    per_channel = (*(0,) * (len(sizes) - 1), 1)
    pairs = [*zip(read.tensors, read.strides, strict=True), (c.plain(request.mean), per_channel)]
    columns = norm.backward_sums(
        sizes[1:], tuple(Operand(s, t.dtype.name) for t, s in pairs), *read.expressions
    )
    columns = replace(columns, dtype=c.dtype(request.x).name)
    count = c.constant(np.array(prod(sizes[:-1]), c.dtype(request.x)))
    more = [count, c.plain(request.scale), c.plain(request.inverse), c.plain(request.mean)]
    found = [c.new_plain(v) for v in request.outputs]
    found += [c.vector(sizes[-1], c.dtype(request.x)) for _ in range(5 - len(found))]
    # the kernel's order: gradients of scale and bias, then the coefficients
    results = [found[3], found[4], *found[:3]]
    reduce_in_two(c, sizes, columns, pairs, norm.backward_finish(), more, results)


@lowers(Frozen)
def frozen(c: Context, request: Frozen) -> None:
    """An element-wise pass over channels; once for given weights."""
    tensors = [c.plain(v) for v in (request.scale, request.bias, request.mean, request.variance)]
    channels = tensors[0].shape
    slope, shift = (gapless(c.new_plain(v), channels) for v in request.outputs)
    found = operand(0) * (operand(3) + request.epsilon).apply("sqrt").apply("reciprocal")
    elements(c, channels, tensors, [slope, shift], [found, operand(1) - operand(2) * found])
