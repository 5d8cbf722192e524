from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import working_dtype
from onward.ops._normalization import batch_statistics, per_channel
from onward.ops._shape import require_shape


@op("BatchNormalizationGrad", since=1, domain=ONWARD_DOMAIN, multiple_outputs=True)
class BatchNormalizationGrad(Op):
    """Gradients of BatchNormalization in training mode; the batch's statistics are computed again from X.

    With x̂ = (X − mean) / sqrt(var + epsilon) and m elements a channel: dB = Σ dY, dscale = Σ dY · x̂,
    dX = scale / sqrt(var + epsilon) · (dY − dB / m − x̂ · dscale / m). dX has X's type and shape, dscale and
    dB have scale's. Source: Ioffe and Szegedy 2015, section 3.
    """

    epsilon: float = 1e-5

    def kernel(self, dY: Array, X: Array, scale: Array) -> tuple[Array, Array, Array]:
        require_shape("dY", dY, X.shape)
        require_shape("scale", scale, X.shape[1:2] or (1,))
        work = np.result_type(working_dtype(X.dtype), scale.dtype)
        mean, var = batch_statistics(X)
        axes, count = (0, *range(2, X.ndim)), work.type(max(1, X.size // max(1, X.shape[1])))
        inverse = 1 / np.sqrt(var + var.dtype.type(self.epsilon))
        normalized = (X - per_channel(mean, X.ndim)) * per_channel(inverse, X.ndim)
        dB = np.sum(dY, axis=axes, dtype=work)
        dscale = np.sum(dY * normalized, axis=axes, dtype=work)
        normalized *= per_channel((dscale / count).astype(normalized.dtype, copy=False), X.ndim)
        normalized += per_channel((dB / count).astype(normalized.dtype, copy=False), X.ndim)
        dX = np.subtract(dY, normalized, out=normalized)
        dX *= per_channel((scale * inverse).astype(dX.dtype, copy=False), X.ndim)
        return (
            dX.astype(X.dtype, copy=False),
            dscale.astype(scale.dtype, copy=False),
            dB.astype(scale.dtype, copy=False),
        )

    def lower(
        self, static: Static, outputs: Values, dY: ir.Value, X: ir.Value, scale: ir.Value
    ) -> requests.BatchNormalizationGradient:
        return requests.BatchNormalizationGradient(outputs, dY, X, scale, self.epsilon)

    def infer(
        self, dY: ir.Value, X: ir.Value, scale: ir.Value
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        channel = (dtype_of(scale), dims_of(scale))
        return [(dtype_of(X), dims_of(X)), channel, channel]

    def expand(
        self, g: Builder, dY: ir.Value, X: ir.Value, scale: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        dims = dims_of(X)
        if dims is None:
            raise UnsupportedError("BatchNormalizationGrad needs the rank of X")
        axes, spatial = [0, *range(2, len(dims))], list(range(1, len(dims) - 1))
        wide = dtype_of(scale)
        mixed = wide != dtype_of(X)
        x, dy = (g.Cast(v, to=int(wide)) if mixed else v for v in (X, dY))
        count = g.size(x, axes)
        centred = g.Sub(x, g.ReduceMean(x, axes, keepdims=1))
        var = g.ReduceMean(g.Mul(centred, centred), axes, keepdims=1)
        inverse = g.Reciprocal(g.Sqrt(g.Add(var, self.epsilon)))
        normalized = g.Mul(centred, inverse)
        dB = g.ReduceSum(dy, axes, keepdims=1)
        dscale = g.ReduceSum(g.Mul(dy, normalized), axes, keepdims=1)
        mean_part = g.Div(g.Add(dB, g.Mul(normalized, dscale)), count)
        by_channel = g.Unsqueeze(scale, spatial) if spatial else scale
        dX = g.Mul(g.Mul(g.Sub(dy, mean_part), inverse), by_channel)
        dX = g.Cast(dX, to=int(dtype_of(X))) if mixed else dX
        return dX, g.Squeeze(dscale, axes), g.Squeeze(dB, axes)
