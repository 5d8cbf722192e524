"""Pooling. Layout [N, C, spatial...]; channels are pooled each for itself."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, final

import onnx_ir as ir

from onward.errors import ConfigError
from onward.nn.layer import Layer, UnaryLayer
from onward.nn.layers._checks import require_float, require_rank
from onward.nn.layers._window import Ints, Padding, Window
from onward.nn.trace import Site

__all__ = [
    "AveragePool1D",
    "AveragePool2D",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "MaxPool1D",
    "MaxPool2D",
]


@dataclass(frozen=True, eq=False)
class _MaxPool(UnaryLayer, ABC):
    """What MaxPool1D and MaxPool2D share."""

    spatial: ClassVar[int]

    pool_size: Ints
    strides: Ints | None = None
    padding: Padding = "valid"
    dilation: Ints = 1

    def __post_init__(self) -> None:
        self._window()

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        sizes = require_rank(x, 2 + self.spatial)[2:]
        return site.g.MaxPool(x, **self._window().attributes(sizes))

    def _window(self) -> Window:
        return _window(self, self.spatial, self.pool_size, self.strides, self.dilation, self.padding)


@final
@dataclass(frozen=True, eq=False)
class MaxPool1D(_MaxPool):
    """The window's maximum: [N, C, L] -> [N, C, L'].

    Args:
        pool_size: the window's extent.
        strides: the window's step; `pool_size` if absent. Smaller steps overlap.
        padding: see `Padding`; padded cells never win. Below the window's reach.
        dilation: the distance between the window's cells.
    """

    spatial = 1


@final
@dataclass(frozen=True, eq=False)
class MaxPool2D(_MaxPool):
    """The window's maximum: [N, C, H, W] -> [N, C, H', W']. Arguments as for `MaxPool1D`."""

    spatial = 2


@dataclass(frozen=True, eq=False)
class _AveragePool(UnaryLayer, ABC):
    """What AveragePool1D and AveragePool2D share."""

    spatial: ClassVar[int]

    pool_size: Ints
    strides: Ints | None = None
    padding: Padding = "valid"
    count_include_pad: bool = False

    def __post_init__(self) -> None:
        self._window()

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        sizes = require_rank(x, 2 + self.spatial)[2:]
        included = 1 if self.count_include_pad else None
        return site.g.AveragePool(x, count_include_pad=included, **self._window().attributes(sizes))

    def _window(self) -> Window:
        return _window(self, self.spatial, self.pool_size, self.strides, 1, self.padding)


@final
@dataclass(frozen=True, eq=False)
class AveragePool1D(_AveragePool):
    """The window's mean: [N, C, L] -> [N, C, L'].

    Args:
        pool_size: the window's extent.
        strides: the window's step; `pool_size` if absent.
        padding: see `Padding`. Below the window's extent.
        count_include_pad: whether padded cells count in the mean, as zeros.
    """

    spatial = 1


@final
@dataclass(frozen=True, eq=False)
class AveragePool2D(_AveragePool):
    """The window's mean: [N, C, H, W] -> [N, C, H', W']. Arguments as for `AveragePool1D`."""

    spatial = 2


@final
@dataclass(frozen=True, eq=False)
class GlobalMaxPool(UnaryLayer):
    """The maximum of each channel: [N, C, L] or [N, C, H, W] -> [N, C], or [N, C, 1, ...] with `keepdims`."""

    keepdims: bool = False

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        require_rank(x, 3, 4)
        y = site.g.GlobalMaxPool(x)
        return y if self.keepdims else site.g.Flatten(y, axis=1)


@final
@dataclass(frozen=True, eq=False)
class GlobalAveragePool(UnaryLayer):
    """The mean of each channel: [N, C, L] or [N, C, H, W] -> [N, C], or [N, C, 1, ...] with `keepdims`."""

    keepdims: bool = False

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        require_rank(x, 3, 4)
        y = site.g.GlobalAveragePool(x)
        return y if self.keepdims else site.g.Flatten(y, axis=1)


def _window(
    layer: Layer, spatial: int, pool_size: Ints, strides: Ints | None, dilation: Ints, padding: Padding
) -> Window:
    window = Window.of(
        layer, spatial, pool_size, strides if strides is not None else pool_size, dilation, padding
    )
    if not isinstance(window.padding, str) and any(
        pad >= reach for pair, reach in zip(window.padding, window.reach, strict=True) for pad in pair
    ):
        raise ConfigError(f"{layer.label}: padding {padding} must be below the window {window.reach}")
    return window
