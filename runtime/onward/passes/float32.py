"""Puts a model of 16-bit floats in float32, for training: the weights that steps are added to are float32.

Source: P. Micikevicius et al., "Mixed precision training", 2018, arXiv:1710.03740, section 3.1: an update is
often smaller than half of the spacing of 16-bit numbers, so that it would be lost.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onward.graph import bodies_of, canonical_model
from onward.passes.cast import cast_floats

__all__ = ["HALVES", "half_types", "in_float32"]

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""The floats of 16 bits."""

_FLOAT = ir.DataType.FLOAT
_TYPE_ATTRIBUTES = ("stash_type", "output_dtype", "softmax_precision")
"""Element types in which something is computed or given, besides `to` and `dtype`."""


def half_types(model: ir.Model) -> tuple[ir.DataType, ...]:
    """The 16-bit types that tensors of a model have, in bodies too."""
    found = {value.dtype for graph in _graphs(model.graph) for value in _values(graph)}
    return tuple(dtype for dtype in HALVES if dtype in found)


def in_float32(model: ir.Model) -> ir.Model:
    """The model with float32 in the place of every float16 and bfloat16: the same one where it has none.

    Names of initializers, inputs and outputs stay. A Cast between floats that are the same now is gone, so
    that a weight is a weight whether it is cast or not.

    Args:
        model: it is not changed; what is returned is in canonical form.
    """
    halves = half_types(model)
    if not halves:
        return model
    model = canonical_model(model).clone()
    for graph in _graphs(model.graph):
        for node in graph:
            _retype(node)
    for dtype in halves:
        model = cast_floats(model, _FLOAT, dtype)
    for graph in _graphs(model.graph):
        for node in list(graph):
            if node.op_type == "Cast" and node.domain == "":
                _bypass(graph, node)
    return model


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for body in bodies_of(node):
            yield from _graphs(body)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _retype(node: ir.Node) -> None:
    for name in _TYPE_ATTRIBUTES:
        given = node.attributes.get(name)
        if given is not None and given.type == ir.AttributeType.INT and given.as_int() in map(int, HALVES):
            node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))


def _bypass(graph: ir.Graph, node: ir.Node) -> None:
    """Take out a Cast that changes nothing; one that an output needs for its name becomes an Identity."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.dtype != y.dtype or y.dtype != _FLOAT:
        return
    if y.is_graph_output():
        identity = ir.node("Identity", [x], name=node.name)
        graph.insert_before(node, identity)
        name, y.name = y.name, None
        new = identity.outputs[0]
        new.name, new.type, new.shape = name, y.type, y.shape
        ir.convenience.replace_all_uses_with(y, new, replace_graph_outputs=True)
    else:
        ir.convenience.replace_all_uses_with(y, x)
    graph.remove(node, safe=True)
