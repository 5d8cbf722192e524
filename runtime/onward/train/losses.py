"""Losses: each writes its part of the training step.

Scores for classification have shape [N, C] or [N, C, ...]; their labels are int64 [N, ...]. Every other loss
compares an output with targets of its own type and shape. All losses are means: of elements, or, for
cross-entropy, of labels by their weights. A batch in which no label counts has loss 0 and changes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from onward.autodiff import Weighted
from onward.errors import ConfigError, ShapeError
from onward.graph import Builder, Dim, dims_of, dtype_of
from onward.train._named import create

__all__ = [
    "L1",
    "MSE",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "FunctionLoss",
    "Huber",
    "KLDivergence",
    "Loss",
    "balanced_class_weights",
    "loss_named",
]


class Loss(ABC):
    """A loss; `onward.autodiff.Loss` says what each method gives."""

    @abstractmethod
    def output(self, output: ir.Value) -> ir.Value:
        """The value that the loss is taken of."""

    @abstractmethod
    def target(self, output: ir.Value) -> tuple[ir.DataType, Sequence[Dim]]:
        """Element type and shape of the targets."""

    @abstractmethod
    def build(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value | Weighted:
        """Write the loss: the mean over the batch, a float scalar; `Weighted` where samples weigh unlike."""

    def each(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        """Write the losses that `build` takes the mean of: [N, ...].

        Raises:
            ConfigError: the loss has no such form, and so takes no sample weights.
        """
        raise ConfigError(
            f"{type(self).__name__} takes no sample weights: it has no method `each`, which gives the losses "
            "of single samples"
        )

    def weighted(self, g: Builder, output: ir.Value, target: ir.Value, weights: ir.Value) -> Weighted:
        """Write the loss for samples of these weights, [N]: Σ w_i (mean of sample i's losses) / Σ w_i.

        Places that differ in number between batches, such as the steps of sequences, count one by one.

        Raises:
            ConfigError: the loss cannot tell samples apart.
        """
        each = self.each(g, output, target)
        dims = dims_of(each)
        if not dims:
            raise ConfigError(f"{type(self).__name__} gives one loss for a batch: it takes no sample weights")
        if len(dims) > 1:
            varying = [i for i, d in enumerate(dims) if i and not isinstance(d, int)]
            if varying:
                places = g.ReduceProd(g.Gather(g.shape(each), varying), keepdims=0)
                weights = g.Mul(weights, g.Cast(places, to=int(dtype_of(each))))
            each = g.ReduceMean(each, list(range(1, len(dims))), keepdims=0)
        total = g.ReduceSum(g.Mul(each, weights), keepdims=0)
        return Weighted(total, g.ReduceSum(weights, keepdims=0))


def logits_of(output: ir.Value, activation: str, axis: int = 1) -> ir.Value:
    """The operand of an output's final activation, if that is how it ends; of Softmax along this axis."""
    node = output.producer()
    if node is None or node.domain != "" or node.op_type != activation or node.inputs[0] is None:
        return output
    if activation == "Softmax" and not _over_classes(node, len(dims_of(output) or ()), axis):
        return output
    return node.inputs[0]


def _over_classes(node: ir.Node, rank: int, classes: int) -> bool:
    axis = node.attributes.get_int("axis", -1)
    return rank > 1 and axis % rank == classes % rank


@final
@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy of scores against integer labels.

    A model that ends in Softmax is trained on what it applies Softmax to.

    Attributes:
        label_smoothing: ε: the label has 1 − ε of the target mass, all classes share the rest.
            Source: C. Szegedy et al., "Rethinking the Inception architecture", CVPR 2016, section 7.
        class_weights: for each class, at least 0; the mean divides by the sum of the labels' weights.
        ignore_index: samples with this label do not count.
        axis: of the classes in the scores: 1, or -1 for scores [N, ..., C].
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    ignore_index: int | None = None
    axis: int = 1

    def __post_init__(self) -> None:
        if self.axis not in (1, -1):
            raise ConfigError(f"the axis of cross-entropy must be 1 or -1, got {self.axis}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.class_weights is not None and not all(0 <= w < float("inf") for w in self.class_weights):
            raise ConfigError(f"class_weights must be finite and at least 0, got {self.class_weights}")
        if self.class_weights is not None and not any(self.class_weights):
            raise ConfigError("every class weighs 0; there is nothing to train on")

    def output(self, output: ir.Value) -> ir.Value:
        return logits_of(output, "Softmax", self.axis)

    def target(self, output: ir.Value) -> tuple[ir.DataType, Sequence[Dim]]:
        dims = dims_of(output)
        if dims is None or len(dims) < 2:
            raise ShapeError(f"cross-entropy needs scores [N, C, ...], output {output.name!r} has {dims}")
        axis = self.axis % len(dims)
        classes, rest = dims[axis], (*dims[1:axis], *dims[axis + 1 :])
        if self.class_weights is not None and isinstance(classes, int) and classes != len(self.class_weights):
            raise ConfigError(f"{len(self.class_weights)} class weights for {classes} classes")
        return ir.DataType.INT64, (dims[0], *rest)

    def build(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value | Weighted:
        weights = self._class_weights(g, output)
        if weights is None and self.ignore_index is None:
            return self._reduced(g, output, target, "mean")
        total = self._reduced(g, output, target, "sum")
        return Weighted(total, g.ReduceSum(self._weights_of(g, output, target, weights), keepdims=0))

    def each(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        return self._reduced(g, output, target, "none")

    def weighted(self, g: Builder, output: ir.Value, target: ir.Value, weights: ir.Value) -> Weighted:
        each = self.each(g, output, target)
        rank = len(dims_of(target) or ())
        if rank > 1:
            weights = g.Unsqueeze(weights, list(range(1, rank)))
        of_class = self._class_weights(g, output)
        if of_class is None and self.ignore_index is None:
            mass = weights if rank < 2 else g.Expand(weights, g.shape(target))
        else:
            mass = g.Mul(self._weights_of(g, output, target, of_class), weights)
        return Weighted(g.ReduceSum(g.Mul(each, weights), keepdims=0), g.ReduceSum(mass, keepdims=0))

    def label_weights(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value | None:
        """Write how much each label counts, by its class, and 0 where it is ignored: [N, ...].

        None: all count 1.
        """
        of_class = self._class_weights(g, output)
        if of_class is None and self.ignore_index is None:
            return None
        return self._weights_of(g, output, target, of_class)

    def _reduced(self, g: Builder, output: ir.Value, target: ir.Value, reduction: str) -> ir.Value:
        rank = len(dims_of(output) or ())
        if self.axis == -1 and rank > 2:
            output = g.Transpose(output, perm=[0, rank - 1, *range(1, rank - 1)])
        return g.emit(
            "SoftmaxCrossEntropy",
            output,
            target,
            self._class_weights(g, output),
            domain="ai.onward",
            outputs=2,
            reduction=reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )[0]

    def _class_weights(self, g: Builder, output: ir.Value) -> ir.Value | None:
        return None if self.class_weights is None else g.const(self.class_weights, dtype_of(output))

    def _weights_of(
        self, g: Builder, output: ir.Value, labels: ir.Value, weights: ir.Value | None
    ) -> ir.Value:
        """The weight of each label, by its class; 0 where it does not count: [N, ...]."""
        dtype, zero = dtype_of(output), g.const(0, ir.DataType.INT64)
        valid = None if self.ignore_index is None else g.Not(g.Equal(labels, self.ignore_index))
        if weights is None:
            assert valid is not None
            return g.Cast(valid, to=int(dtype))
        if valid is None:
            return g.Gather(weights, labels)
        return g.Where(valid, g.Gather(weights, g.Where(valid, labels, zero)), 0.0)


class _SameShape(Loss):
    """A loss whose targets have the output's type and shape: the mean of `each`."""

    def build(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        return g.ReduceMean(self.each(g, output, target), keepdims=0)

    def target(self, output: ir.Value) -> tuple[ir.DataType, Sequence[Dim]]:
        dims = dims_of(output)
        if dims is None:
            raise ShapeError(f"the rank of output {output.name!r} is unknown")
        return dtype_of(output), dims


@final
@dataclass(frozen=True)
class BinaryCrossEntropy(_SameShape):
    """−w t log σ(x) − (1 − t) log(1 − σ(x)) of logits x, targets t in [0, 1], w the weight of positives.

    A model that ends in Sigmoid is trained on what it applies Sigmoid to.
    """

    positive_weight: float = 1.0

    def output(self, output: ir.Value) -> ir.Value:
        return logits_of(output, "Sigmoid")

    def each(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        # softplus(x) − x t, in the form that does not overflow: max(x, 0) + log(1 + e^−|x|)
        tail = g.Log(g.Add(g.Exp(g.Neg(g.Abs(output))), 1.0))
        if self.positive_weight == 1:
            return g.Add(g.Sub(g.Relu(output), g.Mul(output, target)), tail)
        weight = g.Add(g.Mul(target, self.positive_weight - 1), 1.0)
        softplus = g.Add(g.Relu(g.Neg(output)), tail)
        return g.Add(g.Mul(g.Sub(1.0, target), output), g.Mul(weight, softplus))


@final
@dataclass(frozen=True)
class MSE(_SameShape):
    """Mean of (y − t)²."""

    def output(self, output: ir.Value) -> ir.Value:
        return output

    def each(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        difference = g.Sub(output, target)
        return g.Mul(difference, difference)


@final
@dataclass(frozen=True)
class L1(_SameShape):
    """Mean of |y − t|."""

    def output(self, output: ir.Value) -> ir.Value:
        return output

    def each(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        return g.Abs(g.Sub(output, target))


@final
@dataclass(frozen=True)
class Huber(_SameShape):
    """Mean of d²/2 where |d| <= delta, else delta (|d| − delta/2), with d = y − t.

    Source: P. J. Huber, "Robust estimation of a location parameter", Ann. Math. Statist. 35, 1964.
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ConfigError(f"the delta of Huber must be above 0, got {self.delta}")

    def output(self, output: ir.Value) -> ir.Value:
        return output

    def each(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        distance = g.Abs(g.Sub(output, target))
        # c (d − c/2) with c = min(d, delta) is both branches at once
        near = g.Min(distance, self.delta)
        return g.Mul(near, g.Sub(distance, g.Mul(near, 0.5)))


@final
@dataclass(frozen=True)
class KLDivergence(_SameShape):
    """KL(t ‖ softmax(x)) of scores x [N, C, ...] and probabilities t: sum over C, mean over the rest."""

    def output(self, output: ir.Value) -> ir.Value:
        return logits_of(output, "Softmax")

    def each(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        positive = g.Greater(target, 0.0)
        safe = g.Where(positive, target, 1.0)
        terms = g.Mul(target, g.Sub(g.Log(safe), g.LogSoftmax(output, axis=1)))
        return g.ReduceSum(terms, [1], keepdims=0)


@final
@dataclass(frozen=True)
class FunctionLoss(Loss):
    """A function of one's own as a loss; `Trainer(model, loss=function)` makes one.

        def log_cosh(g, output, target):  # a value for each element: its mean is minimised
            return g.Log(g.Cosh(g.Sub(output, target)))

    Attributes:
        function: of (g, output, target); `g` writes ONNX operators by their names. It gives losses [N, ...],
            whose mean is taken, or a scalar, which then is the mean over the batch.
        labels: whether targets are class numbers, int64 [N, ...], as for `CrossEntropy`; else they have the
            output's type and shape.
    """

    function: Callable[[Builder, ir.Value, ir.Value], ir.Value]
    labels: bool = False

    def output(self, output: ir.Value) -> ir.Value:
        return output

    def target(self, output: ir.Value) -> tuple[ir.DataType, Sequence[Dim]]:
        return (CrossEntropy() if self.labels else MSE()).target(output)

    def build(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        value = self.each(g, output, target)
        return value if dims_of(value) == () else g.ReduceMean(value, keepdims=0)

    def each(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        value = self.function(g, output, target)
        if not isinstance(value, ir.Value):
            raise ConfigError(
                f"{self} must give a graph value, which `g` writes, not {type(value).__name__}: "
                "g.Abs(g.Sub(output, target)), for one"
            )
        return value

    def __str__(self) -> str:
        return f"loss function {getattr(self.function, '__name__', repr(self.function))!r}"


_NAMES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "mse": MSE,
    "l1": L1,
    "huber": Huber,
    "kl_divergence": KLDivergence,
}


def loss_named(name: str, **options: object) -> Loss:
    """A loss by its name in configuration files.

    Raises:
        ConfigError: an unknown name or option.
    """
    return create("loss", _NAMES, name, options)


def balanced_class_weights(
    labels: np.ndarray[tuple[int], np.dtype[np.int64]], classes: int
) -> tuple[float, ...]:
    """Weights N / (C n_c) that give each class the same total weight; 0 for a class without samples."""
    counts = np.bincount(labels, minlength=classes)
    return tuple(float(len(labels) / (classes * n)) if n else 0.0 for n in counts)
