from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Op, dims_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import convolve
from onward.ops._window import Extents, Geometry, Window, resolve, shaped_like


class Convolving(Protocol):
    """The attributes of Conv, ConvInteger and QLinearConv."""

    @property
    def auto_pad(self) -> str: ...
    @property
    def dilations(self) -> tuple[int, ...] | None: ...
    @property
    def kernel_shape(self) -> tuple[int, ...] | None: ...
    @property
    def pads(self) -> tuple[int, ...] | None: ...
    @property
    def strides(self) -> tuple[int, ...] | None: ...


def conv_geometry(node: Convolving, X: Extents, W: Extents) -> Geometry:
    """The geometry of a convolution of X [N, C, *] with W [O, C/group, *] of these shapes.

    Raises:
        ShapeError: the kernel does not fit.
        InvalidModelError: an attribute has the wrong length or an impossible value.
    """
    if len(X) != len(W) or len(X) < 3:
        raise ShapeError(f"X {list(X)} and W {list(W)} are not [N, C, *] and [O, C/group, *]")
    geometry = _window(node, W[2:]).over(X[2:])
    if 0 in geometry.out:
        raise ShapeError(f"the kernel {list(W[2:])} does not fit into X {list(X)} with its pads")
    return geometry


def _window(node: Convolving, kernel: Extents) -> Window:
    if node.kernel_shape is not None and tuple(node.kernel_shape) != kernel:
        raise ShapeError(f"attribute 'kernel_shape' is {list(node.kernel_shape)}, W's is {list(kernel)}")
    return resolve(
        kernel, strides=node.strides, pads=node.pads, dilations=node.dilations, auto_pad=node.auto_pad
    )


@op("Conv", since=(1, 11, 22))
class Conv(Op):
    """Y[n, o, p] = B[o] + Σ_{c, k} X[n, c, p·strides + k·dilations − pads] · W[o, c, k], in groups."""

    auto_pad: str = "NOTSET"
    dilations: tuple[int, ...] | None = None
    group: int = 1
    kernel_shape: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def window(self, kernel: tuple[int, ...]) -> Window:
        """The node's window for weights of this kernel."""
        return _window(self, kernel)

    def kernel(self, X: Array, W: Array, B: Array | None = None) -> Array:
        geometry = conv_geometry(self, X.shape, W.shape)
        y = convolve(X, W, geometry, self.group)
        if B is not None:
            y += B.reshape(-1, *(1,) * len(geometry.out))
        return y

    def geometry_of(self, X: Extents, W: Extents) -> Geometry:
        """The convolution's geometry for operands of these shapes."""
        return self.window(W[2:]).over(X[2:])

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
        return shaped_like(dX, X), dW, g.ReduceSum(dy, [0, *range(2, len(x_dims))], keepdims=0)
