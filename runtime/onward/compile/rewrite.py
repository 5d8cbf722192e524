"""Splits batch normalization into coefficients per channel and an element-wise part, which fuses.

- training: slope, shift, mean, σ⁻¹ and new statistics from (X, scale, B, statistics); Y = X slope + shift;
- inference: slope and shift from (scale, B, mean, var), once for given weights; Y = X slope + shift;
- gradient: a, b, c, dscale and dB from (dY, X, mean, σ⁻¹, scale); dX = a dY + b X + c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onward.compile.program import Operation, Program
from onward.compile.rules import reduction
from onward.graph import Array, Expression, Op

if TYPE_CHECKING:
    from onward.compile.lowering import Lowering

__all__ = ["split_normalization"]

_FLOAT = np.dtype(np.float32)


def split_normalization(program: Program) -> None:
    """Replace the program's batch normalizations of float32 values, in place."""
    statistics: dict[tuple[ir.Value, float], tuple[ir.Value, ir.Value]] = {}
    operations: list[Operation] = []
    for operation in program.operations:
        operator: Any = operation.operator
        kind = operation.node.op_type
        if kind not in ("BatchNormalization", "BatchNormalizationGrad") or not _suits(program, operation):
            operations.append(operation)
        elif kind == "BatchNormalizationGrad":
            key = _statistics_of(_operands(operation)[1], operator.epsilon)
            found = statistics.get(key)
            operations.extend([operation] if found is None else _gradient(program, operation, found))
        elif getattr(operator, "training_mode", 0):
            operations.extend(_training(program, operation, statistics))
        else:
            operations.extend(_inference(program, operation))
    program.operations = operations


def _statistics_of(x: ir.Value, epsilon: float) -> tuple[ir.Value, float]:
    """What statistics are found by; a default epsilon is as good as the same one from an attribute."""
    return x, float(np.float32(epsilon))


def _suits(program: Program, operation: Operation) -> bool:
    values = [v for v in operation.inputs if v is not None]
    return len(program.shapes[values[0]]) in (2, 3, 4) and all(
        program.dtypes[v] == _FLOAT and 0 not in program.shapes[v] for v in values
    )


def _operands(operation: Operation) -> list[ir.Value]:
    return [v for v in operation.inputs if v is not None]


def _value(program: Program, like: ir.Value, name: str, shape: tuple[int, ...]) -> ir.Value:
    value = ir.Value(name=f"{like.name}/{name}", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    program.shapes[value], program.dtypes[value] = shape, _FLOAT
    return value


def _channels(program: Program, x: ir.Value) -> tuple[int, tuple[int, ...]]:
    shape = program.shapes[x]
    return shape[1], (1, shape[1], *(1,) * (len(shape) - 2))


def _training(
    program: Program,
    operation: Operation,
    statistics: dict[tuple[ir.Value, float], tuple[ir.Value, ir.Value]],
) -> list[Operation]:
    operator: Any = operation.operator
    x = _operands(operation)[0]
    count, wide = _channels(program, x)
    slope, shift = (_value(program, operation.outputs[0], n, wide) for n in ("slope", "shift"))
    mean, inverse = (_value(program, operation.outputs[0], n, (count,)) for n in ("mean", "inverse"))
    statistics[_statistics_of(x, operator.epsilon)] = (mean, inverse)
    outputs = (slope, shift, mean, inverse, *operation.outputs[1:])
    coefficients = Coefficients(
        output_count=len(outputs), epsilon=operator.epsilon, momentum=operator.momentum
    )
    return [
        Operation(operation.node, coefficients, operation.inputs, outputs),
        Operation(operation.node, Affine(), (x, slope, shift), operation.outputs[:1]),
    ]


def _inference(program: Program, operation: Operation) -> list[Operation]:
    operator: Any = operation.operator
    x, *weights = _operands(operation)
    _, wide = _channels(program, x)
    slope, shift = (_value(program, operation.outputs[0], n, wide) for n in ("slope", "shift"))
    coefficients = FixedCoefficients(output_count=2, epsilon=operator.epsilon)
    return [
        Operation(operation.node, coefficients, tuple(weights), (slope, shift)),
        Operation(operation.node, Affine(), (x, slope, shift), operation.outputs[:1]),
    ]


def _gradient(program: Program, operation: Operation, found: tuple[ir.Value, ir.Value]) -> list[Operation]:
    dy, x, scale = _operands(operation)
    _, wide = _channels(program, x)
    parts = tuple(_value(program, operation.outputs[0], n, wide) for n in ("a", "b", "c"))
    outputs = (*parts, *operation.outputs[1:])
    coefficients = GradientCoefficients(output_count=len(outputs))
    return [
        Operation(operation.node, coefficients, (dy, x, *found, scale), outputs),
        Operation(operation.node, AffinePair(), (dy, x, *parts), operation.outputs[:1]),
    ]


def _wide(vector: Array, rank: int) -> Array:
    return vector.reshape(1, -1, *(1,) * (rank - 2))


@dataclass(frozen=True, kw_only=True)
class Affine(Op):
    """X slope + shift."""

    image_inputs = (0,)
    image_outputs = (0,)

    def kernel(self, X: Array, slope: Array, shift: Array) -> Array:
        return X * slope + shift

    def element(self, X: Expression, slope: Expression, shift: Expression) -> Expression:
        return X * slope + shift


@dataclass(frozen=True, kw_only=True)
class AffinePair(Op):
    """a dY + b X + c."""

    image_inputs = (0, 1)
    image_outputs = (0,)

    def kernel(self, dY: Array, X: Array, a: Array, b: Array, c: Array) -> Array:
        return dY * a + (X * b + c)

    def element(
        self, dY: Expression, X: Expression, a: Expression, b: Expression, c: Expression
    ) -> Expression:
        return dY * a + (X * b + c)


@dataclass(frozen=True, kw_only=True)
class Coefficients(Op):
    """Slope, shift, mean, σ⁻¹ and the running statistics' successors, from a batch."""

    epsilon: float
    momentum: float
    image_inputs = (0,)

    def kernel(self, X: Array, scale: Array, B: Array, mean: Array, var: Array) -> tuple[Array, ...]:
        axes = (0, *range(2, X.ndim))
        batch_mean, batch_var = X.mean(axes), X.var(axes)
        inverse = 1 / np.sqrt(batch_var + np.float32(self.epsilon))
        slope = scale * inverse
        kept = np.float32(self.momentum)
        moved = [old * kept + new * (1 - kept) for old, new in ((mean, batch_mean), (var, batch_var))]
        shift = B - batch_mean * slope
        return _wide(slope, X.ndim), _wide(shift, X.ndim), batch_mean, inverse, *moved

    def lower(self, b: Lowering, outputs: Sequence[ir.Value], *operands: ir.Value) -> None:
        reduction.batch_coefficients(b, outputs, operands, self.epsilon, self.momentum)


@dataclass(frozen=True, kw_only=True)
class FixedCoefficients(Op):
    """Slope and shift from running statistics."""

    epsilon: float

    def kernel(self, scale: Array, B: Array, mean: Array, var: Array) -> tuple[Array, ...]:
        slope = scale / np.sqrt(var + np.float32(self.epsilon))
        return slope, B - mean * slope

    def lower(self, b: Lowering, outputs: Sequence[ir.Value], *weights: ir.Value) -> None:
        reduction.fixed_coefficients(b, outputs, weights, self.epsilon)


@dataclass(frozen=True, kw_only=True)
class GradientCoefficients(Op):
    """a, b and c of dX, and the gradients of scale and B."""

    image_inputs = (0, 1)
    expression_inputs = (0, 1)

    def kernel(self, dY: Array, X: Array, mean: Array, inverse: Array, scale: Array) -> tuple[Array, ...]:
        axes, count = (0, *range(2, X.ndim)), X.size // X.shape[1]
        dB = dY.sum(axes)
        dscale = (dY * (X - _wide(mean, X.ndim))).sum(axes) * inverse
        a = scale * inverse
        b = -a * inverse * dscale / count
        c = -a * dB / count - b * mean
        return *(_wide(v, X.ndim) for v in (a, b, c)), dscale, dB

    def lower(self, b: Lowering, outputs: Sequence[ir.Value], *operands: ir.Value) -> None:
        reduction.gradient_coefficients(b, outputs, operands)
