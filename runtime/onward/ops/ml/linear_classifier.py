from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Builder, Op, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._common import (
    as_float,
    as_rows,
    class_labels,
    matrix,
    named_labels,
    transformed,
    two_columns,
)


@op("LinearClassifier", domain=DOMAIN, since=1)
class LinearClassifier(Op):
    """Labels and scores of X · coefficientsᵀ + intercepts.

    Y is the label of the highest score; of one score for two classes the second where it is above 0. The
    scores of that one are [1 − z, z] of its z, the logistic function's value with LOGISTIC.
    """

    classlabels_ints: tuple[int, ...] | None = None
    classlabels_strings: tuple[str, ...] | None = None
    coefficients: tuple[float, ...]
    intercepts: tuple[float, ...] | None = None
    multi_class: int = 0
    post_transform: str = "NONE"

    def canonical(self, g: Builder, X: ir.Value) -> tuple[ir.Value, ir.Value]:
        labels = class_labels(self.classlabels_ints, self.classlabels_strings)
        count = len(self.intercepts) if self.intercepts else len(labels)
        if count > len(labels) or (count == 1 and len(labels) != 2):
            raise InvalidModelError(f"{count} intercepts and {len(labels)} class labels do not fit")
        weights = matrix("coefficients", self.coefficients, count)
        shift = np.asarray(self.intercepts, np.float32) if self.intercepts else None
        scores = g.Gemm(as_float(g, as_rows(g, X)), weights, shift, transB=1)
        if count > 1:
            chosen = g.ArgMax(scores, axis=1, keepdims=0)
            return named_labels(g, labels, chosen), transformed(g, scores, self.post_transform, count)
        chosen = g.Cast(g.Squeeze(g.Greater(scores, 0.0), [1]), to=int(ir.DataType.INT64))
        return named_labels(g, labels, chosen), two_columns(g, scores, self.post_transform, complement=True)
