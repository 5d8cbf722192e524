"""LSTM, in one direction or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np

from onward import nn
from onward.errors import ConfigError
from onward.graph import Array
from onward.keras.layers.base import Layer, Weight
from onward.keras.tensors import KerasTensor

__all__ = ["LSTM", "Bidirectional"]


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
