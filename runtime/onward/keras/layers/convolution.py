"""Convolutions over one or two axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np

from onward import nn
from onward.graph import Array
from onward.keras.layers.base import Axes, Layer, Weight, activated, pairs
from onward.keras.tensors import KerasTensor

__all__ = ["Conv1D", "Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "SeparableConv2D"]


class _Conv(Layer):
    """What convolutions share; kernel [k..., in, filters], bias [filters]."""

    _layer: Any
    _activation: str | None
    _bias: bool
    _kernel: Weight

    def call(self, x: KerasTensor) -> KerasTensor:
        return activated(self._activation, KerasTensor(self._layer(x.first()), True), self.name)

    def weights(self) -> Sequence[Weight]:
        return [self._kernel, *([Axes(f"{self.name}.bias")] if self._bias else [])]


class _Plain(_Conv):
    """A convolution of any number of axes."""

    _make: Any
    _order: tuple[int, ...]
    """Axes of the ONNX kernel in Keras's order."""

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: Any = "valid",
        dilation_rate: Any = 1,
        groups: int = 1,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._activation, self._bias = activation, use_bias
        self._kernel = Axes(f"{self.name}.weight", self._order)
        self._layer = self._make(
            filters,
            pairs(kernel_size),
            pairs(strides),
            padding,
            pairs(dilation_rate),
            groups,
            bias=use_bias,
            weight_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            name=self.name,
        )


class Conv1D(_Plain):
    """Convolution over one axis: [N, L, C] -> [N, L', filters]."""

    _make = nn.Conv1D
    _order = (2, 1, 0)


class Conv2D(_Plain):
    """Convolution over two axes: [N, H, W, C] -> [N, H', W', filters]."""

    _make = nn.Conv2D
    _order = (2, 3, 1, 0)


class Conv2DTranspose(_Conv):
    """Transposed convolution: [N, H, W, C] -> [N, H', W', filters]; kernel [kH, kW, filters, in]."""

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: Any = "valid",
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._activation, self._bias = activation, use_bias
        self._kernel = Axes(f"{self.name}.weight", (2, 3, 1, 0))
        self._layer = nn.ConvTranspose2D(
            filters,
            pairs(kernel_size),
            pairs(strides),
            padding,
            bias=use_bias,
            weight_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            name=self.name,
        )


class DepthwiseConv2D(_Conv):
    """A convolution of every channel with kernels of its own; kernel [kH, kW, in, multiplier]."""

    def __init__(
        self,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: Any = "valid",
        depth_multiplier: int = 1,
        activation: str | None = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._activation, self._bias = activation, use_bias
        self._kernel = _Depthwise(f"{self.name}.weight", depth_multiplier)
        self._layer = nn.DepthwiseConv2D(
            kernel_size=pairs(kernel_size),
            strides=pairs(strides),
            padding=padding,
            multiplier=depth_multiplier,
            bias=use_bias,
            weight_initializer=depthwise_initializer,
            bias_initializer=bias_initializer,
            name=self.name,
        )


@final
class _Depthwise(Weight):
    """[C * m, 1, kH, kW], in Keras [kH, kW, C, m]."""

    def __init__(self, name: str, multiplier: int) -> None:
        super().__init__(name)
        self._multiplier = multiplier

    def to_keras(self, array: Array) -> Array:
        split = array.reshape(-1, self._multiplier, *array.shape[2:])
        return np.ascontiguousarray(split.transpose(2, 3, 0, 1))

    def from_keras(self, array: Array, like: Array) -> Array:
        return np.ascontiguousarray(array.transpose(2, 3, 0, 1).reshape(like.shape), like.dtype)


class SeparableConv2D(Layer):
    """A depthwise convolution, then one of 1x1."""

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: Any = "valid",
        depth_multiplier: int = 1,
        activation: str | None = None,
        use_bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._depthwise = DepthwiseConv2D(
            kernel_size, strides, padding, depth_multiplier, use_bias=False, name=f"{self.name}_depthwise"
        )
        self._pointwise = Conv2D(filters, 1, activation=activation, use_bias=use_bias, name=self.name)

    def call(self, x: KerasTensor) -> KerasTensor:
        return self._pointwise(self._depthwise(x))

    def weights(self) -> Sequence[Weight]:
        return [*self._depthwise.weights(), *self._pointwise.weights()]
