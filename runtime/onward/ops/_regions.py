"""Bins of regions of images in whole pixels: what MaxRoiPool and its gradient share."""

from __future__ import annotations

import math

from onward.errors import ShapeError
from onward.graph import Array

__all__ = ["best", "bounds", "check_regions"]

_FARTHEST = 1e9
"""Corners beyond are as good as this one: positions are whole numbers of 64 bits."""


def check_regions(X: tuple[int, ...], rois: Array, pooled_shape: tuple[int, ...]) -> None:
    """Raise `ShapeError` unless operands are images [N, C, H, W] and regions [R, 5] of them."""
    if len(X) != 4 or rois.ndim != 2 or rois.shape[1] != 5 or len(pooled_shape) != 2 or min(pooled_shape) < 1:
        raise ShapeError(
            f"X {list(X)}, rois {list(rois.shape)}, pooled_shape {list(pooled_shape)}: they take "
            "[N, C, H, W], [R, 5] and two extents of 1 or more"
        )
    for n in rois[:, 0]:
        if not 0 <= n < X[0]:
            raise ShapeError(f"a region of image {n}, and there are {X[0]}")


def bounds(low: float, high: float, scale: float, bins: int, extent: int, i: int) -> tuple[int, int]:
    """The pixels of bin i of a region along an axis: from the first up to the second."""
    start, end = rounded(low * scale), rounded(high * scale)
    size = max(end - start + 1, 1) / bins
    first, last = math.floor(i * size) + start, math.ceil((i + 1) * size) + start
    return min(max(first, 0), extent), min(max(last, 0), extent)


def rounded(x: float) -> int:
    """The nearest whole number, halves away from 0."""
    if not abs(x) < _FARTHEST:
        return int(_FARTHEST) if x > 0 else -int(_FARTHEST)
    return math.floor(x + 0.5) if x >= 0 else math.ceil(x - 0.5)


def best(X: Array, n: int, c: int, top: int, bottom: int, left: int, right: int) -> tuple[int, int]:
    """Where the first maximum of a window is, a NaN if it has one; (−1, −1) where it has no pixel."""
    row, column = -1, -1
    for v in range(top, bottom):
        for u in range(left, right):
            x = X[n, c, v, u]
            if row < 0:
                row, column = v, u
                continue
            most = X[n, c, row, column]
            if most == most and not x <= most:
                row, column = v, u
    return row, column
