"""The activation that fused operators name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder

__all__ = ["activated", "tanh_gelu"]

_PARAMETERS = {
    "LeakyRelu": ("alpha",),
    "Elu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}
_PLAIN = ("Relu", "Tanh", "Sigmoid", "Softplus", "Softsign")


def activated(g: Builder, x: ir.Value, activation: str, parameters: Sequence[float]) -> ir.Value:
    """An activation by name, with its attributes in the order of their names.

    Raises:
        UnsupportedError: it is none of those that onnxruntime fuses.
    """
    if not activation:
        return x
    if activation in _PLAIN:
        return g.emit(activation, x)[0]
    if activation == "Clip" and len(parameters) == 2:
        return g.Clip(x, float(parameters[0]), float(parameters[1]))
    if activation in _PARAMETERS:
        names = _PARAMETERS[activation]
        rule: Callable[..., ir.Value] = getattr(g, activation)
        return rule(x, **dict(zip(names, map(float, parameters), strict=False)))
    known = ", ".join((*_PLAIN, "Clip", *_PARAMETERS))
    raise UnsupportedError(f"activation {activation!r} is not known; known are {known}")


def tanh_gelu(g: Builder, x: ir.Value) -> ir.Value:
    """x · Φ(x) with its approximation by a hyperbolic tangent."""
    return g.Gelu(x, approximate="tanh")
