"""What a layer is: a frozen description that writes its nodes into a graph when it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onward.errors import ConfigError, ShapeError
from onward.graph import dims_of
from onward.nn.trace import Site, Tensor, check_name, describe

__all__ = ["Layer", "UnaryLayer"]


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """Base of every layer. Calling a layer adds it to the network that its inputs belong to.

    A layer that is called twice shares its parameters. Without a name, it is called by its class and a
    number: `conv2d_1`. Its parameters are `<name>.weight`, `<name>.bias`, ..., its nodes `<name>/<operator>`.
    """

    name: str | None = field(default=None, kw_only=True)

    @abstractmethod
    def build(self, site: Site, inputs: Sequence[ir.Value]) -> ir.Value:
        """Write the nodes of the layer and return its output.

        Raises:
            ShapeError: the inputs do not fit; the message need not name the layer.
        """

    def __call__(self, *inputs: Tensor | Sequence[Tensor]) -> Tensor:
        """Add the layer.

        Args:
            inputs: handles, or lists of them.

        Raises:
            ShapeError: an input's shape or dtype does not fit; the message names the layer and the input.
            ConfigError: the layer's name is malformed or taken.
        """
        tensors = [t for x in inputs for t in ([x] if isinstance(x, Tensor) else x)]
        kind = type(self).__name__
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise ConfigError(
                    f"{self.label}: is called on handles that nn.Input or a layer gave, "
                    f"not on {type(tensor).__name__}"
                )
        if not tensors:
            raise ConfigError(f"{self.label}: is called on no input")
        if self.name is not None:
            check_name(f"layer {kind}", self.name)
        trace = tensors[0].trace
        placement = trace.place(self)
        where = f"layer {placement.name!r} ({kind}), input {', '.join(describe(t.value) for t in tensors)}"
        with trace.builder.scope(placement.name):
            try:
                value = self.build(Site(trace.builder, trace, placement), [t.value for t in tensors])
            except (ShapeError, ConfigError) as error:
                raise type(error)(f"{where}: {error}") from error
        if dims_of(value) is None:
            raise ShapeError(f"{where}: the rank of the output does not follow from the input")
        trace.commit(placement)
        return Tensor(value, trace)

    @property
    def label(self) -> str:
        """The layer in messages, before it has its name in a network."""
        kind = type(self).__name__
        return f"layer {kind}" if self.name is None else f"layer {self.name!r} ({kind})"


@dataclass(frozen=True, eq=False)
class UnaryLayer(Layer):
    """Base of the layers that have one input."""

    @abstractmethod
    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        """Write the nodes of the layer and return its output; as `build`."""

    def build(self, site: Site, inputs: Sequence[ir.Value]) -> ir.Value:
        if len(inputs) != 1:
            raise ShapeError(f"takes one input, got {len(inputs)}")
        return self.apply(site, inputs[0])
