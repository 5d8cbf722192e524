"""Which inputs decide shapes: those that axes, extents, steps or counts follow from."""

from __future__ import annotations

import inspect

import onnx_ir as ir

from onward.errors import OnwardError
from onward.graph import Op, find

__all__ = ["DECIDING_SIZE", "deciding_inputs"]

DECIDING_SIZE = 64
"""Elements of an input that may decide shapes; it has one axis at most."""


def deciding_inputs(graph: ir.Graph) -> tuple[str, ...]:
    """The names of inputs whose contents, not only shapes, decide shapes or what kernels compute, in order.

    Operators say which of their operands do (`static_operands`); they are followed to inputs.
    """
    inputs = {v for v in graph.inputs if v.name not in graph.initializers}
    found: set[ir.Value] = set()
    seen: set[ir.Value] = set()
    pending = [value for node in graph for value in _deciding_operands(node, graph)]
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        maker = value.producer()
        if value in inputs:
            found.add(value)
        elif maker is not None and not _follows_from_shapes(maker, graph):
            pending.extend(v for v in maker.inputs if v is not None)
    return tuple(v.name or "" for v in graph.inputs if v in found and _has_one_axis(v))


def _operator(node: ir.Node, graph: ir.Graph) -> type[Op] | None:
    try:
        return find(node.domain, node.op_type, graph.opset_imports.get(node.domain, 0))
    except OnwardError:
        return None  # the interpreter says what is missing


def _follows_from_shapes(node: ir.Node, graph: ir.Graph) -> bool:
    operator = _operator(node, graph)
    return operator is not None and operator.follows_from_shapes


def _deciding_operands(node: ir.Node, graph: ir.Graph) -> list[ir.Value]:
    operator = _operator(node, graph)
    if operator is None or not operator.static_operands:
        return []
    names = operator.static_operands
    places = _operand_names(operator)
    return [v for name, v in zip(places, node.inputs, strict=False) if v is not None and name in names]


def _operand_names(operator: type[Op]) -> list[str]:
    method = getattr(operator, "run", None) or operator.kernel  # type: ignore[attr-defined]
    first = 2 if hasattr(operator, "run") else 1
    return list(inspect.signature(method).parameters)[first:]


def _has_one_axis(value: ir.Value) -> bool:
    return value.shape is None or len(value.shape) <= 1
