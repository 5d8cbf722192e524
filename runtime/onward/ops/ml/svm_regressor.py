from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Dim, Op, dims_of, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._common import matrix
from onward.ops.ml._svm import enough, kernel_values


@op("SVMRegressor", domain=DOMAIN, since=1)
class SVMRegressor(Op):
    """y = Σ coefficients · k(x, support vector) + rho; with one_class its sign, −1 at 0.

    Without support vectors the coefficients are those of the features. As in onnxruntime, post_transform
    has no effect.
    """

    coefficients: tuple[float, ...] | None = None
    kernel_params: tuple[float, ...] | None = None
    kernel_type: str = "LINEAR"
    n_supports: int = 0
    one_class: int = 0
    post_transform: str = "NONE"
    rho: tuple[float, ...] | None = None
    support_vectors: tuple[float, ...] | None = None

    def kernel(self, X: Array) -> Array:
        count = max(self.n_supports, 1)
        weights = enough("coefficients", self.coefficients, count)
        shift = float(enough("rho", self.rho, 1)[0])
        if self.n_supports > 0:
            vectors = matrix("support_vectors", self.support_vectors or (), self.n_supports)
            values = kernel_values(X, vectors, self.kernel_type, self.kernel_params)
            scores = values @ weights[:count, None].astype(np.float64) + shift
        else:
            scores = kernel_values(X, weights[None], "LINEAR", None) + shift
        y = scores.astype(np.float32)
        return np.where(y > 0, np.float32(1), np.float32(-1)) if self.one_class else y

    def infer(self, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        dims = dims_of(X)
        rows = None if dims is None else 1 if len(dims) == 1 else dims[0]
        return [(ir.DataType.FLOAT, (rows, 1))]
