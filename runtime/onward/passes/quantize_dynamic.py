"""Dynamic quantisation: products of matrices in integers, with scales measured at each run."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import Builder, replace_node
from onward.passes._integer_weights import by_axis, output_axis, weight_of
from onward.passes._selection import chosen_nodes

__all__ = ["quantize_dynamic"]

_OPSET = 13
_DEEPEST = (1 << 31) // (255 * 128)
"""Terms of a product whose sum int32 surely holds."""


def quantize_dynamic(model: ir.Model, *, keep: Collection[str] = (), smallest: int = 1024) -> ir.Model:
    """The model with MatMul and Gemm of constant weights as DynamicQuantizeLinear and MatMulInteger.

    y = (x_q − x_zero_point) · w_q · x_scale · w_scale: the left side becomes uint8 by its own range at each
    run, the weight is symmetric int8 with a scale for each column; what Gemm adds is added in float32.

    Args:
        model: at any opset; the result is at 13 at least. It is not changed.
        keep: operators, or names of nodes, that stay in float32.
        smallest: products whose weight has fewer elements stay in float32.

    Raises:
        ConfigError: `keep` names nothing in the model; no product is left.
        UnsupportedError: the model cannot be taken to opset 13.
    """
    from onward.model import upgrade

    kept = chosen_nodes(model, keep)
    old = model.graph.opset_imports.get("", 0) < _OPSET
    model = upgrade(model, _OPSET) if old else model.clone()
    g = Builder(model.graph)
    left: dict[ir.Value, tuple[ir.Value, ...]] = {}
    right: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value]] = {}
    weights: dict[ir.Value, None] = {}
    for node in list(model.graph):
        w = _product_weight(node, smallest)
        if w is None or {node.op_type, node.name} & kept:
            continue
        x = node.inputs[0]
        assert x is not None
        g.at(node)
        with g.scope(node.name or node.op_type):
            if x not in left:
                left[x] = g.emit("DynamicQuantizeLinear", x, outputs=3)
            key = w, output_axis(node, 2)
            if key not in right:
                right[key] = _columns(g, node, w)
                weights[w] = None
            q, x_scale, x_zero = left[x]
            integers, w_scale = right[key]
            total = g.MatMulInteger(q, integers, x_zero)
            y = g.Mul(g.Cast(total, to=int(ir.DataType.FLOAT)), g.Mul(x_scale, w_scale))
            c = node.inputs[2] if len(node.inputs) > 2 else None
            if c is not None:
                y = g.Add(y, c)
        replace_node(g, node, [y])
    if not weights:
        raise ConfigError(
            "there is nothing to quantise: no MatMul or Gemm has a constant float32 weight of at least "
            f"{smallest} elements" + (" that is not kept" if kept else "")
        )
    for w in weights:
        if not w.uses() and not w.is_graph_output():
            model.graph.initializers.pop(w.name or "")
    return model


def _product_weight(node: ir.Node, smallest: int) -> ir.Value | None:
    """The weight of a node that is a product of a matrix with it, and nothing else before the sum."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    w = weight_of(node)
    if w is None or w.const_value is None or w.const_value.size < smallest or len(w.const_value.shape) != 2:
        return None
    if node.op_type == "Gemm":
        beta = node.attributes.get_float("beta", 1.0) if len(node.inputs) > 2 else 1.0
        if node.attributes.get_int("transA", 0) or beta != 1.0:
            return None
    shape = w.const_value.shape.numpy()
    depth = shape[1 - output_axis(node, 2)]
    return w if depth <= _DEEPEST else None


def _columns(g: Builder, node: ir.Node, w: ir.Value) -> tuple[ir.Value, ir.Value]:
    """A weight as int8 [K, N] and the scales of its columns [N]."""
    assert w.const_value is not None
    array = w.const_value.numpy()
    if output_axis(node, 2) == 0:
        array = array.T
    found = by_axis(array, 1, ir.DataType.INT8)
    content = g.initializer(
        g.unique(f"{w.name}_quantized", scoped=False), np.ascontiguousarray(found.content)
    )
    return content, g.initializer(g.unique(f"{w.name}_scale", scoped=False), found.scale)
