"""Batch normalization by running statistics as part of the convolution or product before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, replace_node
from onward.passes._integer_weights import output_axis

__all__ = ["fold_normalization"]

_EPSILON = 1e-5


def fold_normalization(model: ir.Model) -> ir.Model:
    """The model with each BatchNormalization that alone reads a Conv or Gemm folded into its weights.

    y = γ (conv(x) + b − μ) / √(σ² + ε) + β is a convolution whose filters are w · γ / √(σ² + ε). Weights,
    bias and statistics have to be constants; what is in training form, or grouped Conv otherwise than by
    its output channels, stays. The names of all other tensors are kept.
    """
    if not any(n.op_type == "BatchNormalization" and not n.domain for n in model.graph):
        return model
    model = model.clone()
    g = Builder(model.graph)
    for node in list(model.graph):
        if (
            node.op_type != "BatchNormalization"
            or node.domain
            or node.attributes.get_int("training_mode", False)
        ):
            continue
        x = node.inputs[0]
        source = None if x is None else x.producer()
        if source is None or x is None or source.domain or source.op_type not in ("Conv", "Gemm"):
            continue
        if len(x.uses()) != 1 or x.is_graph_output() or any(v.uses() for v in node.outputs[1:]):
            continue
        _fold(g, source, node)
    return model


def _fold(g: Builder, source: ir.Node, node: ir.Node) -> None:
    w = _constant(source.inputs[1])
    bias = source.inputs[2] if len(source.inputs) > 2 else None
    b = _constant(bias)
    statistics = [_constant(v) for v in node.inputs[1:5]]
    if w is None or (bias is not None and b is None) or any(s is None for s in statistics):
        return
    gamma, beta, mean, var = (s.astype(np.float64) for s in statistics if s is not None)
    axis = output_axis(source, w.ndim)
    if source.op_type == "Gemm" and (
        w.ndim != 2 or {source.attributes.get_float(n, 1.0) for n in ("alpha", "beta")} != {1.0}
    ):
        return
    if b is not None and b.size not in (1, gamma.size):
        return
    factor = gamma / np.sqrt(var + node.attributes.get_float("epsilon", _EPSILON))
    shape = [-1 if i == axis else 1 for i in range(w.ndim)]
    start = np.zeros(1) if b is None else b.reshape(-1)
    g.at(source)
    with g.scope(node.name or node.op_type):
        operands = [
            source.inputs[0],
            g.initializer(g.unique("weight"), (w * factor.reshape(shape)).astype(w.dtype)),
            g.initializer(g.unique("bias"), ((start - mean) * factor + beta).astype(w.dtype)),
        ]
        (y,) = g.emit(source.op_type, *operands, **{k: v.value for k, v in source.attributes.items()})
    read = [v for v in (*source.inputs, *node.inputs) if v is not None]
    g.at(node)
    replace_node(g, node, [y, *[None] * (len(node.outputs) - 1)])
    g.graph.remove(source, safe=True)
    for value in read:
        if value.is_initializer() and not value.uses() and not value.is_graph_output():
            g.graph.initializers.pop(value.name or "", None)


def _constant(value: ir.Value | None) -> Array | None:
    if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.numpy() if value.dtype == ir.DataType.FLOAT else None
