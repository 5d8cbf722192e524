from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, Op, attributes_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._resize import Lines, Resizing, resampled
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
class Resize(Resizing):
    """X resampled along axes by scales or to sizes.

    A linear map, so its gradient is its transpose; roi, scales and sizes have none.
    """

    static_operands = ("roi", "scales", "sizes")

    extrapolation_value: float = 0.0

    def lines(
        self, shape: tuple[int, ...], roi: Array | None, scales: Array | None, sizes: Array | None
    ) -> Lines:
        """What happens along each axis of an operand of this shape."""
        return self.resamplings(shape, roi, scales, sizes, extrapolation_value=self.extrapolation_value)

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
        known = self.constants(static, roi, scales, sizes)
        if known is None:
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
            **attributes_of(self, Resizing),
        )
        return like(dx, X), None, None, None
