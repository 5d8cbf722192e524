from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, UnsupportedError
from onward.graph import Array, Dim, Op, dims_of, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._common import checked_transform, class_labels, matrix
from onward.ops.ml._svm import coupled, enough, kernel_values
from onward.ops.ml._transforms import transformed_scores

_SURE = 1e-7
"""Probabilities of pairs are this far from 0 and 1."""


@op("SVMClassifier", domain=DOMAIN, since=1)
class SVMClassifier(Op):
    """Labels and scores by one machine a pair of classes, or without vectors_per_class by one a class.

    Y is the label that most pairs vote for, the first of equals. Z are class probabilities where there are
    prob_a and prob_b (Platt's logistic function of each pair, coupled), else each pair's value; of two
    classes [−z, z], its logistic function with LOGISTIC, or [1 − z, z] with SOFTMAX. Without vectors the
    label is that of the highest score; of two classes the second where that is above 0, or 0.5 if no
    coefficient is negative.
    """

    classlabels_ints: tuple[int, ...] | None = None
    classlabels_strings: tuple[str, ...] | None = None
    coefficients: tuple[float, ...] | None = None
    kernel_params: tuple[float, ...] | None = None
    kernel_type: str = "LINEAR"
    post_transform: str = "NONE"
    prob_a: tuple[float, ...] | None = None
    prob_b: tuple[float, ...] | None = None
    rho: tuple[float, ...] | None = None
    support_vectors: tuple[float, ...] | None = None
    vectors_per_class: tuple[int, ...] | None = None

    def kernel(self, X: Array) -> tuple[Array, Array]:
        labels = class_labels(self.classlabels_ints, self.classlabels_strings)
        if sum(self.vectors_per_class or ()) == 0:
            chosen, scores = self._by_class(X, len(labels))
        else:
            chosen, scores = self._by_pairs(X, len(labels))
        return labels[chosen], scores.astype(np.float32, copy=False)

    def _by_class(self, X: Array, count: int) -> tuple[Array, Array]:
        weights = matrix("coefficients", self.coefficients or (), count)
        scores = kernel_values(X, weights, "LINEAR", None) + enough("rho", self.rho, 1)[0]
        scores = scores.astype(np.float32)
        chosen = scores.argmax(1)
        if count == 2:
            best = scores.max(1)
            chosen = np.where(best >= 0.5 if weights.min() >= 0 else best > 0, 1, chosen)
        return chosen, transformed_scores(scores, self.post_transform)

    def _by_pairs(self, X: Array, count: int) -> tuple[Array, Array]:
        sizes = self.vectors_per_class or ()
        if len(sizes) != count or min(sizes) < 0 or count < 2:
            raise InvalidModelError(f"vectors_per_class has {len(sizes)} numbers for {count} class labels")
        pairs = list(itertools.combinations(range(count), 2))
        vectors = matrix("support_vectors", self.support_vectors or (), sum(sizes))
        weights = self._pair_weights(pairs, sizes)
        rho = enough("rho", self.rho, len(pairs))[: len(pairs)]
        kernels = kernel_values(X, vectors, self.kernel_type, self.kernel_params).astype(np.float32)
        sums = kernels.astype(np.float64) @ weights.T.astype(np.float64) + rho
        votes = np.zeros((len(sums), count), np.int64)
        for k, (i, j) in enumerate(pairs):
            votes[:, i] += sums[:, k] > 0
            votes[:, j] += ~(sums[:, k] > 0)
        chosen, scores = votes.argmax(1), sums.astype(np.float32)
        if self.prob_a:
            return chosen, transformed_scores(self._probabilities(scores, pairs, count), self.post_transform)
        if count > 2:
            return chosen, transformed_scores(scores, self.post_transform)
        how = checked_transform(self.post_transform)
        if how == "PROBIT":
            raise UnsupportedError("post_transform PROBIT of one score for two classes has no meaning")
        both = np.concatenate([1 - scores if how.startswith("SOFTMAX") else -scores, scores], 1)
        return chosen, transformed_scores(both, how) if how == "LOGISTIC" else both

    def _pair_weights(self, pairs: list[tuple[int, int]], sizes: tuple[int, ...]) -> Array:
        """A row of coefficients of all vectors for each pair: those of other classes are 0."""
        total, count = sum(sizes), len(sizes)
        given = enough("coefficients", self.coefficients, (count - 1) * total)
        rows = given[: (count - 1) * total].reshape(count - 1, total)
        ends = np.cumsum(sizes)
        spans = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        weights = np.zeros((len(pairs), total), np.float32)
        for k, (i, j) in enumerate(pairs):
            weights[k, spans[i]] = rows[j - 1, spans[i]]
            weights[k, spans[j]] = rows[i, spans[j]]
        return weights

    def _probabilities(self, scores: Array, pairs: list[tuple[int, int]], count: int) -> Array:
        a, b = (enough(n, v, len(pairs)) for n, v in (("prob_a", self.prob_a), ("prob_b", self.prob_b)))
        r = np.zeros((len(scores), count, count), np.float32)
        for k, (i, j) in enumerate(pairs):
            z = scores[:, k] * a[k] + b[k]
            tail = np.exp(-np.abs(z))
            p = np.where(z > 0, tail, 1) / (1 + tail)
            p = np.clip(p, np.float32(_SURE), np.float32(1 - _SURE))
            r[:, i, j], r[:, j, i] = p, 1 - p
        return coupled(r)

    def infer(self, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        dims = dims_of(X)
        rows = None if dims is None else 1 if len(dims) == 1 else dims[0]
        count = len(class_labels(self.classlabels_ints, self.classlabels_strings))
        pairs = sum(self.vectors_per_class or ()) > 0 and not self.prob_a and count > 2
        kind = ir.DataType.STRING if self.classlabels_strings else ir.DataType.INT64
        columns = count * (count - 1) // 2 if pairs else count
        return [(kind, (rows,)), (ir.DataType.FLOAT, (rows, columns))]
