"""Normalisation, and dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import onnx_ir as ir

from onward.errors import ConfigError, ShapeError
from onward.nn.layer import UnaryLayer
from onward.nn.layers._checks import (
    axis_of,
    dims,
    extent,
    keep_shape,
    positive_int,
    require_float,
    require_number,
    require_rank,
)
from onward.nn.trace import Site

__all__ = ["BatchNorm", "Dropout", "GroupNorm", "LayerNorm", "LocalResponseNorm"]


@final
@dataclass(frozen=True, eq=False)
class BatchNorm(UnaryLayer):
    """Batch normalisation over all axes but 1 (Ioffe & Szegedy 2015, arXiv:1502.03167): [N, C, ...].

    Written in inference form, with running statistics. Parameters: scale, bias, running_mean, running_var,
    each [C]; the last two are statistics, which gradients do not train.

    Args:
        momentum: the share that the running statistics keep at a training step (ONNX's convention: 0.9
            here is 0.1 in PyTorch).
        epsilon: added to the variance.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        require_number(self, "momentum", self.momentum, at_least=0.0, at_most=1.0)
        require_number(self, "epsilon", self.epsilon, above=0.0)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        rank = len(dims(x))
        if rank < 2:
            raise ShapeError(f"expected rank 2 [N, C] or more, got rank {rank}")
        channels = [extent(x, 1, "channels")]
        return site.g.BatchNormalization(
            x,
            site.parameter("scale", channels, "ones", like=x),
            site.parameter("bias", channels, "zeros", like=x),
            site.parameter("running_mean", channels, "zeros", like=x),
            site.parameter("running_var", channels, "ones", like=x),
            epsilon=float(self.epsilon),
            momentum=float(self.momentum),
        )


@final
@dataclass(frozen=True, eq=False)
class LayerNorm(UnaryLayer):
    """Layer normalisation over the axes from `axis` on (Ba et al. 2016, arXiv:1607.06450).

    Parameters: scale and bias, with the extents of those axes.
    """

    axis: int = -1
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        require_number(self, "epsilon", self.epsilon, above=0.0)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        first = axis_of(self.axis, dims(x))
        if first == 0:
            raise ShapeError(f"axis {self.axis} is the batch; samples are normalised each for itself")
        shape = [extent(x, axis, "features") for axis in range(first, len(dims(x)))]
        y = site.g.LayerNormalization(
            x,
            site.parameter("scale", shape, "ones", like=x),
            site.parameter("bias", shape, "zeros", like=x),
            axis=self.axis,
            epsilon=float(self.epsilon),
        )
        return keep_shape(y, x)


@final
@dataclass(frozen=True, eq=False)
class GroupNorm(UnaryLayer):
    """Group normalisation (Wu & He 2018, arXiv:1803.08494): [N, C, ...], C divides into `groups`.

    Parameters: scale and bias, each [C].
    """

    groups: int
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        positive_int(self, "groups", self.groups)
        require_number(self, "epsilon", self.epsilon, above=0.0)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        require_rank(x, 3, 4)
        channels = extent(x, 1, "channels")
        if channels % self.groups:
            raise ShapeError(
                f"expected a number of channels that divides into {self.groups} groups, got {channels}"
            )
        y = site.g.GroupNormalization(
            x,
            site.parameter("scale", [channels], "ones", like=x),
            site.parameter("bias", [channels], "zeros", like=x),
            num_groups=self.groups,
            epsilon=float(self.epsilon),
        )
        return keep_shape(y, x)


@final
@dataclass(frozen=True, eq=False)
class LocalResponseNorm(UnaryLayer):
    """x / (bias + alpha / size * sum of x**2 over `size` neighbouring channels) ** beta: [N, C, H, W].

    Source: Krizhevsky et al. 2012, section 3.3, with ONNX's division of alpha by size.
    """

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0

    def __post_init__(self) -> None:
        positive_int(self, "size", self.size)
        if self.size % 2 == 0:
            raise ConfigError(f"{self.label}: size must be odd, got {self.size}")
        for field in ("alpha", "beta", "bias"):
            require_number(self, field, getattr(self, field))

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        require_rank(x, 4)
        return site.g.LRN(
            x, size=self.size, alpha=float(self.alpha), beta=float(self.beta), bias=float(self.bias)
        )


@final
@dataclass(frozen=True, eq=False)
class Dropout(UnaryLayer):
    """Sets a share of `ratio` of the cells to 0 in training and scales the others by 1 / (1 - ratio).

    Written in inference form, where it passes its input on (Srivastava et al. 2014).
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        require_number(self, "ratio", self.ratio, at_least=0.0, below=1.0)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        return site.g.Dropout(x, float(self.ratio))
