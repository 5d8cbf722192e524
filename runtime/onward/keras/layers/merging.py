"""Layers of several inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from onward import nn
from onward.errors import ConfigError
from onward.keras.layers.base import Layer
from onward.keras.tensors import KerasTensor
from onward.nn.trace import Tensor

__all__ = ["Add", "Concatenate"]


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
