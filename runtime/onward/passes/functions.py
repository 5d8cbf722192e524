"""Gives operators of a domain of one's own their bodies, so that any runtime executes them."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Builder, bind, dims_of, has_schemas
from onward.passes.expand import expand_node

__all__ = ["with_functions"]


def with_functions(model: ir.Model) -> ir.Model:
    """The model with the body of every operator of one's own: as a model-local function, or, where nodes of
    an operator differ in attributes or operands, in each node's place.

    Raises:
        UnsupportedError: an operator has no body.
    """
    if not any(_is_own(node) for node in model.graph.all_nodes()):
        return model
    model = model.clone()
    forms: dict[tuple[str, str], set[Hashable]] = {}
    for node in model.graph.all_nodes():
        if _is_own(node):
            forms.setdefault((node.domain, node.op_type), set()).add(_form(node))
    for graph in (model.graph, *model.graph.subgraphs()):
        g = Builder(graph)
        for node in [n for n in graph if _is_own(n)]:
            operator = bind(node, model.graph.opset_imports[node.domain])
            if not hasattr(operator, "expand"):
                raise UnsupportedError(
                    f"node {node.name!r}, operator {node.op_type} of domain {node.domain!r}: no other "
                    "runtime can execute it, as its class has no `expand`, its body in standard operators"
                )
            if len(forms[node.domain, node.op_type]) > 1:
                expand_node(g, node)
            elif node.op_identifier() not in model.functions:
                model.functions[node.op_identifier()] = _function(node, model.graph.opset_imports)
    return model


def _is_own(node: ir.Node) -> bool:
    return node.domain != ONWARD_DOMAIN and not has_schemas(node.domain)


def _form(node: ir.Node) -> Hashable:
    """What a body may follow from."""
    attributes = tuple(sorted((name, str(a.value)) for name, a in node.attributes.items()))
    return attributes, tuple(None if v is None else (v.dtype, dims_of(v)) for v in node.inputs)


def _function(node: ir.Node, opsets: dict[str, int]) -> ir.Function:
    graph = ir.Graph([], [], nodes=[], opset_imports=dict(opsets), name=node.op_type)
    g = Builder(graph)
    inputs = []
    for i, value in enumerate(node.inputs):
        given = ir.Value(name=f"input_{i}", type=None if value is None else value.type)
        given.shape = None if value is None or value.shape is None else value.shape.copy()
        graph.inputs.append(given)
        inputs.append(None if value is None else given)
    operator = bind(node, opsets[node.domain])
    results = operator.expand(g, *inputs)  # type: ignore[attr-defined]
    for i, result in enumerate((results,) if isinstance(results, ir.Value) else results):
        g.output(result, f"output_{i}")
    for name, value in list(graph.initializers.items()):
        constant = ir.node("Constant", [], {"value": value.const_value}, outputs=[ir.Value(name=name)])
        graph.insert_before(graph[0], constant)
        ir.convenience.replace_all_uses_with(value, constant.outputs[0])
        del graph.initializers[name]
    # a value inside a function has no shape of its own: the next call may have another
    for value in (*graph.inputs, *(v for n in graph for v in n.outputs)):
        value.type = value.shape = None
    attributes = [ir.Attr(name, a.type, a.value) for name, a in node.attributes.items()]
    return ir.Function(node.domain, node.op_type, graph=graph, attributes=attributes)
