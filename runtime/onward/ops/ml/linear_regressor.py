from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Builder, Op, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._common import as_float, as_rows, matrix, transformed


@op("LinearRegressor", domain=DOMAIN, since=1)
class LinearRegressor(Op):
    """Y = post_transform(X · coefficientsᵀ + intercepts), coefficients of [targets, C]."""

    coefficients: tuple[float, ...] | None = None
    intercepts: tuple[float, ...] | None = None
    post_transform: str = "NONE"
    targets: int = 1

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        weights = matrix("coefficients", self.coefficients or (), self.targets)
        shift = None
        if self.intercepts:
            if len(self.intercepts) != self.targets:
                raise InvalidModelError(f"{len(self.intercepts)} intercepts for {self.targets} targets")
            shift = np.asarray(self.intercepts, np.float32)
        scores = g.Gemm(as_float(g, as_rows(g, X)), weights, shift, transB=1)
        return transformed(g, scores, self.post_transform, self.targets)
