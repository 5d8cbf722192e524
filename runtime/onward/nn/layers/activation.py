"""Activations: elementwise functions, and softmax. The output has the input's shape and dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import onnx_ir as ir

from onward.errors import ConfigError
from onward.nn.initializers import Constant
from onward.nn.layer import Layer, UnaryLayer
from onward.nn.layers._checks import (
    axis_of,
    dims,
    extent,
    require_float,
    require_in,
    require_number,
)
from onward.nn.trace import Site

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "HardSwish",
    "LeakyReLU",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "activate",
    "require_activation",
]


@final
@dataclass(frozen=True, eq=False)
class ReLU(UnaryLayer):
    """max(x, 0)."""

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.Relu(x)


@final
@dataclass(frozen=True, eq=False)
class ReLU6(UnaryLayer):
    """min(max(x, 0), 6) (Krizhevsky 2010; used by MobileNet)."""

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.Clip(x, 0.0, 6.0)


@final
@dataclass(frozen=True, eq=False)
class LeakyReLU(UnaryLayer):
    """x where x >= 0, else alpha * x."""

    alpha: float = 0.01

    def __post_init__(self) -> None:
        require_number(self, "alpha", self.alpha)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.LeakyRelu(x, alpha=float(self.alpha))


@final
@dataclass(frozen=True, eq=False)
class PReLU(UnaryLayer):
    """x where x >= 0, else slope * x with a learned slope (He et al. 2015, arXiv:1502.01852).

    Parameters: slope [C, 1, ...], one a channel (axis 1); [1] if `shared`.
    """

    initial: float = 0.25
    shared: bool = False

    def __post_init__(self) -> None:
        require_number(self, "initial", self.initial)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        shape = [1] if self.shared else [extent(x, 1, "channels"), *[1] * (len(dims(x)) - 2)]
        return site.g.PRelu(x, site.parameter("slope", shape, Constant(self.initial), like=x))


@final
@dataclass(frozen=True, eq=False)
class ELU(UnaryLayer):
    """x where x > 0, else alpha * (exp(x) - 1) (Clevert et al. 2015, arXiv:1511.07289)."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        require_number(self, "alpha", self.alpha)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.Elu(x, alpha=float(self.alpha))


@final
@dataclass(frozen=True, eq=False)
class SELU(UnaryLayer):
    """Scaled ELU with the constants of Klambauer et al. 2017, arXiv:1706.02515."""

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.Selu(x)


@final
@dataclass(frozen=True, eq=False)
class Sigmoid(UnaryLayer):
    """1 / (1 + exp(-x))."""

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.Sigmoid(x)


@final
@dataclass(frozen=True, eq=False)
class Tanh(UnaryLayer):
    """Hyperbolic tangent."""

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.Tanh(x)


@final
@dataclass(frozen=True, eq=False)
class Softmax(UnaryLayer):
    """exp(x) / sum(exp(x)) along an axis."""

    axis: int = -1

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        axis_of(self.axis, dims(x))
        return site.g.Softmax(x, axis=self.axis)


@final
@dataclass(frozen=True, eq=False)
class GELU(UnaryLayer):
    """x * Phi(x) (Hendrycks & Gimpel 2016, arXiv:1606.08415); `approximate="tanh"` for its approximation."""

    approximate: Literal["none", "tanh"] = "none"

    def __post_init__(self) -> None:
        require_in(self, "approximate", self.approximate, ("none", "tanh"))

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.Gelu(x, approximate=self.approximate)


@final
@dataclass(frozen=True, eq=False)
class SiLU(UnaryLayer):
    """x * sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118)."""

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.Mul(x, site.g.Sigmoid(x))


@final
@dataclass(frozen=True, eq=False)
class HardSwish(UnaryLayer):
    """x * min(max(x / 6 + 1/2, 0), 1) (Howard et al. 2019, arXiv:1905.02244)."""

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.HardSwish(x)


@final
@dataclass(frozen=True, eq=False)
class Softplus(UnaryLayer):
    """log(1 + exp(x))."""

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.Softplus(x)


_SHORTCUTS: Mapping[str, Callable[[], UnaryLayer]] = {
    "relu": ReLU,
    "relu6": ReLU6,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
    "selu": SELU,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "softmax": Softmax,
    "gelu": GELU,
    "silu": SiLU,
    "hard_swish": HardSwish,
    "softplus": Softplus,
}


def require_activation(layer: Layer, name: str | None) -> None:
    """Raises ConfigError unless the name is None or one of the shortcuts."""
    if name is not None and name not in _SHORTCUTS:
        raise ConfigError(
            f"{layer.label}: unknown activation {name!r}; known: {', '.join(_SHORTCUTS)} "
            "(others are layers of their own)"
        )


def activate(site: Site, name: str | None, x: ir.Value) -> ir.Value:
    """Write the activation of this name inside the layer that is being added; None: nothing."""
    return x if name is None else _SHORTCUTS[name]().apply(site, x)
