"""What happens to gradients between the backward pass and the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import Builder, dims_of, dtype_of, numpy_dtype, static_shape

__all__ = ["Clip", "Collective", "GradientTransform", "buckets_of", "static_dims", "transformed"]


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
        return self.parts(g, gradients, lambda squares: g.Sum(*squares))

    def parts(
        self,
        g: Builder,
        gradients: Mapping[str, ir.Value],
        total: Callable[[Sequence[ir.Value]], ir.Value],
    ) -> Mapping[str, ir.Value]:
        """The same of gradients of which there are parts here.

        Args:
            g: writes to the end of the graph.
            gradients: the parts.
            total: the sum of all parts' squares, from those of these, scalars.
        """
        clipped = dict(gradients)
        if self.value is not None:
            clipped = {name: g.Clip(d, -self.value, self.value) for name, d in clipped.items()}
        if self.norm is not None:
            squares = [g.ReduceSumSquare(d, keepdims=0) for d in clipped.values()]
            norm = g.Sqrt(total(squares))
            factor = g.Min(g.Div(self.norm, g.Add(norm, 1e-6)), 1.0)
            clipped = {name: g.Mul(d, factor) for name, d in clipped.items()}
        return clipped


@final
@dataclass(frozen=True, slots=True)
class Collective:
    """A function of another library works on gradients while the backward pass goes on. A gradient transform.

    Gradients of one element type are put side by side in memory, in the order in which the backward pass
    gives them, in buckets. When a bucket is full, the function is started on it, as a gapless vector, by
    `StartCall`; before the first update, `WaitCall`s bring all buckets back. Buckets have the tags 0, 1, 2, …
    in the order in which they are started.

    Attributes:
        function: its name at `onward.engine.register_foreign`.
        bucket_bytes: a bucket is closed once it holds as many; a gradient is never cut.

    A run that ends because the function failed leaves the state as it was.
    """

    function: str
    bucket_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        if not self.function:
            raise ConfigError("a collective needs the name of a function")
        if self.bucket_bytes < 1:
            raise ConfigError(f"bucket_bytes must be at least 1, got {self.bucket_bytes}")

    def __call__(self, g: Builder, gradients: Mapping[str, ir.Value]) -> Mapping[str, ir.Value]:
        waited: dict[str, ir.Value] = {}
        started = [
            (
                bucket,
                tag,
                g.onward.StartCall(*(gradients[n] for n in bucket), function=self.function, tag=tag),
            )
            for tag, bucket in enumerate(buckets_of(g, gradients, self.bucket_bytes))
        ]
        blocks = [g.onward.WaitCall(block, function=self.function, tag=tag) for _, tag, block in started]
        for (bucket, *_), block in zip(started, blocks, strict=True):
            start = end = 0
            for name in bucket:
                shape = static_dims(name, gradients[name])
                end += math.prod(shape)
                waited[name] = g.Reshape(g.Slice(block, [start], [end]), list(shape))
                start = end
        return waited


def buckets_of(g: Builder, gradients: Mapping[str, ir.Value], limit: int) -> list[list[str]]:
    """The names of each bucket's gradients, in the order in which the graph computes them.

    Args:
        g: of the graph.
        gradients: by name.
        limit: a bucket is closed once it holds so many bytes.
    """
    positions = {node: i for i, node in enumerate(g.graph)}
    made = {name: d.producer() for name, d in gradients.items()}
    order = sorted(gradients, key=lambda name: -1 if (node := made[name]) is None else positions[node])
    open_: dict[ir.DataType, list[str]] = {}
    held: dict[ir.DataType, int] = {}
    buckets: list[list[str]] = []
    for name in order:
        d = gradients[name]
        kind = dtype_of(d)
        open_.setdefault(kind, []).append(name)
        held[kind] = held.get(kind, 0) + math.prod(static_dims(name, d)) * numpy_dtype(kind).itemsize
        if held[kind] >= limit:
            buckets.append(open_.pop(kind))
            del held[kind]
    return [*buckets, *open_.values()]


def static_dims(name: str, gradient: ir.Value) -> tuple[int, ...]:
    """The shape of a gradient.

    Raises:
        ConfigError: it is not fixed.
    """
    if (shape := static_shape(gradient)) is None:
        raise ConfigError(f"the gradient of {name!r} has no fixed shape, which a collective needs")
    return shape


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
