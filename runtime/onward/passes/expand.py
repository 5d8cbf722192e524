"""Replaces `ai.onward` operators by their bodies in standard operators, which other runtimes execute."""

from __future__ import annotations

import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Builder, bind, replace_node

__all__ = ["expand_node", "expand_onward"]


def expand_onward(model: ir.Model) -> ir.Model:
    """The model with every `ai.onward` node replaced by standard operators; names of outputs are kept."""
    model = model.clone()
    graph = model.graph
    g = Builder(graph)
    while pending := [node for node in graph if node.domain == ONWARD_DOMAIN]:
        for node in pending:
            expand_node(g, node)
    graph.opset_imports.pop(ONWARD_DOMAIN, None)
    return model


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
