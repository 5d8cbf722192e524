from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Builder, Op, op


def _resized(g: Builder, X: ir.Value, scales: ir.Value, mode: str) -> ir.Value:
    return g.Resize(
        X,
        None,
        scales,
        mode="linear" if mode == "bilinear" else mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@op("Upsample", since=1)
class Upsample1(Op):
    """Resize of the last two axes of four."""

    height_scale: float
    mode: str = "nearest"
    width_scale: float

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        return _resized(g, X, g.const([1, 1, self.height_scale, self.width_scale], np.float32), self.mode)


@op("Upsample", since=7)
class Upsample7(Op):
    """Resize whose scales are an attribute."""

    mode: str = "nearest"
    scales: tuple[float, ...]

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        return _resized(g, X, g.const(self.scales, np.float32), self.mode)


@op("Upsample", since=(9, 10))
class Upsample(Op):
    """Resize with coordinates of corners, rounded down for mode nearest."""

    mode: str = "nearest"

    def canonical(self, g: Builder, X: ir.Value, scales: ir.Value) -> ir.Value:
        return _resized(g, X, scales, self.mode)
