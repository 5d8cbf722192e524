from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, ShapeError
from onward.graph import Builder, Op, dims_of, dtype_of, is_float, numpy_dtype, op
from onward.ops.ml import DOMAIN


@op("Imputer", domain=DOMAIN, since=1)
class Imputer(Op):
    """X with the imputed value, one or one a feature, where it is the replaced value or both are NaN."""

    imputed_value_floats: tuple[float, ...] | None = None
    imputed_value_int64s: tuple[int, ...] | None = None
    replaced_value_float: float = 0.0
    replaced_value_int64: int = 0

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        floats = is_float(X)
        imputed = self.imputed_value_floats if floats else self.imputed_value_int64s
        if not imputed:
            kind = "floats" if floats else "int64s"
            raise InvalidModelError(f"X is {dtype_of(X).name.lower()}: imputed_value_{kind} is needed")
        dims = dims_of(X)
        if len(imputed) > 1 and dims is not None and len(dims) > 2:
            raise ShapeError(f"X has {len(dims)} axes; with a value for each feature it is [N, C] or [C]")
        values = np.asarray(imputed, numpy_dtype(dtype_of(X)))
        replaced = self.replaced_value_float if floats else self.replaced_value_int64
        hit = g.IsNaN(X) if floats and math.isnan(replaced) else g.Equal(X, replaced)
        return g.Where(hit, values if len(values) > 1 else values.reshape(()), X)
