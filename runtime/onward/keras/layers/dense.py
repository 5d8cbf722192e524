"""Products over the last axis, and vectors of indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onward import nn
from onward.keras.layers.base import Axes, Layer, Weight, activated
from onward.keras.tensors import KerasTensor
from onward.nn.initializers import Uniform

__all__ = ["Dense", "Embedding"]


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
        return activated(self._activation, KerasTensor(self._layer(x.last())), self.name)

    def weights(self) -> Sequence[Weight]:
        kernel = Axes(f"{self.name}.weight", (1, 0) if self._rank == 2 else None)
        return [kernel, *([Axes(f"{self.name}.bias")] if self._bias else [])]


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
        return [Axes(f"{self.name}.weight")]
