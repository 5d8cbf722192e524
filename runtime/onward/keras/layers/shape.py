"""Other shapes of the same elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onward import nn
from onward.keras.layers.base import Layer
from onward.keras.tensors import KerasTensor

__all__ = ["Flatten", "Permute", "Reshape"]


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
