from __future__ import annotations

import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._normalization import grouped, normalize, per_channel


@op("GroupNormalization", since=21)
class GroupNormalization(Op):
    """Y = scale · (X − mean) / sqrt(var + epsilon) + bias, the statistics over a sample's group of channels.

    scale and bias have an element a channel. Statistics are computed in X's type, float32 for 16-bit floats.
    Version 18, with an element a group, is deprecated: `onnx` refuses models that have it.
    """

    epsilon: float = 1e-5
    num_groups: int
    stash_type: int = int(ir.DataType.FLOAT)

    def kernel(self, X: Array, scale: Array, bias: Array) -> Array:
        if X.shape[1] % self.num_groups:
            raise ShapeError(f"{X.shape[1]} channels do not make {self.num_groups} groups")
        normalized, _, _ = normalize(grouped(X, self.num_groups), (2,), self.epsilon)
        y = normalized.reshape(X.shape) * per_channel(scale, X.ndim) + per_channel(bias, X.ndim)
        return y.astype(X.dtype, copy=False)

    def infer(self, X: ir.Value, *_: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(dtype_of(X), dims_of(X))]

    def lower(
        self, static: Static, outputs: Values, X: ir.Value, scale: ir.Value, bias: ir.Value
    ) -> requests.GroupNormalization:
        return requests.GroupNormalization(outputs[0], X, scale, bias, self.num_groups, self.epsilon)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value, scale: ir.Value, bias: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return g.emit(
            "GroupNormalizationGrad",
            dy,
            X,
            scale,
            domain=ONWARD_DOMAIN,
            outputs=3,
            epsilon=self.epsilon,
            num_groups=self.num_groups,
        )
