"""What the operators of classical models share: rows of features, labels, and what is done to scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, ShapeError, UnsupportedError
from onward.graph import Array, Builder, dims_of, dtype_of

TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
"""Values of post_transform; their positions are those of TreeEnsemble."""

_ZERO = 1e-7
"""Scores up to here are zeros to SOFTMAX_ZERO."""

_WINITZKI = 0.147
"""The constant of the approximation of the inverse error function."""


def as_rows(g: Builder, X: ir.Value) -> ir.Value:
    """X as [N, C]; one row is made of [C].

    Raises:
        ShapeError: X is neither.
    """
    dims = dims_of(X)
    if dims is None or len(dims) == 2:
        return X
    if len(dims) == 1:
        return g.Unsqueeze(X, [0])
    raise ShapeError(f"X has {len(dims)} axes; it is [N, C] or [C]")


def as_float(g: Builder, X: ir.Value) -> ir.Value:
    """X in float32."""
    return X if dtype_of(X) == ir.DataType.FLOAT else g.Cast(X, to=int(ir.DataType.FLOAT))


def rows_of(X: Array) -> Array:
    """An array as [N, C]; one row is made of [C].

    Raises:
        ShapeError: it is neither.
    """
    if X.ndim not in (1, 2):
        raise ShapeError(f"X has {X.ndim} axes; it is [N, C] or [C]")
    return X if X.ndim == 2 else X[None]


def matrix(name: str, numbers: Sequence[float], rows: int) -> Array:
    """An attribute as a float32 matrix of so many rows.

    Raises:
        InvalidModelError: its numbers do not make one.
    """
    if rows <= 0 or not numbers or len(numbers) % rows:
        raise InvalidModelError(f"{name} has {len(numbers)} numbers, which do not make {rows} rows")
    return np.asarray(numbers, np.float32).reshape(rows, -1)


def class_labels(ints: Sequence[int] | None, strings: Sequence[str] | None) -> Array:
    """The labels of classes: strings where there are any.

    Raises:
        InvalidModelError: there are none.
    """
    if strings:
        return np.asarray(strings, object)
    if ints:
        return np.asarray(ints, np.int64)
    raise InvalidModelError("it has no class labels")


def named_labels(g: Builder, labels: Array, index: ir.Value) -> ir.Value:
    """The labels that whole numbers in [0, classes) stand for."""
    # strings have no bytes that a shared constant could be found by
    table = g.initializer(g.unique("labels"), labels) if labels.dtype == object else g.const(labels)
    return g.Gather(table, index)


def checked_transform(how: str) -> str:
    """The name of a post_transform.

    Raises:
        InvalidModelError: there is none of the name.
    """
    if how not in TRANSFORMS:
        raise InvalidModelError(f"post_transform {how!r}: it is one of {', '.join(TRANSFORMS)}")
    return how


def transformed(g: Builder, scores: ir.Value, how: str, columns: int) -> ir.Value:
    """Scores [N, columns] after post_transform; a single column knows PROBIT only."""
    how = checked_transform(how)
    if how == "PROBIT":
        return _probit(g, scores)
    if how == "NONE" or columns == 1:
        return scores
    if how == "SOFTMAX":
        return g.Softmax(scores, axis=-1)
    if how == "LOGISTIC":
        return g.Sigmoid(scores)
    return _softmax_zero(g, scores)


def two_columns(g: Builder, score: ir.Value, how: str, complement: bool) -> ir.Value:
    """One score of two classes as a column each.

    Args:
        score: [N, 1].
        how: the post_transform.
        complement: whether the first is 1 − score, not −score, where nothing is transformed.

    Raises:
        UnsupportedError: PROBIT, which has no meaning here.
    """
    how = checked_transform(how)
    if how == "PROBIT":
        raise UnsupportedError("post_transform PROBIT of one score for two classes has no meaning")
    if how == "LOGISTIC":
        return g.Concat(g.Sigmoid(g.Neg(score)), g.Sigmoid(score), axis=1)
    return g.Concat(g.Sub(1.0, score) if complement else g.Neg(score), score, axis=1)


def _softmax_zero(g: Builder, scores: ir.Value) -> ir.Value:
    """Softmax over the scores that are not zero; those that are nearly so are scaled."""
    largest = g.ReduceMax(scores, [-1], keepdims=1)
    counts = g.Greater(g.Abs(scores), _ZERO)
    powers = g.Exp(g.Sub(scores, largest))
    total = g.ReduceSum(g.Where(counts, powers, 0.0), [-1], keepdims=1)
    return g.Div(g.Where(counts, powers, g.Mul(scores, g.Exp(g.Neg(largest)))), total)


def _probit(g: Builder, scores: ir.Value) -> ir.Value:
    """√2 · erf⁻¹(2 p − 1) by Winitzki's approximation, with the constants of onnxruntime."""
    x = g.Sub(g.Mul(scores, 2.0), 1.0)
    log = g.Log(g.Mul(g.Sub(1.0, x), g.Add(x, 1.0)))
    v = g.Add(g.Mul(log, 0.5), 2 / (3.14159 * _WINITZKI))
    root = g.Sqrt(g.Sub(g.Sqrt(g.Sub(g.Mul(v, v), g.Mul(log, 1 / _WINITZKI))), v))
    return g.Mul(g.Where(g.Less(x, 0.0), g.Neg(root), root), 1.41421356)
