"""Memory limits: how large a node's results will be, asked before its kernel runs.

It is asked wherever they may be far larger than its operands: numbers among its operands or attributes say
extents, or operands are large already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import OnwardError
from onward.graph.infer import infer_node
from onward.graph.memory import no_room
from onward.graph.types import numpy_dtype, static_shape

__all__ = ["asks_for_much", "refusal"]

_MUCH = 1 << 20
"""A product of numbers that say extents from which on results are looked at."""

_LARGE = 1 << 26
"""Bytes of operands, and the product of their elements divided by 16, from which on results are looked at."""

_NUMBERS = 64
"""Elements of an operand that may say extents."""

_VIEWS = frozenset({
    "Expand", "Flatten", "Identity", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators whose results take no memory of their own."""


def asks_for_much(node: ir.Node) -> bool:
    """Whether a node's attributes say large extents, pads or strides."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.INTS and _product(attribute.as_ints()) >= _MUCH:
            return True
        if attribute.type == ir.AttributeType.INT and abs(attribute.as_int()) >= _MUCH:
            return True
    return False


def refusal(node: ir.Node, opset: int, operands: Sequence[Any], much: bool) -> str | None:
    """Why a node's kernel is not run; None where nothing speaks against it.

    Args:
        node: what would be run.
        opset: of its domain.
        operands: its operands' contents.
        much: whether its attributes say large extents, as `asks_for_much` finds.
    """
    if node.op_type in _VIEWS or not (much or _may_grow(operands)):
        return None
    if any(isinstance(a, ir.Attr) and a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
        return None
    inputs: list[ir.Value | None] = []
    for content in operands:
        if content is None:
            inputs.append(None)
            continue
        if not isinstance(content, np.ndarray) or content.dtype.hasobject or content.dtype.kind in "US":
            return None
        value = ir.Value(
            name=f"i{len(inputs)}",
            type=ir.TensorType(ir.DataType.from_numpy(content.dtype)),
            shape=ir.Shape(content.shape),
        )
        if content.size <= _NUMBERS:
            value.const_value = ir.tensor(content)
        inputs.append(value)
    outputs = [ir.Value(name=f"o{i}" if v.name else "") for i, v in enumerate(node.outputs)]
    twin = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), outputs=outputs)
    try:
        infer_node(twin, opset)
    except OnwardError:
        return None  # the kernel says what is wrong
    nbytes = 0
    for value in outputs:
        shape = static_shape(value)
        if value.dtype is not None and shape is not None and not value.dtype.is_string():
            nbytes += math.prod(shape) * numpy_dtype(value.dtype).itemsize
    return no_room(nbytes)


def _may_grow(operands: Sequence[Any]) -> bool:
    total, sizes = 0, []
    for content in operands:
        if not isinstance(content, np.ndarray):
            continue
        total += content.nbytes
        sizes.append(content.size)
        says = content.ndim <= 1 and content.size <= _NUMBERS and content.dtype.kind in "iuf"
        if says and _product(content.reshape(-1).tolist()) >= _MUCH:
            return True
    sizes.sort()
    return total >= _LARGE or math.prod(sizes[-2:]) >= 16 * _LARGE


def _product(numbers: Sequence[float]) -> float:
    found = 1.0
    for number in numbers:
        found *= max(1.0, abs(number))
    return found
