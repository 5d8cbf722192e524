"""Sums over all axes but that of the channels, which gradients of biases are."""

from __future__ import annotations

import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Builder

__all__ = ["channel_sum", "is_centred"]


def is_centred(gradient: ir.Value) -> bool:
    """Whether its sum over all axes but 1 is 0: that of what BatchNormalization in training mode takes.

    The normalisation takes the mean away, so that nothing depends on a bias in front of it. Summing what it
    gives leaves rounding errors, which an optimizer that divides by the gradient's size turns into steps, and
    running statistics lag behind these.
    """
    node = gradient.producer()
    return (
        node is not None
        and node.op_type == "BatchNormalizationGrad"
        and node.domain == ONWARD_DOMAIN
        and gradient is node.outputs[0]
    )


def channel_sum(g: Builder, gradient: ir.Value, bias: ir.Value, rank: int) -> ir.Value:
    """The gradient of a bias [C] that is added to each channel of [N, C, *], of this rank."""
    if is_centred(gradient):
        return g.zeros_like(bias)
    return g.ReduceSum(gradient, [0, *range(2, rank)], keepdims=0)
