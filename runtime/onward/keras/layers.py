"""Layers with Keras's names, arguments, defaults and weight layouts."""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward import nn
from onward.errors import ConfigError
from onward.graph import Array
from onward.keras.tensors import Input, KerasTensor
from onward.nn.initializers import Uniform
from onward.nn.trace import Site, Tensor

__all__ = [
    "ELU",
    "LSTM",
    "Activation",
    "Add",
    "AveragePooling1D",
    "AveragePooling2D",
    "BatchNormalization",
    "Bidirectional",
    "Concatenate",
    "Conv1D",
    "Conv2D",
    "Conv2DTranspose",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "Input",
    "Layer",
    "LayerNormalization",
    "LeakyReLU",
    "MaxPooling1D",
    "MaxPooling2D",
    "Permute",
    "ReLU",
    "Rescaling",
    "Reshape",
    "SeparableConv2D",
    "Softmax",
    "ZeroPadding2D",
]

_COUNTS: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)
_ACTIVATIONS: Mapping[str, Any] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softmax": nn.Softmax,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "softplus": nn.Softplus,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
}


class Layer(ABC):
    """A layer, which may be called several times and then shares its weights.

    Args:
        name: its weights in the ONNX model begin with it; made from the class's name and a number by default.
        input_shape: of one sample, for the first layer of a `Sequential`.
    """

    def __init__(self, *, name: str | None = None, input_shape: Sequence[int | None] | None = None) -> None:
        self.name = _numbered(type(self).__name__) if name is None else name
        self.input_shape = input_shape

    @abstractmethod
    def call(self, x: KerasTensor) -> KerasTensor:
        """Write the layer."""

    def __call__(self, inputs: KerasTensor) -> KerasTensor:
        """Add the layer to the network of its input.

        Raises:
            ShapeError: the input does not fit; the message names the layer.
        """
        if not isinstance(inputs, KerasTensor):
            raise ConfigError(
                f"layer {self.name!r}: is called on what Input or a layer gave, "
                f"not on {type(inputs).__name__}"
            )
        return self.call(inputs)

    def weights(self) -> Sequence[Weight]:
        """Its weights in Keras's order."""
        return ()


class Weight(ABC):
    """A weight: its name in the ONNX model, and how its array turns to Keras's and back."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def to_keras(self, array: Array) -> Array:
        """Keras's layout: a copy."""

    @abstractmethod
    def from_keras(self, array: Array, like: Array) -> Array:
        """The ONNX model's layout; `like` is the array that is replaced."""


@final
class _Axes(Weight):
    """A weight whose axes Keras has in another order."""

    def __init__(self, name: str, order: Sequence[int] | None = None) -> None:
        super().__init__(name)
        self._order = order

    def to_keras(self, array: Array) -> Array:
        return array.copy() if self._order is None else np.ascontiguousarray(array.transpose(self._order))

    def from_keras(self, array: Array, like: Array) -> Array:
        if self._order is not None:
            array = array.transpose(np.argsort(self._order))
        return np.ascontiguousarray(array, like.dtype)


def _numbered(kind: str) -> str:
    base = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=\d)(?=[A-Z][a-z])", "_", kind).lower()
    number = next(_COUNTS[base])
    return base if number == 0 else f"{base}_{number}"


def _activated(name: Any, x: KerasTensor, owner: str) -> KerasTensor:
    if name is None or name == "linear":
        return x
    if name not in _ACTIVATIONS:
        raise ConfigError(f"layer {owner!r}: unknown activation {name!r}; known: {', '.join(_ACTIVATIONS)}")
    if name == "softmax":
        return KerasTensor(nn.Softmax()(x.last()))
    return KerasTensor(_ACTIVATIONS[name]()(x.handle), x.channels_first)


def _pairs(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Dense(Layer):
    """y = activation(x W + b) over the last axis; kernel [in, units], bias [units]."""

    def __init__(
        self,
        units: int,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._activation = activation
        self._bias = use_bias
        self._layer = nn.Dense(
            units,
            bias=use_bias,
            weight_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            name=self.name,
        )
        self._rank = 2

    def call(self, x: KerasTensor) -> KerasTensor:
        self._rank = len(x.shape)
        return _activated(self._activation, KerasTensor(self._layer(x.last())), self.name)

    def weights(self) -> Sequence[Weight]:
        kernel = _Axes(f"{self.name}.weight", (1, 0) if self._rank == 2 else None)
        return [kernel, *([_Axes(f"{self.name}.bias")] if self._bias else [])]


class _Conv(Layer):
    """What convolutions share; kernel [k..., in, filters], bias [filters]."""

    _layer: Any
    _order: tuple[int, ...]

    def _set(self, activation: str | None, use_bias: bool, order: tuple[int, ...]) -> None:
        self._activation, self._bias, self._order = activation, use_bias, order

    def call(self, x: KerasTensor) -> KerasTensor:
        return _activated(self._activation, KerasTensor(self._layer(x.first()), True), self.name)

    def weights(self) -> Sequence[Weight]:
        kernel = _Axes(f"{self.name}.weight", self._order)
        return [kernel, *([_Axes(f"{self.name}.bias")] if self._bias else [])]


class Conv1D(_Conv):
    """Convolution over one axis: [N, L, C] -> [N, L', filters]."""

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
        self._layer = nn.Conv1D(
            filters,
            _pairs(kernel_size),
            _pairs(strides),
            padding,
            _pairs(dilation_rate),
            groups,
            bias=use_bias,
            weight_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            name=self.name,
        )
        self._set(activation, use_bias, (2, 1, 0))


class Conv2D(_Conv):
    """Convolution over two axes: [N, H, W, C] -> [N, H', W', filters]."""

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: Any = "valid",
        dilation_rate: Any = (1, 1),
        groups: int = 1,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._layer = nn.Conv2D(
            filters,
            _pairs(kernel_size),
            _pairs(strides),
            padding,
            _pairs(dilation_rate),
            groups,
            bias=use_bias,
            weight_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            name=self.name,
        )
        self._set(activation, use_bias, (2, 3, 1, 0))


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
        self._layer = nn.ConvTranspose2D(
            filters,
            _pairs(kernel_size),
            _pairs(strides),
            padding,
            bias=use_bias,
            weight_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            name=self.name,
        )
        self._set(activation, use_bias, (2, 3, 1, 0))


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
        self._multiplier = depth_multiplier
        self._layer = nn.DepthwiseConv2D(
            kernel_size=_pairs(kernel_size),
            strides=_pairs(strides),
            padding=padding,
            multiplier=depth_multiplier,
            bias=use_bias,
            weight_initializer=depthwise_initializer,
            bias_initializer=bias_initializer,
            name=self.name,
        )
        self._set(activation, use_bias, (2, 3, 0, 1))

    def weights(self) -> Sequence[Weight]:
        kernel = _Depthwise(f"{self.name}.weight", self._multiplier)
        return [kernel, *([_Axes(f"{self.name}.bias")] if self._bias else [])]


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


class _Spatial(Layer):
    """A layer without weights over channels first."""

    _layer: Any

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.first()), True)


class MaxPooling1D(_Spatial):
    """Maxima of windows: [N, L, C]."""

    def __init__(
        self, pool_size: Any = 2, strides: Any = None, padding: Any = "valid", **options: Any
    ) -> None:
        super().__init__(**options)
        self._layer = nn.MaxPool1D(_pairs(pool_size), _pairs(strides), padding)


class MaxPooling2D(_Spatial):
    """Maxima of windows: [N, H, W, C]."""

    def __init__(
        self, pool_size: Any = (2, 2), strides: Any = None, padding: Any = "valid", **options: Any
    ) -> None:
        super().__init__(**options)
        self._layer = nn.MaxPool2D(_pairs(pool_size), _pairs(strides), padding)


class AveragePooling1D(_Spatial):
    """Means of windows: [N, L, C]."""

    def __init__(self, pool_size: Any, strides: Any = None, padding: Any = "valid", **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.AveragePool1D(_pairs(pool_size), _pairs(strides), padding)


class AveragePooling2D(_Spatial):
    """Means of windows: [N, H, W, C]."""

    def __init__(self, pool_size: Any, strides: Any = None, padding: Any = "valid", **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.AveragePool2D(_pairs(pool_size), _pairs(strides), padding)


class ZeroPadding2D(_Spatial):
    """Zeros around images: [N, H, W, C]."""

    def __init__(self, padding: Any = (1, 1), **options: Any) -> None:
        super().__init__(**options)
        sides = (padding, padding) if isinstance(padding, int) else tuple(padding)
        pads = [(p, p) if isinstance(p, int) else tuple(p) for p in sides]
        self._layer = nn.Pad(((0, 0), *pads))


class _Global(Layer):
    """Over all positions: [N, ..., C] -> [N, C]."""

    _make: Any

    def __init__(self, keepdims: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._keepdims = keepdims
        self._layer = self._make(keepdims=keepdims)

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.first()), self._keepdims)


class GlobalAveragePooling1D(_Global):
    """The mean over all positions: [N, L, C] -> [N, C]."""

    _make = nn.GlobalAveragePool


class GlobalAveragePooling2D(_Global):
    """The mean over all pixels: [N, H, W, C] -> [N, C]."""

    _make = nn.GlobalAveragePool


class GlobalMaxPooling1D(_Global):
    """The maximum over all positions: [N, L, C] -> [N, C]."""

    _make = nn.GlobalMaxPool


class GlobalMaxPooling2D(_Global):
    """The maximum over all pixels: [N, H, W, C] -> [N, C]."""

    _make = nn.GlobalMaxPool


class Flatten(Layer):
    """[N, a, b, ...] -> [N, a * b * ...], in the order of channels last."""

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(nn.Flatten()(x.last()))


class Reshape(Layer):
    """[N, ...] -> [N, *target_shape]; one extent may be -1."""

    def __init__(self, target_shape: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.Reshape(tuple(target_shape))

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.last()))


class Permute(Layer):
    """The axes after the batch in another order, counted from 1."""

    def __init__(self, dims: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.Transpose((0, *dims))

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.last()))


class _Elementwise(Layer):
    """A function of each element; any layout will do."""

    _layer: Any

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.handle), x.channels_first)


class Dropout(_Elementwise):
    """Zeroes a share of the elements while training, and scales the others up."""

    def __init__(self, rate: float, **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.Dropout(float(rate))


class ReLU(_Elementwise):
    """max(x, 0)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.ReLU()


class LeakyReLU(_Elementwise):
    """x where x >= 0, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.3, **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.LeakyReLU(float(negative_slope))


class ELU(_Elementwise):
    """x where x > 0, else alpha * (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.ELU(float(alpha))


class Softmax(Layer):
    """exp(x) / sum(exp(x)) over the last axis."""

    def call(self, x: KerasTensor) -> KerasTensor:
        return _activated("softmax", x, self.name)


class Activation(Layer):
    """An activation by its name."""

    def __init__(self, activation: str, **options: Any) -> None:
        super().__init__(**options)
        self._activation = activation

    def call(self, x: KerasTensor) -> KerasTensor:
        return _activated(self._activation, x, self.name)


class Rescaling(Layer):
    """x * scale + offset, computed in float32: bytes may come in as they are."""

    def __init__(self, scale: float, offset: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self._layer = _Affine(float(scale), float(offset))

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.handle), x.channels_first)


@final
@dataclass(frozen=True, eq=False)
class _Affine(nn.UnaryLayer):
    """x * scale + offset in float32."""

    scale: float
    offset: float

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        g = site.g
        y = x if x.dtype == ir.DataType.FLOAT else g.Cast(x, to=ir.DataType.FLOAT)
        y = g.Mul(y, np.float32(self.scale))
        return y if self.offset == 0 else g.Add(y, np.float32(self.offset))


class BatchNormalization(Layer):
    """Batch normalisation over the last axis; gamma, beta, moving mean and variance, each [C]."""

    def __init__(self, momentum: float = 0.99, epsilon: float = 1e-3, **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.BatchNorm(momentum, epsilon, name=self.name)

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.first()), len(x.shape) > 2)

    def weights(self) -> Sequence[Weight]:
        return [_Axes(f"{self.name}.{part}") for part in ("scale", "bias", "running_mean", "running_var")]


class LayerNormalization(Layer):
    """Layer normalisation over the last axis; gamma and beta."""

    def __init__(self, epsilon: float = 1e-3, **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.LayerNorm(-1, epsilon, name=self.name)

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.last()))

    def weights(self) -> Sequence[Weight]:
        return [_Axes(f"{self.name}.{part}") for part in ("scale", "bias")]


class Embedding(Layer):
    """Rows of a table by token number: [N, ...] -> [N, ..., output_dim]."""

    def __init__(self, input_dim: int, output_dim: int, **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.Embedding(
            input_dim, output_dim, weight_initializer=Uniform(-0.05, 0.05), name=self.name
        )

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.last()))

    def weights(self) -> Sequence[Weight]:
        return [_Axes(f"{self.name}.weight")]


class LSTM(Layer):
    """Long short-term memory; kernel [in, 4 units], recurrent kernel [units, 4 units], bias [4 units]."""

    def __init__(
        self, units: int, return_sequences: bool = False, *, _directions: int = 1, **options: Any
    ) -> None:
        super().__init__(**options)
        self.units, self.return_sequences, self._directions = units, return_sequences, _directions
        self._layer = nn.LSTM(units, _directions == 2, return_sequences, name=self.name)

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.last()))

    def weights(self) -> Sequence[Weight]:
        parts = ("weight", "recurrent_weight", "bias")
        return [
            _Gates(f"{self.name}.{part}", self.units, direction)
            for direction in range(self._directions)
            for part in parts
        ]


@final
class _Gates(Weight):
    """One direction's part of an LSTM's weights: ONNX's gates are i, o, f, c; Keras's i, f, c, o."""

    _ORDER = (0, 2, 3, 1)

    def __init__(self, name: str, units: int, direction: int) -> None:
        super().__init__(name)
        self._units, self._direction = units, direction
        self._bias = name.endswith(".bias")

    def _turned(self, a: Array, order: Sequence[int]) -> Array:
        gates = a.reshape(4, self._units, *a.shape[1:])
        return gates[list(order)].reshape(a.shape)

    def to_keras(self, array: Array) -> Array:
        a = array[self._direction]
        if self._bias:  # of the input and of the state, which Keras has as one
            half = 4 * self._units
            return self._turned(a[:half] + a[half:], self._ORDER)
        return np.ascontiguousarray(self._turned(a, self._ORDER).T)

    def from_keras(self, array: Array, like: Array) -> Array:
        whole = like.copy()
        back = np.argsort(self._ORDER).tolist()
        if self._bias:
            whole[self._direction] = np.concatenate([self._turned(array, back), np.zeros_like(array)])
        else:
            whole[self._direction] = self._turned(np.ascontiguousarray(array.T), back)
        return whole


class Bidirectional(Layer):
    """An LSTM over the sequence and one against it, joined along the last axis."""

    def __init__(self, layer: LSTM, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(layer, LSTM):
            raise ConfigError(f"Bidirectional takes an LSTM, not {type(layer).__name__}")
        self._both = LSTM(layer.units, layer.return_sequences, _directions=2, name=self.name)

    def call(self, x: KerasTensor) -> KerasTensor:
        return self._both(x)

    def weights(self) -> Sequence[Weight]:
        return self._both.weights()


class _Joined(Layer):
    """A layer of several inputs."""

    @abstractmethod
    def join(self, handles: Sequence[Tensor], channels_first: bool) -> Tensor:
        """Write the layer."""

    def call(self, x: KerasTensor) -> KerasTensor:
        raise ConfigError(f"layer {self.name!r}: is called on a list of inputs")

    def __call__(self, inputs: Any) -> KerasTensor:
        values = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if len(values) < 2 or not all(isinstance(v, KerasTensor) for v in values):
            raise ConfigError(f"layer {self.name!r}: is called on a list of two inputs or more")
        first = all(v.channels_first for v in values)
        handles = [v.handle if first else v.last() for v in values]
        return KerasTensor(self.join(handles, first), first)


class Add(_Joined):
    """The sum of inputs of one shape."""

    def join(self, handles: Sequence[Tensor], channels_first: bool) -> Tensor:
        return nn.Add()(handles)


class Concatenate(_Joined):
    """Inputs one after another along an axis, the last by default."""

    def __init__(self, axis: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self._axis = axis

    def __call__(self, inputs: Any) -> KerasTensor:
        values = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if self._axis != -1:
            values = [KerasTensor(v.last()) if isinstance(v, KerasTensor) else v for v in values]
        return super().__call__(values)

    def join(self, handles: Sequence[Tensor], channels_first: bool) -> Tensor:
        return nn.Concat(1 if channels_first else self._axis)(handles)
