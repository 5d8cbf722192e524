from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Dim, Op, dims_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._channel_sum import channel_sum
from onward.ops._convolution import convolve_grad_input
from onward.ops._shape import require_shape
from onward.ops._window import Extents, Geometry, resolve, shaped_like


@op("ConvTranspose", since=(1, 11, 22))
class ConvTranspose(Op):
    """Y[n, o, p] = B[o] + Σ X[n, c, i] · W[c, o, k] over all i·strides + k·dilations − pads = p, in groups.

    An axis has strides·(i − 1) + output_padding + dilations·(k − 1) + 1 − pads positions. auto_pad and
    output_shape find the pads; without room for pads SAME takes none, as onnxruntime does.
    """

    auto_pad: str = "NOTSET"
    dilations: tuple[int, ...] | None = None
    group: int = 1
    kernel_shape: tuple[int, ...] | None = None
    output_padding: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def geometry(self, kernel: Extents, extents: Sequence[int]) -> Geometry:
        """The convolution from the output to the input of these extents, of which this is the adjoint."""
        rank = len(kernel)
        window = resolve(
            self.kernel_shape if self.kernel_shape is not None else kernel,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            auto_pad=self.auto_pad,
        )
        extra = self.output_padding if self.output_padding is not None else (0,) * rank
        whole = [
            s * (i - 1) + e + d * (k - 1) + 1
            for i, s, e, d, k in zip(
                extents, window.strides, extra, window.dilations, window.kernel, strict=True
            )
        ]
        if self.output_shape is not None:
            total = [w - o for w, o in zip(whole, self.output_shape[-rank:], strict=True)]
        elif window.pads is None:
            total = [max(0, w - i * s) for w, i, s in zip(whole, extents, window.strides, strict=True)]
        else:
            total = []
        if any(
            t < 0 and e - t >= max(s, d)
            for t, e, s, d in zip(total, extra, window.strides, window.dilations, strict=False)
        ):
            raise ShapeError(
                f"output_shape {list(self.output_shape or ())} is more than output_padding could add to "
                f"{whole} positions"
            )
        if total:
            # A missing position is added behind, as output_padding does.
            odd = 0 if self.auto_pad == "SAME_UPPER" else 1
            begin = tuple((max(0, t) + odd) // 2 for t in total)
            end = tuple(t - a for t, a in zip(total, begin, strict=True))
        else:
            pads = window.pads or ()
            begin, end = pads[:rank], pads[rank:]
        spatial = tuple(w - a - b for w, a, b in zip(whole, begin, end, strict=True))
        if any(i < 1 for i in spatial):
            raise ShapeError(f"pads {[*begin, *end]} leave nothing of {whole} positions")
        return Geometry(spatial, tuple(extents), window.kernel, window.strides, window.dilations, begin, end)

    def kernel(self, X: Array, W: Array, B: Array | None = None) -> Array:
        if X.ndim != W.ndim or X.ndim < 3:
            raise ShapeError(f"X {list(X.shape)} and W {list(W.shape)} are not [N, C, *] and [C, O/group, *]")
        geometry = self.geometry(W.shape[2:], X.shape[2:])
        y = convolve_grad_input(X, W, geometry, self.group)
        if B is not None:
            require_shape("B", B, (W.shape[1] * self.group,))
            y += B.reshape(-1, *(1,) * len(geometry.out))
        return y

    def lower(
        self, static: Static, outputs: Values, X: ir.Value, W: ir.Value, B: ir.Value | None = None
    ) -> requests.ConvolutionInput:
        geometry = self.geometry(static.shape(W)[2:], static.shape(X)[2:])
        # pads that make the convolution of Y have X's extents, whatever output_padding adds
        end = tuple(
            span - i - a for span, i, a in zip(geometry.span, geometry.spatial, geometry.begin, strict=True)
        )
        return requests.ConvolutionInput(outputs[0], X, W, replace(geometry, end=end), self.group, B)

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
        kernel = _static(w_dims[2:] if w_dims is not None else ())
        if x_dims is None or kernel is None:
            raise UnsupportedError(
                "the gradient of ConvTranspose needs the rank of X and a static kernel_shape"
            )
        extents = _static(x_dims[2:])
        if extents is None and self.output_shape is not None:
            raise UnsupportedError(
                "the gradient of ConvTranspose with output_shape needs static spatial extents; "
                "set pads and output_padding instead"
            )
        # Without output_shape the pads do not depend on the extents.
        geometry = self.geometry(kernel, extents or tuple(sum(kernel) + sum(self.pads or ()) for _ in kernel))
        steps = (o * s for o, s in zip(geometry.out, geometry.strides, strict=True))
        reach = (
            i + a + max(0, b) for i, a, b in zip(geometry.spatial, geometry.begin, geometry.end, strict=True)
        )
        width = (d * (k - 1) + 1 for d, k in zip(geometry.dilations, kernel, strict=True))
        if any(r - w >= n for r, w, n in zip(reach, width, steps, strict=True)):
            raise UnsupportedError("the gradient of ConvTranspose needs output_padding less than strides")
        shared = {
            "strides": geometry.strides,
            "pads": geometry.begin + tuple(max(0, b) for b in geometry.end),
            "dilations": geometry.dilations,
            "group": self.group,
        }
        dX = shaped_like(g.Conv(dy, W, kernel_shape=kernel, **shared), X)
        dW = g.onward.ConvGradWeight(X, dy, kernel_shape=kernel, **shared)
        if B is None:
            return dX, dW
        return dX, dW, channel_sum(g, dy, B, len(x_dims))


def _static(dims: Sequence[Dim]) -> Extents | None:
    known = tuple(d for d in dims if isinstance(d, int))
    return known if dims and len(known) == len(dims) else None
