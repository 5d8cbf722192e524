from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, dtype_of, is_float, op
from onward.ops.ml import DOMAIN


@op("Binarizer", domain=DOMAIN, since=1)
class Binarizer(Op):
    """1 where X > threshold, else 0, of X's type."""

    threshold: float = 0.0

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        # a threshold may have a fraction
        x = X if is_float(X) else g.Cast(X, to=int(ir.DataType.DOUBLE))
        return g.Cast(g.Greater(x, self.threshold), to=int(dtype_of(X)))
