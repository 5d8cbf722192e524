"""What is computed of windows or of all positions, and borders."""

from __future__ import annotations

from typing import Any

from onward import nn
from onward.keras.layers.base import Layer, pairs
from onward.keras.tensors import KerasTensor

__all__ = [
    "AveragePooling1D",
    "AveragePooling2D",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "MaxPooling1D",
    "MaxPooling2D",
    "ZeroPadding2D",
]


class _Spatial(Layer):
    """A layer without weights over channels first."""

    _layer: Any

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.first()), True)


class _MaxPooling(_Spatial):
    """Maxima of windows over any number of axes."""

    _make: Any

    def __init__(
        self, pool_size: Any = 2, strides: Any = None, padding: Any = "valid", **options: Any
    ) -> None:
        super().__init__(**options)
        self._layer = self._make(pairs(pool_size), pairs(strides), padding)


class MaxPooling1D(_MaxPooling):
    """Maxima of windows: [N, L, C]."""

    _make = nn.MaxPool1D


class MaxPooling2D(_MaxPooling):
    """Maxima of windows: [N, H, W, C]."""

    _make = nn.MaxPool2D


class _AveragePooling(_Spatial):
    """Means of windows over any number of axes."""

    _make: Any

    def __init__(self, pool_size: Any, strides: Any = None, padding: Any = "valid", **options: Any) -> None:
        super().__init__(**options)
        self._layer = self._make(pairs(pool_size), pairs(strides), padding)


class AveragePooling1D(_AveragePooling):
    """Means of windows: [N, L, C]."""

    _make = nn.AveragePool1D


class AveragePooling2D(_AveragePooling):
    """Means of windows: [N, H, W, C]."""

    _make = nn.AveragePool2D


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
