"""What happens to gradients between the backward pass and the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import Builder, dims_of, dtype_of

__all__ = ["Clip", "GradientTransform", "transformed"]


class GradientTransform(Protocol):
    """A function of all gradients, written into the training step's graph.

    It sees the gradient of the mean loss of what an update is made from: of the batch, or of all batches of a
    window where they are accumulated. A transform that halves the gradients of biases:

        def halve_biases(g, gradients):
            return {name: g.Mul(d, 0.5) if name.endswith(".bias") else d for name, d in gradients.items()}

        Trainer(network, gradient_transforms=[halve_biases])
    """

    def __call__(self, g: Builder, gradients: Mapping[str, ir.Value]) -> Mapping[str, ir.Value]:
        """Write what replaces the gradients.

        Args:
            g: writes to the end of the graph.
            gradients: by parameter name, of the parameter's type and shape.

        Returns:
            A value of the same type and shape for each of these names.
        """


@final
@dataclass(frozen=True, slots=True)
class Clip:
    """Gradient clipping: by value, then by the norm over all gradients. A gradient transform.

    Attributes:
        value: clip each element to [−value, value].
        norm: scale all gradients so that their joint Euclidean norm is at most this; the factor is
            min(1, norm / (‖g‖ + 1e-6)), as in torch.
    """

    value: float | None = None
    norm: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "norm"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ConfigError(f"gradient clipping by {name} must be above 0, got {limit}")

    def __call__(self, g: Builder, gradients: Mapping[str, ir.Value]) -> Mapping[str, ir.Value]:
        clipped = dict(gradients)
        if self.value is not None:
            clipped = {name: g.Clip(d, -self.value, self.value) for name, d in clipped.items()}
        if self.norm is not None:
            squares = [g.ReduceSumSquare(d, keepdims=0) for d in clipped.values()]
            norm = g.Sqrt(g.Sum(*squares))
            factor = g.Min(g.Div(self.norm, g.Add(norm, 1e-6)), 1.0)
            clipped = {name: g.Mul(d, factor) for name, d in clipped.items()}
        return clipped


def transformed(
    g: Builder, transforms: Sequence[GradientTransform], gradients: Mapping[str, ir.Value]
) -> Mapping[str, ir.Value]:
    """The gradients after each transform in turn.

    Raises:
        ConfigError: a transform leaves a name out, or gives no value of its type and shape.
    """
    for transform in transforms:
        label = getattr(transform, "__name__", type(transform).__name__)
        with g.scope(label):
            given = transform(g, gradients)
        gradients = {name: _checked(label, name, old, given) for name, old in gradients.items()}
    return gradients


def _checked(label: str, name: str, old: ir.Value, given: object) -> ir.Value:
    if not isinstance(given, Mapping) or name not in given:
        raise ConfigError(
            f"gradient transform {label} gives no gradient of {name!r}; it has to return one for each name"
        )
    new = given[name]
    if not isinstance(new, ir.Value):
        raise ConfigError(
            f"gradient transform {label}: the gradient of {name!r} is a {type(new).__name__}, "
            "not a value of the graph"
        )
    shape, wanted = dims_of(new), dims_of(old)
    if dtype_of(new) != dtype_of(old) or (shape is not None and shape != wanted):
        raise ConfigError(
            f"gradient transform {label}: the gradient of {name!r} is {dtype_of(new).name.lower()}"
            f"{list(shape or ())}, the parameter is {dtype_of(old).name.lower()}{list(wanted or ())}"
        )
    return new
