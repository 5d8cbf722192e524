from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._normalization import normalize, normalize_gradient
from onward.ops._shape import require_shape


@op("LayerNormalizationGrad", since=1, domain=ONWARD_DOMAIN, multiple_outputs=True)
class LayerNormalizationGrad(Op):
    """Gradients of LayerNormalization; its statistics are computed again from X.

    With x̂ = (X − mean) / sqrt(var + epsilon) and d = dY · Scale: dX = (d − mean(d) − x̂ · mean(d · x̂)) /
    sqrt(var + epsilon), means over the axes from `axis` on; dScale = Σ dY · x̂ and dB = Σ dY over the axes
    before. dX has X's shape, dScale and dB have that of X from `axis` on; Scale broadcasts to it.
    Source: Ba, Kiros and Hinton 2016.
    """

    axis: int = -1
    epsilon: float = 1e-5

    def kernel(self, dY: Array, X: Array, Scale: Array) -> tuple[Array, Array, Array]:
        require_shape("dY", dY, X.shape)
        first = self.axis % X.ndim
        axes, lead = tuple(range(first, X.ndim)), tuple(range(first))
        normalized, _, inverse = normalize(X, axes, self.epsilon)
        dX = normalize_gradient(dY * Scale, normalized, inverse, axes)
        dScale = np.sum(dY * normalized, axis=lead)
        dB = np.sum(dY, axis=lead, dtype=normalized.dtype)
        return (
            dX.astype(X.dtype, copy=False),
            dScale.astype(Scale.dtype, copy=False),
            dB.astype(Scale.dtype, copy=False),
        )

    def infer(
        self, dY: ir.Value, X: ir.Value, Scale: ir.Value
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        dims = dims_of(X)
        inner = dims[self.axis % len(dims) :] if dims else dims
        return [(dtype_of(X), dims), (dtype_of(Scale), inner), (dtype_of(Scale), inner)]

    def expand(
        self, g: Builder, dY: ir.Value, X: ir.Value, Scale: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        dims = dims_of(X)
        if dims is None:
            raise UnsupportedError("LayerNormalizationGrad needs the rank of X")
        first = self.axis % len(dims)
        axes, lead = list(range(first, len(dims))), list(range(first))
        centred = g.Sub(X, g.ReduceMean(X, axes, keepdims=1))
        var = g.ReduceMean(g.Mul(centred, centred), axes, keepdims=1)
        inverse = g.Reciprocal(g.Sqrt(g.Add(var, self.epsilon)))
        normalized = g.Mul(centred, inverse)
        d = g.Mul(dY, Scale)
        along = g.Mul(normalized, g.ReduceMean(g.Mul(d, normalized), axes, keepdims=1))
        dX = g.Mul(g.Sub(g.Sub(d, g.ReduceMean(d, axes, keepdims=1)), along), inverse)
        dScale = g.Mul(dY, normalized)
        if not lead:
            return dX, dScale, dY
        return dX, g.ReduceSum(dScale, lead, keepdims=0), g.ReduceSum(dY, lead, keepdims=0)

    def lower(
        self, static: Static, outputs: Values, dY: ir.Value, X: ir.Value, Scale: ir.Value
    ) -> requests.LayerNormalizationGradient:
        return requests.LayerNormalizationGradient(outputs, dY, X, Scale, self.axis, self.epsilon)
