from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, ShapeError
from onward.graph import Builder, Op, dims_of, dtype_of, numpy_dtype, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._common import as_float


@op("Scaler", domain=DOMAIN, since=1)
class Scaler(Op):
    """Y = (X − offset) · scale in float32, each one number or one a feature."""

    offset: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        if not self.offset or not self.scale:
            raise InvalidModelError("offset and scale are needed")
        dims = dims_of(X)
        if max(len(self.offset), len(self.scale)) > 1 and dims is not None and len(dims) > 2:
            raise ShapeError(f"X has {len(dims)} axes; with an offset for each feature it is [N, C] or [C]")
        if dtype_of(X) != ir.DataType.DOUBLE:
            X = as_float(g, X)
        offset, scale = (np.asarray(v, numpy_dtype(dtype_of(X))) for v in (self.offset, self.scale))
        return as_float(g, g.Mul(g.Sub(X, offset), scale))
