"""Pooling: what the pooling operators and their gradients share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, attributes_of, dtype_of, numpy_dtype
from onward.ops._window import Extents, Geometry, Window, padded, resolve, tap_slices

__all__ = ["Pooling", "counted", "first_hits", "lowest", "spread", "window_maximum", "window_sum"]


@dataclass(frozen=True, kw_only=True)
class Pooling(Op):
    """The window attributes that pooling operators and their gradients have in common."""

    auto_pad: str = "NOTSET"
    ceil_mode: int = 0
    dilations: tuple[int, ...] | None = None
    kernel_shape: tuple[int, ...]
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def window(self) -> Window:
        """The node's window."""
        return resolve(
            self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            auto_pad=self.auto_pad,
            ceil_mode=self.ceil_mode,
        )

    def attributes(self) -> dict[str, Any]:
        """The window's attributes, for a node of another pooling operator over the same windows."""
        pads = self.pads if self.auto_pad == "NOTSET" else None
        return {**attributes_of(self, Pooling), "pads": pads}


def lowest(dtype: np.dtype[Any]) -> Any:
    """The identity of the maximum: −∞, or the smallest integer."""
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def window_maximum(x: Array, geometry: Geometry) -> Array:
    """The largest element of each window of x [N, C, *spatial], NaN where one is: [N, C, *out]."""
    xp = padded(x, geometry, lowest(x.dtype))
    y = np.full((*x.shape[:2], *geometry.out), lowest(x.dtype), x.dtype)
    for _, where in tap_slices(geometry):
        np.maximum(y, xp[where], out=y)
    return y


def window_sum(x: Array, geometry: Geometry) -> Array:
    """The sum of each window of x [N, C, *spatial]: [N, C, *out]."""
    xp = padded(x, geometry)
    y = np.zeros((*x.shape[:2], *geometry.out), x.dtype)
    for _, where in tap_slices(geometry):
        y += xp[where]
    return y


def first_hits(x: Array, y: Array, geometry: Geometry) -> Iterator[tuple[Extents, tuple[slice, ...], Array]]:
    """For each tap in row-major order, the windows [N, C, *out] whose maximum y is first met there.

    Beside the tap and the mask come the tap's slices of `padded(x)`. A window's first NaN is its maximum.
    """
    xp = padded(x, geometry, lowest(x.dtype))
    inside = None
    if xp is not x:
        inside = padded(np.ones((1, 1, *geometry.spatial), np.bool_), geometry)
    free = np.ones(y.shape, np.bool_)
    for tap, where in tap_slices(geometry):
        candidate = xp[where]
        hit = candidate == y
        if x.dtype.kind not in "iu":
            hit |= candidate != candidate
        hit &= free
        if inside is not None:
            hit &= inside[where]
        free ^= hit
        yield tap, where, hit


def counted(geometry: Geometry, include_pad: bool) -> tuple[Geometry, bool]:
    """Windows for average pooling and whether pads count; no taps outside the input where they do not."""
    include_pad = include_pad and any((*geometry.begin, *geometry.end))
    return (geometry if include_pad else geometry.reduced), include_pad


def spread(g: Builder, dy: ir.Value, geometry: Geometry) -> ir.Value:
    """The adjoint of `window_sum` as graph values: dy [N, C, *out] → [N, C, *spatial].

    Each channel is a sample of its own, convolved backwards with ones.
    """
    geometry = geometry.reduced
    dtype = numpy_dtype(dtype_of(dy))
    lead = g.Slice(g.shape(dy), [0], [2])
    planes = g.Reshape(dy, g.Concat(g.const([-1, 1]), g.const(geometry.out, np.int64), axis=0))
    ones = g.const(np.ones((1, 1, *geometry.kernel), dtype))
    end = (
        max(0, span - i - a)
        for span, i, a in zip(geometry.span, geometry.spatial, geometry.begin, strict=True)
    )
    dx = g.onward.ConvGradInput(
        planes,
        ones,
        strides=geometry.strides,
        pads=[*geometry.begin, *end],
        dilations=geometry.dilations,
        spatial=geometry.spatial,
    )
    return g.Reshape(dx, g.Concat(lead, g.const(geometry.spatial, np.int64), axis=0))
