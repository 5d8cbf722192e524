"""Which values are kept channels-last, and how wide a border of zeros each one needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.compile.groups import Group
from onward.compile.kernels.layout import Image
from onward.compile.options import CompileOptions
from onward.compile.program import Operation, Program
from onward.compile.rules.convolution import as_convolution
from onward.compile.rules.techniques import technique, weight_technique
from onward.compile.uses import Uses

__all__ = ["image_geometry"]

_KINDS = (np.dtype(np.float32), np.dtype(np.bool_))


def image_geometry(
    program: Program, groups: Sequence[Group], uses: Uses, options: CompileOptions
) -> dict[ir.Value, Image]:
    """The geometry of every value that is kept channels-last.

    Operators name the operands and results that they take channels-last (`image_inputs`, `image_outputs`)
    and the border that they need around an operand (`halo`). Element-wise groups pass the layout on between
    values of the group's shape.
    """
    images: set[ir.Value] = set()
    for operation in program.operations:
        images.update(v for v in _images_of(operation) if _can_be_image(program, v))
    grown = True
    while grown:
        grown = False
        for group in groups:
            if not (elements := group.elements):
                continue
            shape = program.shapes[elements[-1].outputs[0]]
            outputs = [v for o in elements for v in o.outputs]
            same = [v for v in (*group.inputs, *outputs) if program.shapes[v] == shape]
            same = [v for v in same if _can_be_image(program, v)]
            if any(v in images for v in same) and not all(v in images for v in same):
                images.update(same)
                grown = True
        for operation in program.operations:
            if not operation.operator.image_through:
                continue
            same = [v for v in (*operation.inputs, *operation.outputs) if v is not None]
            same = [v for v in same if _can_be_image(program, v)]
            if any(v in images for v in same) and not all(v in images for v in same):
                images.update(same)
                grown = True
    borders: dict[ir.Value, list[int]] = {v: [0, 0, 0, 0] for v in images}
    for operation in program.operations:
        for value, border in _halo(program, operation, options):
            if value in borders:
                borders[value] = [max(a, b) for a, b in zip(borders[value], border, strict=True)]
    _tie([*_pooling_pairs(program), *_fused_pairs(program, groups, uses)], borders)
    return {v: _image(program.shapes[v], borders[v]) for v in images}


def _images_of(operation: Operation) -> list[ir.Value]:
    operator = operation.operator
    inputs = [operation.inputs[i] for i in operator.image_inputs if i < len(operation.inputs)]
    outputs = [operation.outputs[i] for i in operator.image_outputs if i < len(operation.outputs)]
    return [v for v in (*inputs, *outputs) if v is not None]


def _halo(
    program: Program, operation: Operation, options: CompileOptions
) -> list[tuple[ir.Value, tuple[int, int, int, int]]]:
    """The border that a convolution needs around its operand."""
    role = operation.operator.convolution_role
    if not role:
        return []
    shapes = [program.shapes[v] for v in operation.inputs[:2] if v is not None]
    if len(shapes[0]) not in (3, 4):
        return []
    result = program.shapes[operation.outputs[0]]
    operator: Any = operation.operator
    if role == "input":
        geometry = operator.geometry_of(*shapes, result)
        x, y = result, shapes[0]
    else:
        geometry = operator.geometry_of(*shapes)
        x, y = (shapes[0], result) if role == "forward" else (shapes[1], shapes[0])
    none = (0, 0, 0, 0)
    conv = as_convolution(geometry, _image(x, none), _image(y, none), operator.group)
    value = operation.inputs[1 if role == "weight" else 0]
    assert value is not None
    if role == "weight":
        return [(value, weight_technique(conv).border(conv))]
    return [(value, technique(conv, options, backward=role == "input").border(conv))]


Pair = tuple[ir.Value, ir.Value]


def _tie(pairs: Sequence[Pair], borders: dict[ir.Value, list[int]]) -> None:
    """Give both values of each pair one border."""
    known = [(one, other) for one, other in pairs if one in borders and other in borders]
    changed = True
    while changed:
        changed = False
        for one, other in known:
            joint = [max(a, b) for a, b in zip(borders[one], borders[other], strict=True)]
            changed |= joint != borders[one] or joint != borders[other]
            borders[one], borders[other] = joint, list(joint)


def _pooling_pairs(program: Program) -> Iterator[Pair]:
    """The gradient of max pooling walks dX as X and dY as Y."""
    pooled = {_pooling(program, o): o.outputs[0] for o in program.operations if o.node.op_type in _MAX_POOLS}
    for operation in program.operations:
        if operation.node.op_type == "MaxPoolGrad":
            dy, x = operation.inputs[:2]
            y = pooled.get(_pooling(program, operation))
            if x is not None:
                yield operation.outputs[0], x
            if dy is not None and y is not None:
                yield dy, y


def _fused_pairs(program: Program, groups: Sequence[Group], uses: Uses) -> Iterator[Pair]:
    """A kernel that computes element-wise operations on its result walks their operands like the result."""
    for group in groups:
        if (made := uses.host(group)) is None:
            continue
        (result,) = (v for o in group.operations for v in o.outputs if uses.escapes(v, group))
        for value in group.inputs:
            if value is not made and program.shapes[value] == group.shape:
                yield result, value


_MAX_POOLS = ("MaxPool", "GlobalMaxPool")


def _pooling(program: Program, operation: Operation) -> tuple[ir.Value | None, object]:
    """Operand and geometry of max pooling or of its gradient."""
    x = operation.inputs[-1]
    operator: Any = operation.operator
    pooling = getattr(operator, "pooling", None)
    return x, None if x is None or pooling is None else pooling(program.shapes[x][2:])


def _can_be_image(program: Program, value: ir.Value) -> bool:
    return len(program.shapes[value]) in (3, 4) and program.dtypes[value] in _KINDS


def _image(shape: tuple[int, ...], border: Sequence[int]) -> Image:
    height, width = (1, shape[2]) if len(shape) == 3 else shape[2:]
    top, left, bottom, right = border
    return Image(height, width, shape[1], top=top, left=left, bottom=bottom, right=right)
