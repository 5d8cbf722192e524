"""Requests for sums of products: matrix products, and convolutions and their gradients."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onward.graph.requests.base import Request, Static, Values, first_misfit
from onward.graph.windows import Extents, Geometry

__all__ = [
    "Convolution",
    "ConvolutionInput",
    "ConvolutionWeight",
    "Product",
    "RoundedProduct",
    "WeightProduct",
]


@dataclass(frozen=True)
class Product(Request):
    """y = op(left) op(right) + bias as numpy.matmul: leading axes are broadcast, vectors are matrices of one
    row or column, and op exchanges the last two axes where it says so. A bias is one row.
    """

    fuses_elements = True

    y: ir.Value
    left: ir.Value
    right: ir.Value
    bias: ir.Value | None = None
    transpose_left: bool = False
    transpose_right: bool = False


@dataclass(frozen=True)
class WeightProduct(Request):
    """y = left · w, w[k, n] = (right[k, n] − zero_point[k // block, n]) · scale[k // block, n] in float32.

    `right` is a constant of signed integers [depth, N]; those of 4 bits lie in pairs of rows in bytes.
    """

    fuses_elements = True

    y: ir.Value
    left: ir.Value
    right: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None
    depth: int
    bits: int
    block: int

    def misfit(self, static: Static) -> str | None:
        left, right = static.shape(self.left), static.shape(self.right)
        n, rows, blocks = right[-1], -(-self.depth * self.bits // 8), -(-self.depth // self.block)
        return first_misfit(
            static,
            ("A", self.left, (*left[:-1], self.depth)),
            ("B", self.right, (rows, n)),
            ("scale", self.scale, (blocks, n)),
            ("zero_point", self.zero_point, (blocks, n)),
            ("Y", self.y, (*left[:-1], n)),
        )


@dataclass(frozen=True)
class RoundedProduct(Request):
    """y = (q − zero_point) · right in floats, q = saturate(round(left / scale) + zero_point) in uint8.

    scale and zero_point are one number each, `right` is a constant of int8 [K, N].
    """

    fuses_elements = True

    y: ir.Value
    left: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    right: ir.Value

    def misfit(self, static: Static) -> str | None:
        left, (k, n) = static.shape(self.left), static.shape(self.right)
        return first_misfit(
            static,
            ("A", self.left, (*left[:-1], k)),
            ("scale", self.scale, ()),
            ("zero_point", self.zero_point, ()),
            ("Y", self.y, (*left[:-1], n)),
        )


@dataclass(frozen=True)
class Convolution(Request):
    """y = x ∗ w + bias, over x [N, C, *spatial] and w [M, C / group, *kernel]."""

    fuses_elements = True

    y: ir.Value
    x: ir.Value
    w: ir.Value
    bias: ir.Value | None
    geometry: Geometry
    group: int

    def misfit(self, static: Static) -> str | None:
        x, w, y = static.shape(self.x), static.shape(self.w), static.shape(self.y)
        return _misfit(x, w, y, self.geometry, self.group, _bias(static, self.bias, w[0]))

    @property
    def channels_last(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class ConvolutionInput(Request):
    """dx = the gradient of x ∗ w by x, plus a bias over its channels; `geometry` is that of x ∗ w."""

    fuses_elements = True

    dx: ir.Value
    dy: ir.Value
    w: ir.Value
    geometry: Geometry
    group: int
    bias: ir.Value | None = None

    def misfit(self, static: Static) -> str | None:
        dx, w, dy = static.shape(self.dx), static.shape(self.w), static.shape(self.dy)
        return _misfit(dx, w, dy, self.geometry, self.group, _bias(static, self.bias, dx[1]))

    @property
    def channels_last(self) -> Values:
        return self.dy, self.dx


@dataclass(frozen=True)
class ConvolutionWeight(Request):
    """dw = the gradient of x ∗ w by w; `geometry` is that of x ∗ w."""

    dw: ir.Value
    dy: ir.Value
    x: ir.Value
    geometry: Geometry
    group: int

    def misfit(self, static: Static) -> str | None:
        x, dw, dy = static.shape(self.x), static.shape(self.dw), static.shape(self.dy)
        return _misfit(x, dw, dy, self.geometry, self.group, None)

    @property
    def channels_last(self) -> Values:
        return self.dy, self.x


def _bias(static: Static, bias: ir.Value | None, channels: int) -> str | None:
    if bias is None or static.shape(bias) == (channels,):
        return None
    return f"a bias of shape {list(static.shape(bias))} is not one for each of {channels} channels"


def _misfit(
    x: Extents, w: Extents, y: Extents, geometry: Geometry, group: int, bias: str | None
) -> str | None:
    """What contradicts y [N, M, *out] = x [N, C, *spatial] ∗ w [M, C / group, *kernel]."""
    if w[0] % group or x[1] != w[1] * group:
        return f"weights {list(w)} do not fit {x[1]} channels in {group} groups"
    if w[2:] != geometry.kernel:
        return f"weights {list(w)} have not the kernel {list(geometry.kernel)}"
    if x[2:] != geometry.spatial or y != (x[0], w[0], *geometry.out):
        return f"{list(x)} and {list(y)} are not the two ends of a convolution with weights {list(w)}"
    return bias
