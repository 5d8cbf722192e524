from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._resize import Lines, Style, lines_of, resampled
from onward.ops._shape import constant_of, like


@op("Resize", since=10)
class Resize10(Op):
    """Resize with coordinates of corners.

    Mode nearest rounds up along axes that shrink and down along the others, as onnxruntime and the standard's
    test `resize_downsample_nearest` have it; its text leaves that open.
    """

    mode: str = "nearest"

    def canonical(self, g: Builder, X: ir.Value, scales: ir.Value) -> ir.Value:
        known = constant_of(scales)
        if self.mode != "nearest" or (known is not None and (known >= 1).all()):
            return self._resized(g, X, scales, "floor")
        if known is not None and (known <= 1).all():
            return self._resized(g, X, scales, "ceil")
        shrunk = self._resized(g, X, g.Min(scales, 1.0), "ceil")
        return self._resized(g, shrunk, g.Max(scales, 1.0), "floor")

    def _resized(self, g: Builder, X: ir.Value, scales: ir.Value, rounding: str) -> ir.Value:
        return g.Resize(
            X,
            None,
            scales,
            mode=self.mode,
            coordinate_transformation_mode="asymmetric",
            nearest_mode=rounding,
        )


@op("Resize", since=(11, 13, 18, 19))
class Resize(Op):
    """X resampled along axes by scales or to sizes.

    A linear map, so its gradient is its transpose; roi, scales and sizes have none.
    """

    static_operands = ("roi", "scales", "sizes")

    antialias: int = 0
    axes: tuple[int, ...] | None = None
    coordinate_transformation_mode: str = "half_pixel"
    cubic_coeff_a: float = -0.75
    exclude_outside: int = 0
    extrapolation_value: float = 0.0
    keep_aspect_ratio_policy: str = "stretch"
    mode: str = "nearest"
    nearest_mode: str = "round_prefer_floor"

    def lines(
        self, shape: tuple[int, ...], roi: Array | None, scales: Array | None, sizes: Array | None
    ) -> Lines:
        """What happens along each axis of an operand of this shape."""
        style = Style(
            self.mode,
            self.coordinate_transformation_mode,
            self.nearest_mode,
            self.cubic_coeff_a,
            bool(self.exclude_outside),
            bool(self.antialias),
            self.extrapolation_value,
        )
        return lines_of(shape, style, self.axes, self.keep_aspect_ratio_policy, roi, scales, sizes)

    def kernel(
        self,
        X: Array,
        roi: Array | None = None,
        scales: Array | None = None,
        sizes: Array | None = None,
    ) -> Array:
        return resampled(X, self.lines(X.shape, roi, scales, sizes))

    def lower(
        self,
        static: Static,
        outputs: Values,
        X: ir.Value,
        roi: ir.Value | None = None,
        scales: ir.Value | None = None,
        sizes: ir.Value | None = None,
    ) -> requests.Request:
        known = [None if v is None else static.known(v) for v in (roi, scales, sizes)]
        if any(v is not None and k is None for v, k in zip((roi, scales, sizes), known, strict=True)):
            return requests.Unsupported("roi or scales are not constant")
        lines = self.lines(static.shape(X), *known)
        return requests.Resample(outputs[0], X, lines) if lines else requests.Identity(outputs[0], X)

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        X: ir.Value,
        roi: ir.Value | None = None,
        scales: ir.Value | None = None,
        sizes: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        dx = g.onward.ResizeGrad(
            dy,
            g.shape(X),
            roi,
            scales,
            sizes,
            antialias=self.antialias,
            axes=self.axes,
            coordinate_transformation_mode=self.coordinate_transformation_mode,
            cubic_coeff_a=self.cubic_coeff_a,
            exclude_outside=self.exclude_outside,
            keep_aspect_ratio_policy=self.keep_aspect_ratio_policy,
            mode=self.mode,
            nearest_mode=self.nearest_mode,
        )
        return like(dx, X), None, None, None
