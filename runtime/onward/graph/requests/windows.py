"""Requests for what is computed of windows: poolings and local response normalization."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onward.graph.requests.base import Request, Static, Values, first_misfit
from onward.graph.windows import Geometry

__all__ = [
    "AveragePool",
    "AveragePoolGradient",
    "LocalResponse",
    "LocalResponseGradient",
    "MaxPool",
    "MaxPoolGradient",
]


@dataclass(frozen=True)
class MaxPool(Request):
    """The largest element of each window of x [N, C, *spatial]."""

    y: ir.Value
    x: ir.Value
    geometry: Geometry

    @property
    def channels_last(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class MaxPoolGradient(Request):
    """Each element of dy goes to its window's first maximum in x."""

    dx: ir.Value
    dy: ir.Value
    x: ir.Value
    geometry: Geometry

    def misfit(self, static: Static) -> str | None:
        x = static.shape(self.x)
        return first_misfit(static, ("dY", self.dy, (*x[:2], *self.geometry.out)))

    @property
    def channels_last(self) -> Values:
        return self.dy, self.x, self.dx


@dataclass(frozen=True)
class AveragePool(Request):
    """The mean of each window of x [N, C, *spatial]."""

    y: ir.Value
    x: ir.Value
    geometry: Geometry
    count_include_pad: bool

    @property
    def channels_last(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class AveragePoolGradient(Request):
    """Each element of dy in equal shares to its window."""

    dx: ir.Value
    dy: ir.Value
    geometry: Geometry
    count_include_pad: bool

    def misfit(self, static: Static) -> str | None:
        dx = static.shape(self.dx)
        return first_misfit(static, ("dY", self.dy, (*dx[:2], *self.geometry.out)))

    @property
    def channels_last(self) -> Values:
        return self.dy, self.dx


@dataclass(frozen=True)
class LocalResponse(Request):
    """y = x · (bias + alpha / size · Σ x²)^−beta, the sum over `size` neighbouring channels."""

    y: ir.Value
    x: ir.Value
    size: int
    alpha: float
    beta: float
    bias: float

    @property
    def channels_last(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class LocalResponseGradient(Request):
    """The gradient of `LocalResponse` by x."""

    dx: ir.Value
    dy: ir.Value
    x: ir.Value
    size: int
    alpha: float
    beta: float
    bias: float

    def misfit(self, static: Static) -> str | None:
        return first_misfit(static, ("dY", self.dy, static.shape(self.x)))

    @property
    def channels_last(self) -> Values:
        return self.dy, self.x, self.dx
