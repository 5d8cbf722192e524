from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Op, dims_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._normalization import normalize, per_channel
from onward.ops._shape import require_shape


@op("InstanceNormalization", since=(1, 6, 22))
class InstanceNormalization(Op):
    """output = scale · (input − mean) / sqrt(var + epsilon) + B, the statistics of each channel alone."""

    epsilon: float = 1e-5

    def kernel(self, input: Array, scale: Array, B: Array) -> Array:
        for name, array in (("scale", scale), ("B", B)):
            require_shape(name, array, input.shape[1:2])
        normalized, _, _ = normalize(input, tuple(range(2, input.ndim)), self.epsilon)
        y = normalized * per_channel(scale, input.ndim) + per_channel(B, input.ndim)
        return y.astype(input.dtype, copy=False)

    def lower(
        self, static: Static, outputs: Values, input: ir.Value, scale: ir.Value, B: ir.Value
    ) -> requests.GroupNormalization:
        return requests.GroupNormalization(outputs[0], input, scale, B, static.shape(input)[1], self.epsilon)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value, scale: ir.Value, B: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        known = [*(dims_of(scale) or ()), *(dims_of(input) or (None, None))[1:2]]
        channels = next((d for d in known if isinstance(d, int)), None)
        if channels is None:
            raise UnsupportedError("the gradient of InstanceNormalization needs the channels of its input")
        return g.emit(
            "GroupNormalizationGrad",
            dy,
            input,
            scale,
            domain=ONWARD_DOMAIN,
            outputs=3,
            epsilon=self.epsilon,
            num_groups=channels,
        )
