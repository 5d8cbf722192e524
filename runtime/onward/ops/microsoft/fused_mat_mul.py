from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, Op, dims_of, op
from onward.ops.microsoft import DOMAIN


@op("FusedMatMul", domain=DOMAIN, since=1)
class FusedMatMul(Op):
    """Y = alpha · A' · B', transposed in the last two axes; transBatch moves the first axis before these."""

    weight_operands = ("A", "B")

    alpha: float = 1.0
    transA: int = 0
    transB: int = 0
    transBatchA: int = 0
    transBatchB: int = 0

    def canonical(
        self,
        g: Builder,
        A: ir.Value,
        B: ir.Value,
    ) -> ir.Value:
        left = _turned(g, A, self.transA, self.transBatchA)
        y = g.MatMul(left, _turned(g, B, self.transB, self.transBatchB))
        return y if self.alpha == 1 else g.Mul(y, self.alpha)


def _turned(g: Builder, x: ir.Value, matrix: int, batch: int) -> ir.Value:
    """With `batch`, [M, *, K] is read as [*, M, K]; `matrix` exchanges the last two axes of that."""
    if not matrix and not batch:
        return x
    dims = dims_of(x)
    if dims is None:
        raise UnsupportedError(f"the rank of {x.name!r} is not known")
    axes = list(range(len(dims)))
    if len(axes) < 2:
        return x
    if batch:
        axes = [*axes[1:-1], 0, axes[-1]]
    if matrix:
        axes[-2:] = axes[:-3:-1]
    return g.Transpose(x, perm=axes)
