"""Replaces `ai.onward` operators by their bodies in standard operators, which other runtimes execute."""

from __future__ import annotations

import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Builder, bind, bodies_of, replace_node

__all__ = ["expand_node", "expand_onward"]


def expand_onward(model: ir.Model) -> ir.Model:
    """The model with every `ai.onward` node replaced by standard operators; names of outputs are kept."""
    model = model.clone()
    _expand_all(Builder(model.graph))
    for graph in model.graphs():
        graph.opset_imports.pop(ONWARD_DOMAIN, None)
    return model


def _expand_all(g: Builder) -> None:
    while pending := [node for node in g.graph if node.domain == ONWARD_DOMAIN]:
        for node in pending:
            expand_node(g, node)
    # bodies come last: until then they read nothing around them
    for node in g.graph:
        for body in bodies_of(node):
            _expand_all(g.inside(body))


def expand_node(g: Builder, node: ir.Node) -> None:
    """Replace one `ai.onward` node in its graph by its body.

    Args:
        g: a builder on the node's graph.
        node: a node whose operator has `expand`.
    """
    operator = bind(node, g.graph.opset_imports[node.domain])
    g.at(node)
    with g.scope(node.name or node.op_type):
        results = operator.expand(g, *node.inputs)  # type: ignore[attr-defined]
        replace_node(g, node, (results,) if isinstance(results, ir.Value) else results)
    g.at(None)
