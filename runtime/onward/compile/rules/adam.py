"""Adam's update: what all elements share once for all parameters, then an element-wise pass, which fuses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.compile.context import Context
from onward.compile.items import Slot
from onward.compile.kernels import scalars
from onward.compile.program import Operation, Program, asked
from onward.compile.registry import lowers, splits
from onward.compile.tensors import Buffer, Tensor
from onward.graph import Array, Expression, Op
from onward.graph.requests import AdamUpdate, Request, Static, Values

__all__: list[str] = []

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_factors = functools.lru_cache(64)(scalars.adam_factors)


@dataclass(frozen=True)
class Factors(Request):
    """η / (1 − β1^t), sqrt(1 − β2^t) and 1 − η weight_decay."""

    outputs: Values
    learning_rate: ir.Value
    t: ir.Value
    beta1: float
    beta2: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class AdamFactors(Op):
    """The same as an operation of the program."""

    refuses_data = False

    beta1: float
    beta2: float
    weight_decay: float

    def kernel(self, learning_rate: Array, t: Array) -> tuple[Array, ...]:
        f = learning_rate.dtype.type
        first, second = (f(1) - np.power(f(beta), f(t)) for beta in (self.beta1, self.beta2))
        found = (learning_rate / first, np.sqrt(second), 1 - learning_rate * f(self.weight_decay))
        return tuple(np.asarray(x, f) for x in found)

    def lower(self, static: Static, outputs: Values, learning_rate: ir.Value, t: ir.Value) -> Factors:
        return Factors(outputs, learning_rate, t, self.beta1, self.beta2, self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class AdamElements(Op):
    """The update of single elements, given the factors."""

    refuses_data = False

    formula: Callable[..., tuple[Expression, ...]]

    def element(self, *operands: Expression) -> tuple[Expression, ...]:
        return self.formula(*operands)


@splits(AdamUpdate)
def split(
    program: Program, operation: Operation, request: AdamUpdate, shared: dict[object, Any]
) -> Sequence[Operation] | None:
    """Factors for all parameters that need the same, and one element-wise operation."""
    rate, t = request.learning_rate, request.t
    dtype = program.dtypes[rate]
    if dtype not in _FLOATS or program.dtypes[t] != np.int64:
        return None
    if any(program.dtypes[v] != dtype for v in request.operands):
        return None
    key = ("Adam", rate, t, request.beta1, request.beta2, request.weight_decay)
    found: list[Operation] = []
    if (factors := shared.get(key)) is None:
        factors = shared[key] = tuple(
            _scalar(program, operation, name, dtype) for name in ("rate", "root", "shrink")
        )
        operator = AdamFactors(
            output_count=3,
            beta1=request.beta1,
            beta2=request.beta2,
            weight_decay=request.weight_decay,
        )
        found.append(asked(program, Operation(operation.node, operator, (rate, t), factors)))
    elements = AdamElements(output_count=len(request.outputs), formula=request.element)
    operands = (*request.operands, *factors)
    return [*found, Operation(operation.node, elements, operands, request.outputs)]


def _scalar(program: Program, operation: Operation, name: str, dtype: np.dtype[np.generic]) -> ir.Value:
    value = ir.Value(name=f"{operation.outputs[0].name}/{name}", shape=ir.Shape(()))
    program.shapes[value], program.dtypes[value] = (), dtype
    return value


@lowers(Factors)
def factors(c: Context, request: Factors) -> None:
    """Three numbers next to each other."""
    dtype = c.dtype(request.learning_rate)
    buffer = Buffer(64)
    slots: dict[str, Slot] = {
        "learning_rate": c.plain(request.learning_rate),
        "t": c.plain(request.t),
        "y": buffer,
    }
    kernel = _factors(request.beta1, request.beta2, request.weight_decay, c.target, dtype.name)
    c.call(kernel, slots, label="factors of Adam")
    for i, value in enumerate(request.outputs):
        c.alias(value, Tensor(buffer, (), (), dtype, i))
