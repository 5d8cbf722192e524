from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Unsupported, Values


def _wide(per_class: Array, rank: int) -> Array:
    """A vector over classes, shaped to broadcast against [N, C, ...]."""
    return per_class.reshape(1, -1, *[1] * (rank - 2))


def _targets(
    logp: Array, labels: Array, weights: Array | None, ignore_index: int | None, smoothing: float
) -> tuple[Array, Array]:
    """The target mass of each class, [N, C, ...], and the weight of each label, [N, ...]."""
    dtype, classes = logp.dtype, logp.shape[1]
    valid = np.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    outside = valid & ((labels < 0) | (labels >= classes))
    if outside.any():
        first = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(f"label {int(labels[first])} at position {list(first)} is not in 0…{classes - 1}")
    safe = np.where(valid, labels, 0)
    of_class = np.ones(classes, dtype) if weights is None else weights
    mass = np.where(valid, of_class[safe], dtype.type(0)).astype(dtype, copy=False)
    uniform = _wide(of_class * dtype.type(smoothing / classes), logp.ndim) * np.expand_dims(valid, 1)
    target = np.broadcast_to(uniform, logp.shape).astype(dtype)
    index = np.expand_dims(safe, 1)
    at_label = np.take_along_axis(target, index, 1) + np.expand_dims(mass * dtype.type(1 - smoothing), 1)
    np.put_along_axis(target, index, at_label, 1)
    return target, mass


def _target_bodies(
    g: Builder,
    logp: ir.Value,
    labels: ir.Value,
    weights: ir.Value | None,
    ignore_index: int | None,
    smoothing: float,
) -> tuple[ir.Value, ir.Value]:
    dims = dims_of(logp) or ()
    classes = g.dim(logp, 1)
    dtype = dtype_of(logp)
    labels = g.Cast(labels, to=int(ir.DataType.INT64))
    valid = None if ignore_index is None else g.Not(g.Equal(labels, ignore_index))
    safe = labels if valid is None else g.Where(valid, labels, g.const(0, ir.DataType.INT64))
    hot = g.OneHot(safe, classes, g.const([0.0, 1.0], dtype), axis=1)
    hot.shape = ir.Shape(dims)
    inner = list(range(1, len(dims) - 1))
    wide = None if weights is None else g.Unsqueeze(weights, [0, *[i + 1 for i in inner]])
    weighted = hot if wide is None else g.Mul(hot, wide)
    if valid is not None:
        weighted = g.Mul(weighted, g.Cast(g.Unsqueeze(valid, [1]), to=int(dtype)))
    mass = g.ReduceSum(weighted, [1], keepdims=0)
    if smoothing == 0:
        return weighted, mass
    share = g.Div(g.const(smoothing, dtype), g.Cast(classes, to=int(dtype)))
    spread = share if wide is None else g.Mul(wide, share)
    if valid is not None:
        spread = g.Mul(g.Cast(g.Unsqueeze(valid, [1]), to=int(dtype)), spread)
    return g.Add(g.Mul(weighted, 1 - smoothing), spread), mass


def _variant(
    static: Static, scores: ir.Value, weights: ir.Value | None, ignore_index: int | None
) -> Unsupported | None:
    if weights is None and ignore_index is None and len(static.shape(scores)) == 2:
        return None
    return Unsupported("class weights, ignored labels or more than two axes")


@op("SoftmaxCrossEntropy", domain=ONWARD_DOMAIN, since=1, multiple_outputs=True)
class SoftmaxCrossEntropy(Op):
    """Loss of scores [N, C, ...] against integer labels [N, ...], and the logarithms of the probabilities.

    With w the class weights (1 by default), ε the label smoothing and labels equal to ignore_index left out:
    loss_i = −(1 − ε) w[y_i] log p_i[y_i] − (ε / C) Σ_c w[c] log p_i[c]. The mean divides by Σ_i w[y_i].
    """

    reduction: str = "mean"
    ignore_index: int | None = None
    label_smoothing: float = 0.0

    def kernel(self, scores: Array, labels: Array, weights: Array | None = None) -> tuple[Array, Array]:
        shifted = scores - scores.max(axis=1, keepdims=True, initial=-np.inf)
        logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        target, mass = _targets(logp, labels, weights, self.ignore_index, self.label_smoothing)
        each = -np.where(target != 0, target * logp, scores.dtype.type(0)).sum(axis=1)
        if self.reduction == "none":
            return each, logp
        total = each.sum()
        return np.asarray(total / mass.sum() if self.reduction == "mean" else total, scores.dtype), logp

    def lower(
        self,
        static: Static,
        outputs: Values,
        scores: ir.Value,
        labels: ir.Value,
        weights: ir.Value | None = None,
    ) -> requests.CrossEntropy | Unsupported:
        if other := _variant(static, scores, weights, self.ignore_index):
            return other
        return requests.CrossEntropy(outputs, scores, labels, self.label_smoothing, self.reduction)

    def gradient(
        self,
        g: Builder,
        dy: tuple[ir.Value | None, ...],
        y: tuple[ir.Value, ...],
        scores: ir.Value,
        labels: ir.Value,
        weights: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        if dy[0] is None or dy[1] is not None:
            raise UnsupportedError(
                "the gradient of SoftmaxCrossEntropy by log_prob does not exist: use LogSoftmax for what "
                "depends on it"
            )
        dscores = g.onward.SoftmaxCrossEntropyGrad(
            dy[0],
            y[1],
            labels,
            weights,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        return dscores, None, None

    def infer(
        self, scores: ir.Value, labels: ir.Value, weights: ir.Value | None = None
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        loss = dims_of(labels) if self.reduction == "none" else ()
        return [(dtype_of(scores), loss), (dtype_of(scores), dims_of(scores))]

    def expand(
        self, g: Builder, scores: ir.Value, labels: ir.Value, weights: ir.Value | None = None
    ) -> tuple[ir.Value, ...]:
        logp = g.LogSoftmax(scores, axis=1)
        target, mass = _target_bodies(g, logp, labels, weights, self.ignore_index, self.label_smoothing)
        terms = g.Where(g.Equal(target, 0.0), 0.0, g.Mul(target, logp))
        each = g.Neg(g.ReduceSum(terms, [1], keepdims=0))
        if self.reduction == "none":
            return each, logp
        total = g.ReduceSum(each, keepdims=0)
        return (g.Div(total, g.ReduceSum(mass, keepdims=0)) if self.reduction == "mean" else total), logp


@op("SoftmaxCrossEntropyGrad", domain=ONWARD_DOMAIN, since=1)
class SoftmaxCrossEntropyGrad(Op):
    """SoftmaxCrossEntropy by its scores: dloss (p Σ_c t_c − t), t the target mass of each class."""

    reduction: str = "mean"
    ignore_index: int | None = None
    label_smoothing: float = 0.0

    def kernel(self, dloss: Array, log_prob: Array, labels: Array, weights: Array | None = None) -> Array:
        target, mass = _targets(log_prob, labels, weights, self.ignore_index, self.label_smoothing)
        d = np.exp(log_prob) * target.sum(axis=1, keepdims=True) - target
        if self.reduction == "none":
            return d * np.expand_dims(dloss, 1)
        return d * (dloss / mass.sum() if self.reduction == "mean" else dloss)

    def lower(
        self,
        static: Static,
        outputs: Values,
        dloss: ir.Value,
        log_prob: ir.Value,
        labels: ir.Value,
        weights: ir.Value | None = None,
    ) -> requests.CrossEntropyGradient | Unsupported:
        if other := _variant(static, log_prob, weights, self.ignore_index):
            return other
        return requests.CrossEntropyGradient(
            outputs[0], dloss, log_prob, labels, self.label_smoothing, self.reduction
        )

    def infer(
        self, dloss: ir.Value, log_prob: ir.Value, labels: ir.Value, weights: ir.Value | None = None
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(dtype_of(log_prob), dims_of(log_prob))]

    def expand(
        self,
        g: Builder,
        dloss: ir.Value,
        log_prob: ir.Value,
        labels: ir.Value,
        weights: ir.Value | None = None,
    ) -> ir.Value:
        target, mass = _target_bodies(g, log_prob, labels, weights, self.ignore_index, self.label_smoothing)
        total = g.ReduceSum(target, [1], keepdims=1)
        d = g.Sub(g.Mul(g.Exp(log_prob), total), target)
        if self.reduction == "none":
            return g.Mul(d, g.Unsqueeze(dloss, [1]))
        scale = g.Div(dloss, g.ReduceSum(mass, keepdims=0)) if self.reduction == "mean" else dloss
        return g.Mul(d, scale)
