"""Resize: where positions of the result lie in the operand, and what they are made of there.

Coordinates are fractions: a tie between two neighbours is one, whatever the scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias, final

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Op, Resampling
from onward.graph.requests import Static

__all__ = ["Lines", "Resizing", "by_growth", "resampled"]

Lines: TypeAlias = tuple[tuple[int, Resampling], ...]
"""Resamplings and their axes, in the order in which they are applied."""

_Roi: TypeAlias = "tuple[Fraction, Fraction] | None"

_MODES = ("nearest", "linear", "cubic")
_TRANSFORMATIONS = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
_POLICIES = ("stretch", "not_larger", "not_smaller")
_HALF = Fraction(1, 2)

_NEAREST: dict[str, Callable[[Fraction], bool]] = {
    "round_prefer_floor": lambda rest: rest > _HALF,
    "round_prefer_ceil": lambda rest: rest >= _HALF,
    "floor": lambda rest: False,
    "ceil": lambda rest: rest > 0,
}
"""Whether a coordinate that is this much above a position goes to the next one."""


@dataclass(frozen=True, kw_only=True)
class Resizing(Op):
    """The attributes that Resize and its gradient have in common."""

    antialias: int = 0
    axes: tuple[int, ...] | None = None
    coordinate_transformation_mode: str = "half_pixel"
    cubic_coeff_a: float = -0.75
    exclude_outside: int = 0
    keep_aspect_ratio_policy: str = "stretch"
    mode: str = "nearest"
    nearest_mode: str = "round_prefer_floor"

    def resamplings(
        self,
        shape: Sequence[int],
        roi: Array | None,
        scales: Array | None,
        sizes: Array | None,
        *,
        extrapolation_value: float = 0.0,
    ) -> Lines:
        """What Resize does along each axis of an operand of this shape.

        Raises:
            ShapeError: as `_lines_of` says, or an attribute is unknown.
        """
        style = _Style(
            self.mode,
            self.coordinate_transformation_mode,
            self.nearest_mode,
            self.cubic_coeff_a,
            bool(self.exclude_outside),
            bool(self.antialias),
            extrapolation_value,
        )
        return _lines_of(shape, style, self.axes, self.keep_aspect_ratio_policy, roi, scales, sizes)

    def constants(self, static: Static, *operands: ir.Value | None) -> list[Array | None] | None:
        """roi, scales and sizes, if all that are there are known."""
        known = [None if v is None else static.known(v) for v in operands]
        told = all(v is None or k is not None for v, k in zip(operands, known, strict=True))
        return known if told else None


@final
@dataclass(frozen=True)
class _Style:
    """Resize's attributes, as far as they say how values are made."""

    mode: str
    coordinate_transformation_mode: str
    nearest_mode: str
    cubic_coeff_a: float
    exclude_outside: bool
    antialias: bool
    extrapolation_value: float

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, _MODES),
            ("coordinate_transformation_mode", self.coordinate_transformation_mode, _TRANSFORMATIONS),
            ("nearest_mode", self.nearest_mode, tuple(_NEAREST)),
        ):
            if value not in known:
                raise ShapeError(f"{name} {value!r} is unknown; it can be {', '.join(known)}")
        if self.antialias and self.mode == "nearest":
            raise ShapeError("antialias needs mode linear or cubic")


def _lines_of(
    shape: Sequence[int],
    style: _Style,
    axes: Sequence[int] | None,
    policy: str,
    roi: Array | None,
    scales: Array | None,
    sizes: Array | None,
) -> Lines:
    """The resamplings of a node, axes that stay as they are left out.

    Raises:
        ShapeError: neither or both of scales and sizes are given, their number is not that of the axes, or a
            scale is not positive.
    """
    rank = len(shape)
    resized = list(range(rank)) if axes is None else [_axis(a, rank) for a in axes]
    scales, sizes, roi = (None if v is None or v.size == 0 else v for v in (scales, sizes, roi))
    if (scales is None) == (sizes is None):
        raise ShapeError("Resize takes either scales or sizes")
    if policy not in _POLICIES:
        raise ShapeError(f"keep_aspect_ratio_policy {policy!r} is unknown; it can be {', '.join(_POLICIES)}")
    given = scales if scales is not None else sizes
    assert given is not None
    if given.shape != (len(resized),):
        raise ShapeError(f"{given.size} {'scales' if sizes is None else 'sizes'} for {len(resized)} axes")
    found: list[tuple[int, Resampling]] = []
    for k, (axis, (factor, out)) in enumerate(
        zip(resized, _factors([shape[a] for a in resized], policy, scales, sizes), strict=True)
    ):
        region: _Roi = None
        if style.coordinate_transformation_mode == "tf_crop_and_resize":
            if roi is None or roi.shape != (2 * len(resized),):
                raise ShapeError(f"tf_crop_and_resize needs a roi of {2 * len(resized)} numbers")
            region = Fraction(float(roi[k])), Fraction(float(roi[k + len(resized)]))
        if factor == 1 and out == shape[axis] and (region is None or region == (Fraction(0), Fraction(1))):
            continue
        if shape[axis] == 0 and out > 0:
            raise ShapeError(f"axis {axis} is empty: nothing can be resized to {out}")
        found.append((axis, _line(shape[axis], out, factor, region, style)))
    return by_growth(found)


def by_growth(lines: Iterable[tuple[int, Resampling]]) -> Lines:
    """Axes that shrink most first: what follows has less to do."""
    return tuple(sorted(lines, key=lambda line: line[1].out / max(1, line[1].extent)))


def resampled(x: Array, lines: Lines) -> Array:
    """x after all resamplings, in its type: integers are rounded to even and saturate."""
    kind = x.dtype.kind
    if all(line.picks for _, line in lines):
        work = x
    elif kind == "f" and x.dtype.itemsize >= 4:
        work = x.copy()
    elif kind in "fV":
        work = x.astype(np.float32)
    elif kind in "iu":
        work = x.astype(np.float64)
    else:
        raise ShapeError(f"{x.dtype} can only be resized with mode nearest")
    for axis, line in lines:
        work = line.apply(work, axis)
    if work.dtype == x.dtype:
        return work
    if kind in "iu":
        limits = np.iinfo(x.dtype)
        work = np.clip(np.rint(work), limits.min, limits.max)
    return work.astype(x.dtype)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} is out of range for {rank} dimensions")
    return axis % rank


def _factors(
    extents: Sequence[int], policy: str, scales: Array | None, sizes: Array | None
) -> list[tuple[Fraction, int]]:
    """Scale and new extent of each axis."""
    if scales is not None:
        if not np.all(np.isfinite(scales)) or np.any(scales <= 0):
            raise ShapeError(f"scales {scales.tolist()} are not positive numbers")
        # the new extent is computed in float32 everywhere else
        outs = [math.floor(np.float32(n) * np.float32(s)) for n, s in zip(extents, scales, strict=True)]
        return [(Fraction(float(s)), out) for s, out in zip(scales, outs, strict=True)]
    assert sizes is not None
    if np.any(sizes < 0):
        raise ShapeError(f"sizes {sizes.tolist()} are negative")
    exact = [Fraction(int(out), max(1, n)) for n, out in zip(extents, sizes, strict=True)]
    if policy == "stretch":
        return [(factor or Fraction(1), int(out)) for factor, out in zip(exact, sizes, strict=True)]
    factor = min(exact) if policy == "not_larger" else max(exact)
    return [(factor or Fraction(1), math.floor(factor * n + _HALF)) for n in extents]


def _place(style: _Style, extent: int, out: int, factor: Fraction, roi: _Roi) -> tuple[Fraction, Fraction]:
    """(slope, offset): position i of the result lies at slope · i + offset of the operand."""
    length = factor * extent
    match style.coordinate_transformation_mode:
        case "align_corners":
            return (Fraction(0) if length == 1 else (extent - 1) / (length - 1)), Fraction(0)
        case "asymmetric":
            return 1 / factor, Fraction(0)
        case "tf_half_pixel_for_nn":
            return 1 / factor, _HALF / factor
        case "tf_crop_and_resize":
            assert roi is not None
            start, end = roi
            if length == 1:
                return Fraction(0), (start + end) * (extent - 1) / 2
            return (end - start) * (extent - 1) / (length - 1), start * (extent - 1)
        case "pytorch_half_pixel" if length <= 1:
            return Fraction(0), Fraction(0)
        case "half_pixel_symmetric":
            centred = Fraction(extent, 2) * (1 - out / length)
            return 1 / factor, centred + _HALF / factor - _HALF
        case _:
            return 1 / factor, _HALF / factor - _HALF


@functools.lru_cache(1024)
def _line(extent: int, out: int, factor: Fraction, roi: _Roi, style: _Style) -> Resampling:
    slope, offset = _place(style, extent, out, factor, roi)
    common = math.lcm(slope.denominator, offset.denominator)
    step, first = int(slope * common), int(offset * common)
    crops = roi is not None
    starts, indices, weights = [0], [], []
    outside = np.zeros(out)
    for i in range(out):
        position, rest = divmod(step * i + first, common)
        if crops and not 0 <= step * i + first <= (extent - 1) * common:
            outside[i] = style.extrapolation_value
        else:
            for index, weight in _taps(position, Fraction(rest, common), factor, extent, style).items():
                if weight:
                    indices.append(index)
                    weights.append(weight)
        starts.append(len(indices))
    return Resampling(
        extent,
        np.asarray(starts, np.int64),
        np.asarray(indices, np.int64),
        np.asarray(weights, np.float64),
        outside if np.any(outside != 0) else None,
    )


def _taps(position: int, rest: Fraction, factor: Fraction, extent: int, style: _Style) -> dict[int, float]:
    """Positions of the operand and their weights, at `rest` above a position."""
    if style.mode == "nearest":
        nearest = position + _NEAREST[style.nearest_mode](rest)
        return {min(max(nearest, 0), extent - 1): 1.0}
    r = float(rest)
    kernel: Callable[[float], float]
    kernel = _triangle if style.mode == "linear" else functools.partial(_cubic, style.cubic_coeff_a)
    reach = 1 if style.mode == "linear" else 2
    squeeze = min(float(factor), 1.0) if style.antialias else 1.0
    span = math.ceil(reach / squeeze)
    taps = [(position + j, kernel(abs(j - r) * squeeze)) for j in range(1 - span, span + 1)]
    if style.antialias:
        total = math.fsum(w for _, w in taps)
        taps = [(j, w / total) for j, w in taps]
    if style.exclude_outside:
        taps = [(j, w) for j, w in taps if 0 <= j < extent]
        total = math.fsum(w for _, w in taps)
        taps = [(j, w / total) for j, w in taps]
    found: dict[int, float] = {}
    for j, w in taps:
        inside = min(max(j, 0), extent - 1)
        found[inside] = found.get(inside, 0.0) + w
    return found


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - x)


def _cubic(a: float, x: float) -> float:
    """The kernel of Keys, 1981 (Cubic convolution interpolation for digital image processing)."""
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0
