"""Activations, dropout, scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward import nn
from onward.keras.layers.base import Layer, activated
from onward.keras.tensors import KerasTensor
from onward.nn.trace import Site

__all__ = ["ELU", "Activation", "Dropout", "LeakyReLU", "ReLU", "Rescaling", "Softmax"]


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
        return activated("softmax", x, self.name)


class Activation(Layer):
    """An activation by its name."""

    def __init__(self, activation: str, **options: Any) -> None:
        super().__init__(**options)
        self._activation = activation

    def call(self, x: KerasTensor) -> KerasTensor:
        return activated(self._activation, x, self.name)


class Rescaling(Layer):
    """x * scale + offset, computed in float32: bytes may come in as they are."""

    def __init__(self, scale: float, offset: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self._layer = _ScaleAndShift(float(scale), float(offset))

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.handle), x.channels_first)


@final
@dataclass(frozen=True, eq=False)
class _ScaleAndShift(nn.UnaryLayer):
    """x * scale + offset in float32."""

    scale: float
    offset: float

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        g = site.g
        y = x if x.dtype == ir.DataType.FLOAT else g.Cast(x, to=ir.DataType.FLOAT)
        y = g.Mul(y, np.float32(self.scale))
        return y if self.offset == 0 else g.Add(y, np.float32(self.offset))
