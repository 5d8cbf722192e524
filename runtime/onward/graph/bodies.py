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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph.evaluate import Evaluator
from onward.graph.infer import infer_node
from onward.graph.op import Op

__all__ = ["BodyOp", "RunBody", "bodies_of", "capture", "infer_body", "inlined"]

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

    Bodies inside must have been treated before. The bodies are changed.

    Returns:
        The values around them, one for each input that was added.
    """
    found: dict[ir.Value, None] = {}
    for body in bodies:
        own = set(body.inputs) | set(body.initializers.values())
        for node in body:
            found.update((v, None) for v in node.inputs if v is not None and v not in own)
            own.update(node.outputs)
        found.update((v, None) for v in body.outputs if v not in own)
        for value in own:
            found.pop(value, None)
    captured = list(found)
    for body in bodies:
        inner = [_input_like(value) for value in captured]
        body.inputs.extend(inner)
        places = dict(zip(captured, inner, strict=True))
        for node in body:
            for i, value in enumerate(node.inputs):
                if value in places:
                    node.replace_input_with(i, places[value])
        for i, value in enumerate(body.outputs):
            if value in places:
                body.outputs[i] = places[value]
    return captured


def infer_body(
    body: ir.Graph, operands: Sequence[tuple[ir.TypeProtocol | None, ir.Shape | None]]
) -> list[tuple[ir.TypeProtocol | None, ir.Shape | None]]:
    """Types and shapes of a body's outputs, given those of its inputs; every value in it is annotated."""
    for value, (kind, shape) in zip(body.inputs, operands, strict=True):
        value.type, value.shape = kind, None if shape is None else shape.copy()
    for node in body:
        for value in node.outputs:
            value.shape = None
        infer_node(node, body.opset_imports.get(node.domain, 1))
    return [(value.type, value.shape) for value in body.outputs]


def inlined(body: ir.Graph, operands: Sequence[ir.Value | None]) -> tuple[list[ir.Node], list[ir.Value]]:
    """A copy of a body's nodes on other operands, and its outputs there.

    The copy belongs to no graph yet; initializers of the body are shared with it, so a body is given away
    once.
    """
    clone = body.clone()
    places = dict(zip(clone.inputs, operands, strict=True))
    nodes = list(clone)
    for node in nodes:
        for i, value in enumerate(node.inputs):
            if value in places:
                node.replace_input_with(i, places[value])
    outputs = [places.get(value, value) for value in clone.outputs]
    clone.outputs.clear()
    for node in nodes:
        clone.remove(node)
    if any(value is None for value in outputs):
        raise UnsupportedError("an output is an operand that is absent")
    return nodes, [value for value in outputs if value is not None]


def _input_like(value: ir.Value) -> ir.Value:
    shape = None if value.shape is None else value.shape.copy()
    return ir.Value(name=value.name, type=value.type, shape=shape)
