from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN


@op("CDist", domain=DOMAIN, since=1)
class CDist(Op):
    """Distances of the rows of A [M, C] from those of B [N, C]: [M, N], as |a|² + |b|² - 2 a · b.

    What scikit-learn's converters write for nearest neighbours and Gaussian processes.
    """

    metric: str = "sqeuclidean"

    def canonical(self, g: Builder, A: ir.Value, B: ir.Value) -> ir.Value:
        if self.metric not in ("sqeuclidean", "euclidean"):
            raise UnsupportedError(f"metric {self.metric!r}: sqeuclidean and euclidean are supported")
        of_a = g.ReduceSum(g.Mul(A, A), [1], keepdims=1)
        of_b = g.Transpose(g.ReduceSum(g.Mul(B, B), [1], keepdims=1), perm=[1, 0])
        products = g.MatMul(A, g.Transpose(B, perm=[1, 0]))
        squares = g.Max(g.Sub(g.Add(of_a, of_b), g.Mul(products, 2.0)), 0.0)
        return squares if self.metric == "sqeuclidean" else g.Sqrt(squares)
