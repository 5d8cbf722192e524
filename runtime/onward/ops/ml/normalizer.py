from __future__ import annotations

import onnx_ir as ir

from onward.errors import InvalidModelError, ShapeError
from onward.graph import Builder, Op, dims_of, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._common import as_float


@op("Normalizer", domain=DOMAIN, since=1)
class Normalizer(Op):
    """Each row by its largest element (MAX, not of magnitudes), Σ |x| (L1) or √Σ x² (L2), in float32.

    A row whose divisor is 0 stays.
    """

    norm: str = "MAX"

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        dims = dims_of(X)
        if dims is not None and len(dims) not in (1, 2):
            raise ShapeError(f"X has {len(dims)} axes; it is [N, C] or [C]")
        x = as_float(g, X)
        if self.norm == "MAX":
            size = g.ReduceMax(x, [-1], keepdims=1)
        elif self.norm == "L1":
            size = g.ReduceSum(g.Abs(x), [-1], keepdims=1)
        elif self.norm == "L2":
            size = g.Sqrt(g.ReduceSum(g.Mul(x, x), [-1], keepdims=1))
        else:
            raise InvalidModelError(f"norm {self.norm!r}: it is MAX, L1 or L2")
        return g.Div(x, g.Where(g.Equal(size, 0.0), 1.0, size))
