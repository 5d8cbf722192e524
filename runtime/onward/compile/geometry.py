"""Windows over graph values as kernels take them: over two spatial axes, on channels-last images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from onward.compile.kernels.layout import Convolution, Image
from onward.compile.kernels.pool import Pool
from onward.graph import Geometry

__all__ = ["NO_BORDER", "Border", "convolution", "image", "pool"]

Border: TypeAlias = tuple[int, int, int, int]
"""Pixels around an image: (top, left, bottom, right)."""

NO_BORDER: Border = (0, 0, 0, 0)


def image(shape: Sequence[int], border: Sequence[int] = NO_BORDER) -> Image:
    """A value [N, C, W] or [N, C, H, W] inside a border of zeros."""
    height, width = (1, shape[2]) if len(shape) == 3 else shape[2:]
    top, left, bottom, right = border
    return Image(height, width, shape[1], top=top, left=left, bottom=bottom, right=right)


def convolution(
    geometry: Geometry, x: Image, y: Image, group: int, dtype: np.dtype[np.generic]
) -> Convolution:
    """A convolution's geometry over one or two axes.

    Raises:
        ShapeError: geometry and images do not agree.
    """
    return Convolution(
        x,
        y,
        _pair(geometry.kernel),
        _pair(geometry.strides),
        _pair(geometry.dilations),
        _pads(geometry),
        group,
        dtype.name,
    )


def pool(
    kind: str,
    geometry: Geometry,
    x: Image,
    y: Image,
    dtype: np.dtype[np.generic],
    *,
    count_include_pad: bool = False,
) -> Pool:
    """A pooling's geometry over one or two axes; `kind` is "max" or "average"."""
    return Pool(
        kind,
        x,
        y,
        _pair(geometry.kernel),
        _pair(geometry.strides),
        _pads(geometry),
        _pair(geometry.dilations),
        count_include_pad,
        dtype.name,
    )


def _pair(values: tuple[int, ...], absent: int = 1) -> tuple[int, int]:
    return (absent, values[0]) if len(values) == 1 else (values[0], values[1])


def _pads(geometry: Geometry) -> Border:
    return (*_pair(geometry.begin, 0), *_pair(geometry.end, 0))
