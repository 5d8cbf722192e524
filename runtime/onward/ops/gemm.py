from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._floats import widened


@op("Gemm", since=(7, 9, 11, 13))
class Gemm(Op):
    """Y = alpha · A' · B' + beta · C, A' and B' transposed where the attributes say so."""

    alpha: float = 1.0
    beta: float = 1.0
    transA: int = 0
    transB: int = 0

    @widened
    def kernel(self, A: Array, B: Array, C: Array | None = None) -> Array:
        y = np.matmul(A.T if self.transA else A, B.T if self.transB else B)
        if self.alpha != 1:
            y = (y * self.alpha).astype(A.dtype, copy=False)
        if C is None or self.beta == 0:
            return y
        return y + (C if self.beta == 1 else (C * self.beta).astype(A.dtype, copy=False))

    def lower(
        self, static: Static, outputs: Values, A: ir.Value, B: ir.Value, C: ir.Value | None = None
    ) -> requests.Product | requests.Body:
        columns = static.shape(outputs[0])[-1:]
        one_row = C is None or static.shape(C) in (columns, (1, *columns))
        if self.alpha != 1 or not one_row or (C is not None and self.beta != 1):
            return requests.Body()
        return requests.Product(outputs[0], A, B, C, bool(self.transA), bool(self.transB))

    def expand(self, g: Builder, A: ir.Value, B: ir.Value, C: ir.Value | None = None) -> ir.Value:
        """A product, and what is done with it element by element."""
        y = g.Gemm(A, B, transA=self.transA, transB=self.transB)
        if self.alpha != 1:
            y = g.Mul(y, self.alpha)
        if C is None or self.beta == 0:
            return y
        return g.Add(y, C if self.beta == 1 else g.Mul(C, self.beta))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, A: ir.Value, B: ir.Value, C: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        if self.transA:
            dA = g.Gemm(B, dy, alpha=self.alpha, transA=self.transB, transB=1)
        else:
            dA = g.Gemm(dy, B, alpha=self.alpha, transB=1 - self.transB)
        if self.transB:
            dB = g.Gemm(dy, A, alpha=self.alpha, transA=1, transB=self.transA)
        else:
            dB = g.Gemm(A, dy, alpha=self.alpha, transA=1 - self.transA)
        if C is None:
            return dA, dB
        return dA, dB, dy if self.beta == 1 else g.Mul(dy, self.beta)


@op("Gemm", since=(1, 6))
class Gemm1(Op):
    """Gemm that says whether C is broadcast."""

    alpha: float = 1.0
    beta: float = 1.0
    broadcast: int = 0
    transA: int = 0
    transB: int = 0

    def canonical(self, g: Builder, A: ir.Value, B: ir.Value, C: ir.Value) -> ir.Value:
        return g.Gemm(A, B, C, alpha=self.alpha, beta=self.beta, transA=self.transA, transB=self.transB)
