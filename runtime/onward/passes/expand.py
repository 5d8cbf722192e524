"""Replaces `ai.onward` operators by their bodies in standard operators, which other runtimes execute."""

from __future__ import annotations

import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Builder, bind

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
        if isinstance(results, ir.Value):
            results = (results,)
        # an output that the node does not name has no result
        pairs = [(old, new) for old, new in zip(node.outputs, results, strict=False) if old.name]
        olds, news = [old for old, _ in pairs], [new for _, new in pairs]
        replacements = [
            # only what the body made may take over an output's name
            g.Identity(new) if new.producer() is None or new in (*node.inputs, *news[:i]) else new
            for i, new in enumerate(news)
        ]
    g.at(None)
    for old, new in zip(olds, replacements, strict=True):
        name, old.name = old.name, None
        new.type, new.shape = old.type, old.shape
        new.name = name
    ir.convenience.replace_all_uses_with(olds, replacements, replace_graph_outputs=True)
    g.graph.remove(node, safe=True)
