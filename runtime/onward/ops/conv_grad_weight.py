from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import convolve_grad_weight
from onward.ops._window import Extents, Geometry, resolve, shaped_like


@op("ConvGradWeight", since=1, domain=ONWARD_DOMAIN)
class ConvGradWeight(Op):
    """dW[o, c, k] = Σ_{n, p} dY[n, o, p] · X[n, c, p·strides + k·dilations − pads]: Conv's other adjoint.

    dY [N, O, *out] and X [N, C, *spatial] give [O, C/group, *kernel_shape]. The body is a convolution in
    which batch and channels, strides and dilations have changed places.
    """

    dilations: tuple[int, ...] | None = None
    group: int = 1
    kernel_shape: tuple[int, ...]
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def kernel(self, dY: Array, X: Array) -> Array:
        window = resolve(self.kernel_shape, strides=self.strides, pads=self.pads, dilations=self.dilations)
        return convolve_grad_weight(dY, X, window.over(X.shape[2:]), self.group)

    def geometry_of(self, dY: Extents, X: Extents) -> Geometry:
        """The forward convolution's geometry for operands of these shapes."""
        window = resolve(self.kernel_shape, strides=self.strides, pads=self.pads, dilations=self.dilations)
        return window.over(X[2:])

    def lower(self, static: Static, outputs: Values, dY: ir.Value, X: ir.Value) -> requests.ConvolutionWeight:
        return requests.ConvolutionWeight(
            outputs[0], dY, X, self.geometry_of(static.shape(dY), static.shape(X)), self.group
        )

    def infer(self, dY: ir.Value, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        dy_dims, x_dims = dims_of(dY), dims_of(X)
        outputs = dy_dims[1] if dy_dims is not None else None
        channels = x_dims[1] if x_dims is not None else None
        per_group = channels // self.group if isinstance(channels, int) else None
        return [(dtype_of(dY), (outputs, per_group, *self.kernel_shape))]

    def expand(self, g: Builder, dY: ir.Value, X: ir.Value) -> ir.Value:
        rank = len(self.kernel_shape)
        swap = [1, 0, *range(2, 2 + rank)]
        dy_dims = dims_of(dY)
        swapped = g.Conv(
            self._channels_as_batch(g, X, swap),
            g.Transpose(dY, perm=swap),
            kernel_shape=_static(dy_dims[2:] if dy_dims is not None else ()),
            strides=self.dilations,
            dilations=self.strides,
            pads=self.pads,
            group=self.group,
        )
        # Where the stride does not divide, the window could still move on: those positions are no taps.
        taps = g.Slice(swapped, [0] * rank, list(self.kernel_shape), list(range(2, 2 + rank)))
        return g.Transpose(taps, perm=swap)

    def _channels_as_batch(self, g: Builder, X: ir.Value, swap: list[int]) -> ir.Value:
        """X [N, C, *] as [C/group, group · N, *]."""
        if self.group == 1:
            return g.Transpose(X, perm=swap)
        dims = dims_of(X)
        if dims is None or not isinstance(dims[1], int):
            raise UnsupportedError("ConvGradWeight in groups needs the channels of X to be written out")
        per_group, rank = dims[1] // self.group, len(self.kernel_shape)
        split = _static((self.group, per_group, *dims[2:]))
        if split is not None:
            by_group = g.Reshape(X, [-1, *split])
            by_group = g.Transpose(by_group, perm=[2, 1, 0, *range(3, 3 + rank)])
            return g.Reshape(by_group, [per_group, -1, *split[2:]])
        spatial = g.Shape(X, start=2)
        by_group = g.Reshape(X, g.Concat(g.const([-1, self.group, per_group]), spatial, axis=0))
        by_group = g.Transpose(by_group, perm=[2, 1, 0, *range(3, 3 + rank)])
        return g.Reshape(by_group, g.Concat(g.const([per_group, -1]), spatial, axis=0))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, dY: ir.Value, X: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        shared = {
            "strides": self.strides,
            "pads": self.pads,
            "dilations": self.dilations,
            "group": self.group,
        }
        d_dY = g.Conv(X, dy, kernel_shape=self.kernel_shape, **shared)
        spatial = _static((dims_of(X) or (None, None, None))[2:])
        if spatial is not None:
            return d_dY, g.onward.ConvGradInput(dY, dy, spatial=spatial, **shared)
        return d_dY, shaped_like(g.onward.ConvGradInput(dY, dy, g.shape(X), **shared), X)


def _static(dims: tuple[Dim, ...]) -> tuple[int, ...] | None:
    known = tuple(d for d in dims if isinstance(d, int))
    return known if dims and len(known) == len(dims) else None
