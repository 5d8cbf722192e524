"""Operators whose attributes are graphs, and those graphs: bodies.

In canonical form a body reads nothing but its own inputs, initializers and values: what it would take from
the graph around it is an input of the node, and of the body, behind those that the specification names. So
liveness, dead-code removal, planning and gradients see all that a node reads. The operators of `ai.onward` of
the same names have this form; a class of the standard gives

- `explicit(self, g, node)`: the node with its captured values as inputs, as values of such an operator.

An operator of `ai.onward` with bodies derives from `BodyOp` and gives `run` instead of `kernel`.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph.builder import Builder
from onward.graph.evaluate import Evaluator
from onward.graph.infer import infer_node
from onward.graph.op import Op, bind
from onward.graph.types import Array, Dim, dims_of, is_float, is_tensor, static_shape

__all__ = ["BodyOp", "RunBody", "around", "bodies_of", "capture", "infer_body", "inline", "inlined"]

_SMALL = 1024
"""Elements of constants that a body gets as its own."""

RunBody: TypeAlias = "Callable[[ir.Graph, Sequence[Any]], tuple[Any, ...]]"
"""Runs a body on its inputs in order and gives its outputs."""


@dataclass(frozen=True, kw_only=True)
class BodyOp(Op, ABC):
    """An operator in whose attributes there are bodies."""

    @abstractmethod
    def run(self, run_body: RunBody, *inputs: Any) -> tuple[Any, ...]:
        """The operator's meaning; bodies are run by `run_body`."""

    def kernel(self, *inputs: Any) -> tuple[Any, ...]:
        """The meaning in NumPy."""
        return self.run(self._evaluate, *inputs)

    @functools.cached_property
    def _evaluators(self) -> dict[ir.Graph, Evaluator]:
        return {body: Evaluator(body) for body in self.bodies()}

    def _evaluate(self, body: ir.Graph, inputs: Sequence[Any]) -> tuple[Any, ...]:
        evaluator = self._evaluators[body]
        return evaluator.run(dict(zip(evaluator.inputs, inputs, strict=True)), evaluator.outputs)

    def bodies(self) -> tuple[ir.Graph, ...]:
        """The graphs among the attributes."""
        found = (getattr(self, f.name) for f in fields(self))
        return tuple(content for content in found if isinstance(content, ir.Graph))

    def taken(self, operands: Sequence[Array | None]) -> tuple[ir.Graph, int] | None:
        """The body that the node comes to, and the first operand that it takes, where known operands tell."""
        return None

    def unrolled(self, g: Builder, *operands: ir.Value) -> tuple[ir.Value, ...] | None:
        """The iterations written one after the other, where the operands' shapes say that they are few."""
        return None


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs in a node's attributes."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def capture(*bodies: ir.Graph) -> list[ir.Value]:
    """Give bodies inputs for the values around them that any of them uses, in the same order each.

    Small constants that are not floating point, such as axes, are copied into the body instead: its shapes
    follow from them. Bodies inside must have been treated before. The bodies are changed.

    Returns:
        The values around them, one for each input that was added.
    """
    found: dict[ir.Value, None] = {}
    for body in bodies:
        own = set(body.inputs) | set(body.initializers.values())
        outer: dict[ir.Value, None] = {}
        for node in body:
            outer.update((v, None) for v in node.inputs if v is not None and v not in own)
            own.update(node.outputs)
        outer.update((v, None) for v in body.outputs if v not in own)
        constants = {v: t for v in outer if (t := _small_constant(v)) is not None}
        _reroute(body, {v: _held(body, v, tensor) for v, tensor in constants.items()})
        found.update((v, None) for v in outer if v not in constants)
    for body in bodies:
        inner = {value: _input_like(value, _names(body)) for value in found}
        body.inputs.extend(inner.values())
        _reroute(body, inner)
    return list(found)


def infer_body(
    body: ir.Graph, operands: Sequence[tuple[ir.TypeProtocol | None, tuple[Dim, ...] | None]]
) -> list[tuple[ir.TypeProtocol | None, tuple[Dim, ...] | None]]:
    """Types and shapes of a body's outputs, given those of its inputs; every value in it is annotated.

    What follows from constants and static shapes is computed on the way, since further shapes follow from it.

    Raises:
        ShapeError: the operands do not fit the body.
    """
    for value, (kind, dims) in zip(body.inputs, operands, strict=True):
        value.type = kind if kind is not None else value.type
        value.shape = None if dims is None else ir.Shape(dims)
    computed: list[ir.Value] = []
    try:
        for node in body:
            for value in node.outputs:
                value.shape = None
            opset = body.opset_imports.get(node.domain, 1)
            infer_node(node, opset)
            for value, array in zip(node.outputs, _computed(node, opset), strict=False):
                value.const_value = ir.tensor(array)
                computed.append(value)
        return [(value.type, dims_of(value)) for value in body.outputs]
    finally:
        for value in computed:
            value.const_value = None


def _computed(node: ir.Node, opset: int) -> tuple[Array, ...]:
    """The outputs of a node, where they are small and follow from constants or a static shape."""
    for value in node.outputs:
        shape = static_shape(value)
        if not is_tensor(value) or (shape is not None and math.prod(shape) > _SMALL):
            return ()
    operands: list[Array | None] = []
    for operand in node.inputs:
        shape = None if operand is None else static_shape(operand)
        if operand is None:
            operands.append(None)
        elif operand.const_value is not None:
            operands.append(operand.const_value.numpy())
        elif node.op_type in ("Shape", "Size") and shape is not None:
            operands.append(np.broadcast_to(np.zeros((), np.int8), shape))
        else:
            return ()
    operator = bind(node, opset)
    if isinstance(operator, BodyOp):
        return ()
    where = f"node {node.name!r}, operator {node.op_type}, opset {opset}"
    with np.errstate(all="ignore"):
        try:
            results = operator.kernel(*operands)  # type: ignore[attr-defined]
        except (ValueError, IndexError, TypeError, KeyError, ArithmeticError) as error:
            raise ShapeError(f"{where}: {error}") from error
        except ShapeError as error:
            raise type(error)(f"{where}: {error}") from error
    return tuple(map(np.asarray, results if isinstance(results, tuple) else (results,)))


def inlined(body: ir.Graph, operands: Sequence[ir.Value]) -> tuple[ir.Graph, list[ir.Node]]:
    """A copy of a body on other operands.

    Returns:
        The copy, which still has initializers and outputs, and its nodes, which belong to no graph any more.
    """
    copy = body.clone()
    _reroute(copy, dict(zip(copy.inputs, operands, strict=True)))
    nodes = list(copy)
    copy.remove(nodes)
    return copy, nodes


def inline(g: Builder, body: ir.Graph, operands: Sequence[ir.Value]) -> list[ir.Value]:
    """Write a body's nodes into a graph, on other operands; returns what its outputs are there."""
    copy, nodes = inlined(body, operands)
    outputs = list(copy.outputs)
    copy.outputs.clear()
    held = {}
    for name, value in copy.initializers.items():
        assert value.const_value is not None
        held[value] = g.initializer(g.unique(name), value.const_value.numpy())
    for node in nodes:
        for i, operand in enumerate(node.inputs):
            if operand is not None and operand in held:
                node.replace_input_with(i, held[operand])
        g.insert(node)
    return [held.get(value, value) for value in outputs]


def around(g: Builder, body: ir.Graph, captured: Sequence[ir.Value]) -> ir.Graph:
    """A copy of a body that takes the last of its inputs from the graph around it, as the standard has it."""
    copy = body.clone()
    count = len(copy.inputs) - len(captured)
    places = dict(zip(list(copy.inputs)[count:], captured, strict=True))
    _reroute(copy, places)
    del copy.inputs[count:]
    inner = g.inside(copy)
    for i, value in enumerate(copy.outputs):
        if value.producer() is None or value.graph is not copy or value in copy.outputs[:i]:
            copy.outputs[i] = inner.Identity(value)
    return copy


def _small_constant(value: ir.Value) -> ir.TensorProtocol | None:
    if value.is_graph_input() or is_float(value):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return tensor if tensor is not None and tensor.size <= _SMALL and not tensor.dtype.is_string() else None


def _names(body: ir.Graph) -> set[str | None]:
    names = {v.name for v in (*body.inputs, *body.initializers.values())}
    return names | {v.name for node in body for v in node.outputs}


def _held(body: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    copy = _input_like(value, _names(body))
    copy.const_value = tensor
    copy.type, copy.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    body.register_initializer(copy)
    return copy


def _reroute(body: ir.Graph, places: Mapping[ir.Value, ir.Value]) -> None:
    """Let nodes and outputs of a body read other values."""
    if not places:
        return
    for node in body:
        for i, operand in enumerate(node.inputs):
            if operand is not None and operand in places:
                node.replace_input_with(i, places[operand])
    for i, value in enumerate(body.outputs):
        if value in places:
            body.outputs[i] = places[value]


def _input_like(value: ir.Value, taken: Collection[str | None]) -> ir.Value:
    """A value of the same type, under a name that a body does not have."""
    name = value.name
    while name in taken:
        name = f"{name}'"
    shape = None if value.shape is None else value.shape.copy()
    return ir.Value(name=name, type=value.type, shape=shape)
