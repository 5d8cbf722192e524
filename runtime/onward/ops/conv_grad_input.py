from __future__ import annotations

import onnx_ir as ir

from onward.errors import InvalidModelError, UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import convolve_grad_input
from onward.ops._window import Extents, Geometry, resolve


@op("ConvGradInput", since=1, domain=ONWARD_DOMAIN)
class ConvGradInput(Op):
    """dX[n, c, i] = Σ dY[n, o, p] · W[o, c, k] over all p·strides + k·dilations − pads = i: Conv's adjoint.

    dY [N, O, *out] and W [O, C/group, *kernel] give [N, C, *spatial]. The extents come from the attribute
    `spatial`, or, where they are not static, from the input `shape`, X's whole shape as int64. `out` is what
    the convolution of those extents gives; only the begin pads matter beyond that.
    """

    dilations: tuple[int, ...] | None = None
    group: int = 1
    pads: tuple[int, ...] | None = None
    spatial: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def geometry(self, kernel: Extents, spatial: Extents) -> Geometry:
        """The forward convolution's geometry."""
        window = resolve(kernel, strides=self.strides, pads=self.pads, dilations=self.dilations)
        return window.over(spatial)

    def kernel(self, dY: Array, W: Array, shape: Array | None = None) -> Array:
        spatial = self.spatial if shape is None else tuple(int(i) for i in shape[2:])
        if spatial is None:
            raise InvalidModelError("ConvGradInput needs its attribute 'spatial' or its input 'shape'")
        return convolve_grad_input(dY, W, self.geometry(W.shape[2:], spatial), self.group)

    def geometry_of(self, dY: Extents, W: Extents, dX: Extents) -> Geometry:
        """The forward convolution's geometry for operands and result of these shapes."""
        return self.geometry(W[2:], dX[2:])

    def lower(
        self,
        static: Static,
        outputs: Values,
        dY: ir.Value,
        W: ir.Value,
        shape: ir.Value | None = None,
    ) -> requests.ConvolutionInput:
        geometry = self.geometry_of(static.shape(dY), static.shape(W), static.shape(outputs[0]))
        return requests.ConvolutionInput(outputs[0], dY, W, geometry, self.group)

    def infer(
        self, dY: ir.Value, W: ir.Value, shape: ir.Value | None = None
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        dy_dims, w_dims = dims_of(dY), dims_of(W)
        if dy_dims is None or w_dims is None:
            return [(dtype_of(dY), None)]
        channels = w_dims[1] * self.group if isinstance(w_dims[1], int) else None
        spatial: tuple[Dim, ...] = self.spatial or (None,) * (len(dy_dims) - 2)
        return [(dtype_of(dY), (dy_dims[0], channels, *spatial))]

    def expand(self, g: Builder, dY: ir.Value, W: ir.Value, shape: ir.Value | None = None) -> ir.Value:
        rank = len(dims_of(W) or ()) - 2
        if rank < 1:
            raise UnsupportedError("ConvGradInput needs the rank of W to be written in standard operators")
        kernel = tuple(d for d in (dims_of(W) or ())[2:] if isinstance(d, int))
        if self.spatial is not None and len(kernel) == rank:
            geometry = self.geometry(kernel, self.spatial)
            tail = [
                a + i - span for a, i, span in zip(geometry.begin, self.spatial, geometry.span, strict=True)
            ]
            return g.ConvTranspose(
                dY,
                W,
                strides=geometry.strides,
                pads=[*geometry.begin, *(max(0, -t) for t in tail)],
                dilations=geometry.dilations,
                group=self.group,
                output_padding=[max(0, t) for t in tail],
            )
        begin = self.pads[:rank] if self.pads is not None else (0,) * rank
        strides = self.strides if self.strides is not None else (1,) * rank
        whole = g.ConvTranspose(
            dY,
            W,
            strides=strides,
            pads=[*begin, *(0,) * rank],
            dilations=self.dilations,
            group=self.group,
            output_padding=[s - 1 for s in strides],
        )
        ends = (
            g.const(self.spatial, ir.DataType.INT64)
            if self.spatial is not None
            else g.Slice(shape, [2], [2 + rank])
        )
        return g.Slice(whole, [0] * rank, ends, list(range(2, 2 + rank)))

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        dY: ir.Value,
        W: ir.Value,
        shape: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        kernel = tuple(d for d in (dims_of(W) or ())[2:] if isinstance(d, int))
        if not kernel or len(kernel) != len(dims_of(W) or ()) - 2:
            raise UnsupportedError("the gradient of ConvGradInput needs a static kernel_shape")
        shared = {
            "strides": self.strides,
            "pads": self.pads,
            "dilations": self.dilations,
            "group": self.group,
        }
        d_dY = g.Conv(dy, W, kernel_shape=kernel, **shared)
        return d_dY, g.onward.ConvGradWeight(dY, dy, kernel_shape=kernel, **shared), None
