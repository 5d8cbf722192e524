"""How far two engines may be apart, and how far two arrays are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np

from onward.errors import ConfigError
from onward.graph import Array

__all__ = [
    "EXACT",
    "TOLERANCES",
    "TRAINING_TOLERANCES",
    "Deviation",
    "Tolerance",
    "Tolerances",
    "measure",
    "tolerance_for",
]


@final
@dataclass(frozen=True, slots=True)
class Tolerance:
    """Elements a (ours) and b agree when |a − b| <= absolute + relative · |b| + scale · max |b|.

    NaN agrees with NaN, an infinity with the same infinity.

    Attributes:
        absolute: in the tensor's unit.
        relative: to the element.
        scale: relative to the largest element of the tensor. Rounding in a sum is relative to its terms, not
            to what they leave when they cancel.
    """

    absolute: float = 0.0
    relative: float = 0.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        for name in ("absolute", "relative", "scale"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"tolerance: {name} must be at least 0, got {getattr(self, name)}")


EXACT = Tolerance()

TOLERANCES: Mapping[str, Tolerance] = {
    "float16": Tolerance(1e-3, 1e-2, 2e-3),
    "bfloat16": Tolerance(1e-2, 4e-2, 2e-2),
    "float32": Tolerance(1e-5, 1e-4, 1e-5),
    "float64": Tolerance(1e-12, 1e-9, 1e-12),
}
"""By NumPy dtype name; every other type has to agree exactly."""

TRAINING_TOLERANCES: Mapping[str, Tolerance] = {
    name: Tolerance(t.absolute, t.relative, 10 * t.scale) for name, t in TOLERANCES.items()
}
"""For training steps: a gradient sums over a whole batch and passes every layer twice."""

Tolerances: TypeAlias = Tolerance | Mapping[str, Tolerance] | None
"""One for all floating-point tensors, one a dtype (others keep the default), or the defaults."""


def tolerance_for(dtype: np.dtype[np.generic], given: Tolerances) -> Tolerance:
    """The tolerance of a dtype."""
    default = TOLERANCES.get(dtype.name, EXACT)
    if given is None:
        return default
    if isinstance(given, Tolerance):
        return given if dtype.name in TOLERANCES else EXACT
    return given.get(dtype.name, default)


@final
@dataclass(frozen=True, slots=True)
class Deviation:
    """How far an array is from another.

    Attributes:
        ok: whether they agree within the tolerance.
        max_abs: the largest |a − b|; infinite where only one of them is a number.
        max_rel: the largest |a − b| / max(|a|, |b|): 0 … 2, infinite as above.
        position: the index that exceeds its tolerance most, where they disagree.
        ours, theirs: the elements there, as text.
        note: what differs when it is not the elements: the dtype, the shape, the kind of value.
    """

    ok: bool
    max_abs: float = 0.0
    max_rel: float = 0.0
    position: tuple[int, ...] | None = None
    ours: str | None = None
    theirs: str | None = None
    note: str | None = None


def measure(ours: object, theirs: object, tolerance: Tolerance, slack: Array | float = 0.0) -> Deviation:
    """Compare two arrays of any dtype; what is no array disagrees.

    Args:
        ours, theirs: the arrays.
        tolerance: how far numbers may be apart.
        slack: how much further, element by element; read where the shapes agree.
    """
    ours, theirs = (np.asarray(v) if isinstance(v, np.generic) else v for v in (ours, theirs))
    for whose, value in (("onward", ours), ("onnxruntime", theirs)):
        if not isinstance(value, np.ndarray):
            return _different(f"{whose} gives {type(value).__name__}, not a tensor")
    assert isinstance(ours, np.ndarray)
    assert isinstance(theirs, np.ndarray)
    textual = ours.dtype.kind in "OUST" and theirs.dtype.kind in "OUST"
    if ours.dtype != theirs.dtype and not textual:
        return _different(f"dtype {ours.dtype} against {theirs.dtype}")
    if ours.shape != theirs.shape:
        return _different(f"shape {list(ours.shape)} against {list(theirs.shape)}")
    if ours.size == 0:
        return Deviation(ok=True)
    if textual or ours.dtype.kind == "b":
        difference = np.asarray(ours != theirs).astype(np.float64)
        return _deviation(ours, theirs, difference, difference, difference > 0, difference)
    return _numbers(ours, theirs, tolerance, slack)


def _different(note: str) -> Deviation:
    return Deviation(ok=False, max_abs=np.inf, max_rel=np.inf, note=note)


def _numbers(ours: Array, theirs: Array, tolerance: Tolerance, slack: Array | float) -> Deviation:
    same = ours == theirs
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    same |= np.isnan(a) & np.isnan(b)
    finite = np.isfinite(a) & np.isfinite(b)
    comparable = finite & ~same
    distance = np.where(same, 0.0, np.inf)
    # neighbouring 64-bit integers can meet in float64: they are 1 apart all the same
    np.subtract(a, b, out=distance, where=comparable)
    np.abs(distance, out=distance)
    if ours.dtype.kind in "iu":
        distance[comparable] = np.maximum(distance[comparable], 1.0)
    size = np.maximum(np.abs(a), np.abs(b))
    relative = distance.copy()
    np.divide(distance, size, out=relative, where=comparable)
    magnitude = np.where(np.isfinite(b), np.abs(b), 0.0)
    limit = tolerance.absolute + tolerance.relative * magnitude + tolerance.scale * magnitude.max() + slack
    bad = ~same & (~finite | (distance > limit))
    excess = np.where(bad, distance - limit, -np.inf)
    return _deviation(ours, theirs, distance, relative, bad, excess)


def _deviation(
    ours: Array, theirs: Array, distance: Array, relative: Array, bad: Array, excess: Array
) -> Deviation:
    max_abs, max_rel = float(distance.max()), float(relative.max())
    if not bad.any():
        return Deviation(ok=True, max_abs=max_abs, max_rel=max_rel)
    worst = tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))
    return Deviation(
        ok=False,
        max_abs=max_abs,
        max_rel=max_rel,
        position=worst,
        ours=str(ours[worst]),
        theirs=str(theirs[worst]),
    )
