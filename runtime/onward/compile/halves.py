"""2-byte floats in kernels of float32: operands are widened first, and results rounded last.

Moves and element-wise passes read and write 2-byte floats themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.compile.codegen.target import Target
from onward.compile.grouping import is_element
from onward.compile.program import Operation, Program, asked
from onward.compile.registry import rule_for, splitter_for
from onward.graph import Op, requests
from onward.graph.requests import Request

__all__ = ["in_float32"]

_HALVES = frozenset((np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)))
_FLOAT32 = np.dtype(np.float32)

_AS_THEY_ARE = (
    requests.Broadcast,
    requests.Concat,
    requests.Convert,
    requests.Fill,
    requests.Gather,
    requests.Identity,
    requests.Pad,
    requests.Positions,
    requests.Reinterpret,
    requests.Slices,
    requests.StartCall,
    requests.Take,
    requests.Tile,
    requests.Transpose,
    requests.View,
    requests.WaitCall,
)
"""What moves elements, or hands them to others, has nothing to compute in float32."""


@dataclass(frozen=True, kw_only=True)
class Converted(Op):
    """A conversion between an operation and what it reads or gives: its request says all."""


def in_float32(program: Program, target: Target) -> Program:
    """A program whose operations on 2-byte floats are conversions, moves, element-wise or on float32.

    Those on float16 stay as they are where the processor does not convert it: NumPy computes them.
    """
    halves = _HALVES if target.converts_halves else _HALVES - {np.dtype(np.float16)}
    if not any(dtype in halves for dtype in program.dtypes.values()):
        return program
    shapes, dtypes, constants = dict(program.shapes), dict(program.dtypes), dict(program.constants)
    made = replace(program, operations=[], shapes=shapes, dtypes=dtypes, constants=constants)
    wide: dict[ir.Value, ir.Value] = {}
    for operation in program.operations:
        made.operations.extend(_widened(made, operation, wide, halves) or [operation])
    return made


def _widened(
    program: Program,
    operation: Operation,
    wide: dict[ir.Value, ir.Value],
    halves: frozenset[np.dtype[Any]],
) -> list[Operation] | None:
    """An operation on float32 between conversions; None for one that stays as it is."""
    values = [v for v in (*operation.inputs, *operation.outputs) if v is not None and v.name]
    kinds = {program.dtypes[v] for v in values} & _HALVES
    if not kinds or not kinds <= halves:
        return None
    if (
        isinstance(operation.request, _AS_THEY_ARE)
        or is_element(operation, program)
        or not _computes(operation)
    ):
        return None
    before: list[Operation] = []
    inputs = []
    for value in operation.inputs:
        if value is None or program.dtypes.get(value) not in _HALVES:
            inputs.append(value)
            continue
        if value not in wide:
            wide[value] = _float32(program, value)
            if value in program.constants:
                program.constants[wide[value]] = program.constants[value].astype(_FLOAT32)
            else:
                before.append(_conversion(operation, value, wide[value]))
        inputs.append(wide[value])
    rounded = {v for v in operation.outputs if v.name and program.dtypes[v] in _HALVES}
    outputs = tuple(_float32(program, v) if v in rounded else v for v in operation.outputs)
    inside = asked(program, replace(operation, inputs=tuple(inputs), outputs=outputs))
    after = [
        _conversion(operation, w, v) for v, w in zip(operation.outputs, outputs, strict=True) if v in rounded
    ]
    return [*before, inside, *after]


def _computes(operation: Operation) -> bool:
    """Whether there may be kernels for what an operation asks for."""
    request = operation.request
    if isinstance(request, requests.Body) and request.rounds:
        return False
    return rule_for(request) is not None or splitter_for(request) is not None


def _float32(program: Program, value: ir.Value) -> ir.Value:
    shape = program.shapes[value]
    made = ir.Value(
        name=f"{value.name}/float32", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT)
    )
    program.shapes[made], program.dtypes[made] = shape, _FLOAT32
    return made


def _conversion(operation: Operation, x: ir.Value, y: ir.Value) -> Operation:
    request: Request = requests.Convert(y, x)
    return Operation(operation.node, Converted(), (x,), (y,), request)
