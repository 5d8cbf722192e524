from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, dims_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._channel_sum import channel_sum
from onward.ops._convolution import Convolving, convolve
from onward.ops._shape import require_shape
from onward.ops._window import shaped_like


@op("Conv", since=(1, 11, 22))
class Conv(Convolving):
    """Y[n, o, p] = B[o] + Σ_{c, k} X[n, c, p·strides + k·dilations − pads] · W[o, c, k], in groups."""

    def kernel(self, X: Array, W: Array, B: Array | None = None) -> Array:
        geometry = self.geometry_of(X.shape, W.shape)
        y = convolve(X, W, geometry, self.group)
        if B is not None:
            require_shape("B", B, (W.shape[0],))
            y += B.reshape(-1, *(1,) * len(geometry.out))
        return y

    def lower(
        self, static: Static, outputs: Values, X: ir.Value, W: ir.Value, B: ir.Value | None = None
    ) -> requests.Convolution:
        return requests.Convolution(
            outputs[0], X, W, B, self.geometry_of(static.shape(X), static.shape(W)), self.group
        )

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        X: ir.Value,
        W: ir.Value,
        B: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        x_dims, w_dims = dims_of(X), dims_of(W)
        if x_dims is None or w_dims is None:
            raise UnsupportedError("the gradient of Conv needs the ranks of X and W")
        kernel = tuple(d for d in w_dims[2:] if isinstance(d, int))
        if len(kernel) != len(w_dims) - 2:
            raise UnsupportedError("the gradient of Conv needs a static kernel_shape")
        window = self.window(kernel)
        geometry = window.over_dims(x_dims[2:])
        if geometry is not None:
            pads = geometry.begin + geometry.end
        elif window.pads is not None:
            pads = window.pads
        else:
            raise UnsupportedError(
                f"the gradient of Conv with auto_pad={self.auto_pad} needs static spatial extents; "
                "set explicit pads, or fix the extents of the model's input"
            )
        shared = {
            "strides": window.strides,
            "pads": pads,
            "dilations": window.dilations,
            "group": self.group,
        }
        if geometry is not None:
            dX = g.onward.ConvGradInput(dy, W, spatial=geometry.spatial, **shared)
        else:
            dX = g.onward.ConvGradInput(dy, W, g.shape(X), **shared)
        dW = g.onward.ConvGradWeight(dy, X, kernel_shape=kernel, **shared)
        if B is None:
            return shaped_like(dX, X), dW
        return shaped_like(dX, X), dW, channel_sum(g, dy, B, len(x_dims))
