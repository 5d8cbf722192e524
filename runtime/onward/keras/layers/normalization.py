"""Batch and layer normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onward import nn
from onward.keras.layers.base import Axes, Layer, Weight
from onward.keras.tensors import KerasTensor

__all__ = ["BatchNormalization", "LayerNormalization"]


class BatchNormalization(Layer):
    """Batch normalisation over the last axis; gamma, beta, moving mean and variance, each [C]."""

    def __init__(self, momentum: float = 0.99, epsilon: float = 1e-3, **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.BatchNorm(momentum, epsilon, name=self.name)

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.first()), len(x.shape) > 2)

    def weights(self) -> Sequence[Weight]:
        return [Axes(f"{self.name}.{part}") for part in ("scale", "bias", "running_mean", "running_var")]


class LayerNormalization(Layer):
    """Layer normalisation over the last axis; gamma and beta."""

    def __init__(self, epsilon: float = 1e-3, **options: Any) -> None:
        super().__init__(**options)
        self._layer = nn.LayerNorm(-1, epsilon, name=self.name)

    def call(self, x: KerasTensor) -> KerasTensor:
        return KerasTensor(self._layer(x.last()))

    def weights(self) -> Sequence[Weight]:
        return [Axes(f"{self.name}.{part}") for part in ("scale", "bias")]
