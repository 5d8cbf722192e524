from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, numpy_dtype, op, requests
from onward.graph.requests import Static, Values
from onward.ops._normalization import grouped, normalize, normalize_gradient, per_channel


@op("GroupNormalizationGrad", since=1, domain=ONWARD_DOMAIN, multiple_outputs=True)
class GroupNormalizationGrad(Op):
    """Gradients of GroupNormalization, and of InstanceNormalization with a group a channel.

    With x̂ = (X − mean) / sqrt(var + epsilon) and d = dY · scale: dX = (d − mean(d) − x̂ · mean(d · x̂)) /
    sqrt(var + epsilon), means over a sample's group; dscale = Σ dY · x̂ and dbias = Σ dY over all axes but
    channels. X is [N, C, *], scale is [C]. Source: Wu and He 2018.
    """

    epsilon: float = 1e-5
    num_groups: int

    def kernel(self, dY: Array, X: Array, scale: Array) -> tuple[Array, Array, Array]:
        axes = (0, *range(2, X.ndim))
        normalized, _, inverse = normalize(grouped(X, self.num_groups), (2,), self.epsilon)
        d = grouped(dY * per_channel(scale, X.ndim), self.num_groups)
        dX = normalize_gradient(d, normalized, inverse, (2,)).reshape(X.shape)
        dscale = np.sum(dY * normalized.reshape(X.shape), axis=axes)
        dbias = np.sum(dY, axis=axes, dtype=normalized.dtype)
        return (
            dX.astype(X.dtype, copy=False),
            dscale.astype(scale.dtype, copy=False),
            dbias.astype(scale.dtype, copy=False),
        )

    def lower(self, static: Static, outputs: Values, dY: ir.Value, *_: ir.Value) -> requests.Request:
        if numpy_dtype(dtype_of(dY)).itemsize < 4:
            return requests.Unsupported("the body of a narrow type has its narrow sums")
        return requests.Body()

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
            raise UnsupportedError("GroupNormalizationGrad needs the rank of X")
        axes, spatial = [0, *range(2, len(dims))], list(range(1, len(dims) - 1))
        static = [d for d in dims[1:] if isinstance(d, int)]
        # -1 cannot stand beside a batch of 0
        elements = prod(static) // self.num_groups if len(static) == len(dims) - 1 else -1
        groups = [0, self.num_groups, elements]
        x = g.Reshape(X, groups)
        centred = g.Sub(x, g.ReduceMean(x, [2], keepdims=1))
        var = g.ReduceMean(g.Mul(centred, centred), [2], keepdims=1)
        inverse = g.Reciprocal(g.Sqrt(g.Add(var, self.epsilon)))
        normalized = g.Mul(centred, inverse)
        d = g.Reshape(g.Mul(dY, g.Unsqueeze(scale, spatial) if spatial else scale), groups)
        along = g.Mul(normalized, g.ReduceMean(g.Mul(d, normalized), [2], keepdims=1))
        dx = g.Mul(g.Sub(g.Sub(d, g.ReduceMean(d, [2], keepdims=1)), along), inverse)
        dscale = g.ReduceSum(g.Mul(dY, g.reshape_like(normalized, X)), axes, keepdims=0)
        return g.reshape_like(dx, X), dscale, g.ReduceSum(dY, axes, keepdims=0)
