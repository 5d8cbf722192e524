"""Requests for sums of products: matrix products, and convolutions and their gradients."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onward.graph.requests.base import Request, Values
from onward.graph.windows import Geometry

__all__ = [
    "Convolution",
    "ConvolutionInput",
    "ConvolutionWeight",
    "Product",
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
class Convolution(Request):
    """y = x ∗ w + bias, over x [N, C, *spatial] and w [M, C / group, *kernel]."""

    fuses_elements = True

    y: ir.Value
    x: ir.Value
    w: ir.Value
    bias: ir.Value | None
    geometry: Geometry
    group: int

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

    @property
    def channels_last(self) -> Values:
        return self.dy, self.x
