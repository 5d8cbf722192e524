"""Requests for reductions, and for what reads rows again after one: softmax, normalizations, losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onward.graph.expression import Expression
from onward.graph.requests.base import Request, Static, Values, first_misfit

__all__ = [
    "BatchNormalization",
    "BatchNormalizationGradient",
    "CrossEntropy",
    "CrossEntropyGradient",
    "GroupNormalization",
    "LayerNormalization",
    "LayerNormalizationGradient",
    "Position",
    "RMSNormalization",
    "Reduction",
    "Softmax",
]


@dataclass(frozen=True)
class Reduction(Request):
    """y = after(`how` of before(x) over axes, the number of elements of each); no axes are all of them.

    Attributes:
        how: "sum", "prod", "max" or "min".
        before, after: what is computed of each element, and of each result and the number of its elements.
    """

    y: ir.Value
    x: ir.Value
    axes: tuple[int, ...]
    how: str
    before: Callable[[Expression], Expression]
    after: Callable[[Expression, int], Expression]


@dataclass(frozen=True)
class Position(Request):
    """The position along an axis of the largest ("max") or smallest ("min") element, the first or last one;
    a NaN counts as it."""

    y: ir.Value
    x: ir.Value
    axis: int
    how: str
    last: bool = False


@dataclass(frozen=True)
class Softmax(Request):
    """exp(x) / Σ exp(x), the sum over axes, or its logarithm."""

    y: ir.Value
    x: ir.Value
    axes: tuple[int, ...]
    logarithm: bool = False


@dataclass(frozen=True)
class LayerNormalization(Request):
    """Y, and Mean and InvStdDev where they are named, over the axes from `axis` on."""

    outputs: Values
    x: ir.Value
    scale: ir.Value
    bias: ir.Value | None
    axis: int
    epsilon: float


@dataclass(frozen=True)
class LayerNormalizationGradient(Request):
    """dX, and dScale and dB where they are named."""

    outputs: Values
    dy: ir.Value
    x: ir.Value
    scale: ir.Value
    axis: int
    epsilon: float

    def misfit(self, static: Static) -> str | None:
        return first_misfit(static, ("dY", self.dy, static.shape(self.x)))


@dataclass(frozen=True)
class RMSNormalization(Request):
    """y = x / sqrt(mean(x²) + epsilon) · scale, over the axes from `axis` on."""

    y: ir.Value
    x: ir.Value
    scale: ir.Value
    axis: int
    epsilon: float


@dataclass(frozen=True)
class GroupNormalization(Request):
    """The statistics of each sample's groups of channels, then scale and bias of each channel."""

    y: ir.Value
    x: ir.Value
    scale: ir.Value
    bias: ir.Value
    groups: int
    epsilon: float

    def misfit(self, static: Static) -> str | None:
        channels = (static.shape(self.x)[1],)
        return first_misfit(static, ("scale", self.scale, channels), ("bias", self.bias, channels))


@dataclass(frozen=True)
class BatchNormalization(Request):
    """y = scale · (x − mean) / sqrt(variance + epsilon) + bias, a channel at a time.

    In training the statistics are the batch's, and outputs[1:] are the new running ones where they are named:
    momentum · old + (1 − momentum) · batch.
    """

    outputs: Values
    x: ir.Value
    scale: ir.Value
    bias: ir.Value
    mean: ir.Value
    variance: ir.Value
    epsilon: float
    momentum: float
    training: bool

    def misfit(self, static: Static) -> str | None:
        channels = (static.shape(self.x)[1],) if len(static.shape(self.x)) > 1 else (1,)
        named = {"scale": self.scale, "B": self.bias, "mean": self.mean, "var": self.variance}
        return first_misfit(static, *((name, value, channels) for name, value in named.items()))


@dataclass(frozen=True)
class BatchNormalizationGradient(Request):
    """dX, dScale and dB of batch normalization in training."""

    outputs: Values
    dy: ir.Value
    x: ir.Value
    scale: ir.Value
    epsilon: float

    def misfit(self, static: Static) -> str | None:
        shape = static.shape(self.x)
        channels = (shape[1],) if len(shape) > 1 else (1,)
        return first_misfit(static, ("dY", self.dy, shape), ("scale", self.scale, channels))


@dataclass(frozen=True)
class CrossEntropy(Request):
    """Softmax cross-entropy of scores [N, C] against labels [N]; and the logarithms of the probabilities,
    where they are named. The reduction is "none" (losses [N]), "sum" or "mean"."""

    outputs: Values
    scores: ir.Value
    labels: ir.Value
    smoothing: float
    reduction: str

    def misfit(self, static: Static) -> str | None:
        return first_misfit(static, ("labels", self.labels, static.shape(self.scores)[:1]))


@dataclass(frozen=True)
class CrossEntropyGradient(Request):
    """(p − target) dloss, divided by N for the mean; dloss is [N] where the reduction is "none"."""

    dscores: ir.Value
    dloss: ir.Value
    log_prob: ir.Value
    labels: ir.Value
    smoothing: float
    reduction: str

    def misfit(self, static: Static) -> str | None:
        samples = static.shape(self.log_prob)[:1]
        loss = samples if self.reduction == "none" else ()
        return first_misfit(static, ("labels", self.labels, samples), ("dloss", self.dloss, loss))
