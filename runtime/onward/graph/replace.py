"""Puts values in the place of a node's outputs: how expansion and canonical forms change a graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onward.graph.builder import Builder

__all__ = ["replace_node"]


def replace_node(g: Builder, node: ir.Node, results: Sequence[ir.Value | None]) -> None:
    """Remove a node from its graph; what reads its outputs reads other values.

    Args:
        g: a builder on the node's graph that writes before the node.
        node: the node.
        results: one value an output, in its order; None where nobody uses the output.
            They take over the outputs' names, and types and shapes as far as these are known.
    """
    pairs = [(o, n) for o, n in zip(node.outputs, results, strict=False) if o.name and n is not None]
    olds, news = [old for old, _ in pairs], [new for _, new in pairs]
    replacements = [
        # only what was made for the node may take over an output's name
        g.Identity(new) if _is_older(new, node) or new in news[:i] else new
        for i, new in enumerate(news)
    ]
    for old, new in zip(olds, replacements, strict=True):
        name, old.name = old.name, None
        new.type = old.type if old.type is not None else new.type
        new.shape = old.shape if old.shape is not None else new.shape
        new.name = name
    ir.convenience.replace_all_uses_with(olds, replacements, replace_graph_outputs=True)
    g.graph.remove(node, safe=True)


def _is_older(value: ir.Value, node: ir.Node) -> bool:
    return value.producer() is None or value in node.inputs
