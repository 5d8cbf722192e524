from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._philox import uniform, uniform_body


@op("PhiloxDropout", domain=ONWARD_DOMAIN, since=1)
class PhiloxDropout(Op):
    """Y = X / (1 − ratio) where u >= ratio, else 0.

    u is uniform in [0, 1), a function of (seed, step, salt, position): seed and step are int64 scalars, salt
    tells the dropouts of one graph apart. Where X holds the samples from the a-th on, n of them, of a batch,
    `share` is int64 [a, n], and positions are those in the whole batch: they begin at a · size of X / n.
    Nothing is stored for the backward pass: the gradient draws the
    same numbers again.
    """

    ratio: float
    salt: int

    def kernel(self, X: Array, seed: Array, step: Array, share: Array | None = None) -> Array:
        first = 0 if share is None else int(share[0]) * X.size // max(int(share[1]), 1)
        u = uniform(int(seed), int(step), self.salt, X.shape, first)
        scaled = X * X.dtype.type(1.0 / (1.0 - self.ratio))
        return np.where(u >= np.float32(self.ratio), scaled, X.dtype.type(0))

    def lower(
        self,
        static: Static,
        outputs: Values,
        X: ir.Value,
        seed: ir.Value,
        step: ir.Value,
        share: ir.Value | None = None,
    ) -> requests.Dropout:
        return requests.Dropout(outputs[0], X, seed, step, self.ratio, self.salt, share)

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        X: ir.Value,
        seed: ir.Value,
        step: ir.Value,
        share: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        operands = (seed, step) if share is None else (seed, step, share)
        dx = g.onward.PhiloxDropout(dy, *operands, ratio=self.ratio, salt=self.salt)
        return dx, *(None for _ in operands)

    def infer(
        self, X: ir.Value, seed: ir.Value, step: ir.Value, share: ir.Value | None = None
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(dtype_of(X), dims_of(X))]

    def expand(
        self, g: Builder, X: ir.Value, seed: ir.Value, step: ir.Value, share: ir.Value | None = None
    ) -> ir.Value:
        first = None
        if share is not None:
            start, count = (g.Gather(share, g.const(i, ir.DataType.INT64)) for i in range(2))
            first = g.Div(g.Mul(start, g.Size(X)), g.Max(count, g.const(1, ir.DataType.INT64)))
        u = uniform_body(g, seed, step, self.salt, X, first)
        kept = g.GreaterOrEqual(u, self.ratio)
        return g.Where(kept, g.Mul(X, 1.0 / (1.0 - self.ratio)), 0.0)
