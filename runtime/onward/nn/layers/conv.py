"""Convolutions. Layout [N, C, spatial...]; weights as ONNX and PyTorch lay them out."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, final

import onnx_ir as ir

from onward.errors import ConfigError, ShapeError
from onward.nn.initializers import Fans, Initializer
from onward.nn.layer import UnaryLayer
from onward.nn.layers._checks import (
    extent,
    positive_int,
    require_float,
    require_initializers,
    require_rank,
)
from onward.nn.layers._window import Ints, Padding, Window, per_axis
from onward.nn.layers.activation import activate, require_activation
from onward.nn.trace import Site

__all__ = ["Conv1D", "Conv2D", "ConvTranspose2D", "DepthwiseConv2D"]


@dataclass(frozen=True, eq=False)
class _Conv(UnaryLayer, ABC):
    """What Conv1D and Conv2D share."""

    spatial: ClassVar[int]

    filters: int
    kernel_size: Ints
    strides: Ints = 1
    padding: Padding = "valid"
    dilation: Ints = 1
    groups: int = 1
    activation: str | None = None
    bias: bool = True
    weight_initializer: str | Initializer = "glorot_uniform"
    bias_initializer: str | Initializer = "zeros"

    def __post_init__(self) -> None:
        positive_int(self, "filters", self.filters)
        positive_int(self, "groups", self.groups)
        self._window()
        if self.filters % self.groups:
            raise ConfigError(f"{self.label}: filters {self.filters} do not divide into {self.groups} groups")
        require_activation(self, self.activation)
        require_initializers(self, self.weight_initializer, self.bias_initializer)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        y = _convolve(
            site,
            x,
            self._window(),
            self.filters,
            self.groups,
            self.weight_initializer,
            self.bias_initializer if self.bias else None,
        )
        return activate(site, self.activation, y)

    def _window(self) -> Window:
        return Window.of(self, self.spatial, self.kernel_size, self.strides, self.dilation, self.padding)


@final
@dataclass(frozen=True, eq=False)
class Conv1D(_Conv):
    """Convolution over one axis: [N, C, L] -> [N, filters, L'].

    Parameters: weight [filters, C / groups, k], bias [filters].

    Args:
        filters: output channels.
        kernel_size: the window's extent.
        strides: the window's step.
        padding: see `Padding`.
        dilation: the distance between the window's cells.
        groups: input and output channels are cut into as many groups that do not see each other.
        activation: the name of an activation that follows.
        bias: whether there is a bias.
    """

    spatial = 1


@final
@dataclass(frozen=True, eq=False)
class Conv2D(_Conv):
    """Convolution over two axes: [N, C, H, W] -> [N, filters, H', W'].

    Parameters: weight [filters, C / groups, kH, kW], bias [filters]. Arguments as for `Conv1D`; windows,
    strides and dilations are an int or (vertical, horizontal).
    """

    spatial = 2


@final
@dataclass(frozen=True, eq=False)
class DepthwiseConv2D(UnaryLayer):
    """A convolution of every channel with kernels of its own: [N, C, H, W] -> [N, C * multiplier, H', W'].

    Parameters: weight [C * multiplier, 1, kH, kW], bias [C * multiplier].
    """

    kernel_size: Ints
    strides: Ints = 1
    padding: Padding = "valid"
    dilation: Ints = 1
    multiplier: int = 1
    activation: str | None = None
    bias: bool = True
    weight_initializer: str | Initializer = "glorot_uniform"
    bias_initializer: str | Initializer = "zeros"

    def __post_init__(self) -> None:
        positive_int(self, "multiplier", self.multiplier)
        self._window()
        require_activation(self, self.activation)
        require_initializers(self, self.weight_initializer, self.bias_initializer)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_rank(x, 4)
        channels = extent(x, 1, "channels")
        y = _convolve(
            site,
            x,
            self._window(),
            channels * self.multiplier,
            channels,
            self.weight_initializer,
            self.bias_initializer if self.bias else None,
        )
        return activate(site, self.activation, y)

    def _window(self) -> Window:
        return Window.of(self, 2, self.kernel_size, self.strides, self.dilation, self.padding)


@final
@dataclass(frozen=True, eq=False)
class ConvTranspose2D(UnaryLayer):
    """Transposed convolution: [N, C, H, W] -> [N, filters, H', W'].

    H' = (H - 1) * stride + output_padding + (kernel - 1) * dilation + 1 - pads; with `padding="same"`
    H' = H * stride. Parameters: weight [C, filters / groups, kH, kW], bias [filters].

    Args:
        filters: output channels.
        kernel_size: the window's extent, an int or (vertical, horizontal); so are strides and dilation.
        strides: how far apart the input's cells are laid.
        padding: what is cut off the output; see `Padding`.
        output_padding: what is added at the output's end; below the stride. Not with `padding="same"`.
        dilation: the distance between the window's cells.
        groups: input and output channels are cut into as many groups that do not see each other.
        activation: the name of an activation that follows.
        bias: whether there is a bias.
    """

    filters: int
    kernel_size: Ints
    strides: Ints = 1
    padding: Padding = "valid"
    output_padding: Ints = 0
    dilation: Ints = 1
    groups: int = 1
    activation: str | None = None
    bias: bool = True
    weight_initializer: str | Initializer = "glorot_uniform"
    bias_initializer: str | Initializer = "zeros"

    def __post_init__(self) -> None:
        positive_int(self, "filters", self.filters)
        positive_int(self, "groups", self.groups)
        window = self._window()
        if self.filters % self.groups:
            raise ConfigError(f"{self.label}: filters {self.filters} do not divide into {self.groups} groups")
        extra = per_axis(self, "output_padding", self.output_padding, 2, least=0)
        if any(e >= max(s, d) for e, s, d in zip(extra, window.strides, window.dilations, strict=True)):
            raise ConfigError(
                f"{self.label}: output_padding {self.output_padding} must be below strides or dilation"
            )
        if window.padding == "same" and any(extra):
            raise ConfigError(f"{self.label}: padding 'same' sets output_padding itself; leave it out")
        require_activation(self, self.activation)
        require_initializers(self, self.weight_initializer, self.bias_initializer)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        sizes = require_rank(x, 4)[2:]
        channels = extent(x, 1, "channels")
        _require_groups(channels, self.groups)
        window = self._window()
        pairs, extra = self._pads(window)
        for size, stride, reach, pair, end in zip(
            sizes, window.strides, window.reach, pairs, extra, strict=True
        ):
            if isinstance(size, int) and (size - 1) * stride + end + reach - sum(pair) < 1:
                raise ShapeError(f"padding {pairs} leaves nothing of the output")
        cells = math.prod(window.kernel)
        # an output cell meets only those kernel cells that the stride leaves on input cells
        met = math.prod(max(1.0, k / s) for k, s in zip(window.kernel, window.strides, strict=True))
        fans = Fans(channels // self.groups * met, self.filters // self.groups * cells)
        shape = [channels, self.filters // self.groups, *window.kernel]
        weight = site.parameter("weight", shape, self.weight_initializer, like=x, fans=fans)
        bias = (
            site.parameter("bias", [self.filters], self.bias_initializer, like=x, fans=fans)
            if self.bias
            else None
        )
        y = site.g.ConvTranspose(
            x,
            weight,
            bias,
            kernel_shape=window.kernel,
            strides=window.strides,
            dilations=window.dilations if any(d != 1 for d in window.dilations) else None,
            pads=[p for p, _ in pairs] + [p for _, p in pairs] if any(map(any, pairs)) else None,
            output_padding=extra if any(extra) else None,
            group=self.groups if self.groups != 1 else None,
        )
        return activate(site, self.activation, y)

    def _window(self) -> Window:
        return Window.of(self, 2, self.kernel_size, self.strides, self.dilation, self.padding)

    def _pads(self, window: Window) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
        """Begin and end pads of every axis, and the output padding."""
        extra = per_axis(self, "output_padding", self.output_padding, 2, least=0)
        if not isinstance(window.padding, str):
            return window.padding, extra
        if window.padding == "valid":
            return ((0, 0), (0, 0)), extra
        spare = [reach - stride for reach, stride in zip(window.reach, window.strides, strict=True)]
        pairs = tuple((max(s, 0) // 2, max(s, 0) - max(s, 0) // 2) for s in spare)
        return pairs, tuple(max(-s, 0) for s in spare)


def _convolve(
    site: Site,
    x: ir.Value,
    window: Window,
    filters: int,
    groups: int,
    weight_initializer: str | Initializer,
    bias_initializer: str | Initializer | None,
) -> ir.Value:
    """Conv of x with parameters weight and bias."""
    require_float(x)
    sizes = require_rank(x, 2 + len(window.kernel))[2:]
    channels = extent(x, 1, "channels")
    _require_groups(channels, groups)
    cells = math.prod(window.kernel)
    fans = Fans(channels // groups * cells, filters // groups * cells)
    shape = [filters, channels // groups, *window.kernel]
    weight = site.parameter("weight", shape, weight_initializer, like=x, fans=fans)
    bias = (
        site.parameter("bias", [filters], bias_initializer, like=x, fans=fans)
        if bias_initializer is not None
        else None
    )
    attributes = window.attributes(sizes)
    if groups != 1:
        attributes["group"] = groups
    return site.g.Conv(x, weight, bias, **attributes)


def _require_groups(channels: int, groups: int) -> None:
    if channels % groups:
        raise ShapeError(f"expected a number of channels that divides into {groups} groups, got {channels}")
