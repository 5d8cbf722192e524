"""What layers share: names, activations, weights in Keras's order of axes."""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from onward import nn
from onward.errors import ConfigError
from onward.graph import Array
from onward.keras.tensors import KerasTensor

__all__ = ["Axes", "Layer", "Weight", "activated", "forget_names", "pairs"]

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


def forget_names() -> None:
    """Let the numbers in the names of layers begin anew."""
    _COUNTS.clear()


class Layer(ABC):
    """A layer, which may be called several times and then shares its weights.

    Args:
        name: its weights in the ONNX model begin with it; made from the class's name and a number by default.
        input_shape: of one sample, for the first layer of a `Sequential`.
    """

    def __init__(self, *, name: str | None = None, input_shape: Sequence[int | None] | None = None) -> None:
        self.name = numbered(type(self).__name__) if name is None else name
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
class Axes(Weight):
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


def numbered(kind: str) -> str:
    base = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=\d)(?=[A-Z][a-z])", "_", kind).lower()
    number = next(_COUNTS[base])
    return base if number == 0 else f"{base}_{number}"


def activated(name: Any, x: KerasTensor, owner: str) -> KerasTensor:
    if name is None or name == "linear":
        return x
    if name not in _ACTIVATIONS:
        raise ConfigError(f"layer {owner!r}: unknown activation {name!r}; known: {', '.join(_ACTIVATIONS)}")
    if name == "softmax":
        return KerasTensor(nn.Softmax()(x.last()))
    return KerasTensor(_ACTIVATIONS[name]()(x.handle), x.channels_first)


def pairs(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
