"""Checks that layers share: hyperparameters when a layer is made, inputs when it is added."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError, ShapeError
from onward.graph import Dim, dims_of, dtype_of, is_float
from onward.nn.initializers import Initializer, resolve
from onward.nn.layer import Layer

__all__ = [
    "axis_of",
    "dims",
    "extent",
    "keep_shape",
    "positive_int",
    "require_float",
    "require_in",
    "require_initializers",
    "require_integer",
    "require_number",
    "require_rank",
]

_LAYOUTS = {2: "[N, C]", 3: "[N, C, L]", 4: "[N, C, H, W]"}
_MAX_EXTENT = 2**63
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})


def positive_int(layer: Layer, field: str, value: object) -> None:
    """Raises ConfigError unless the value is an int above 0 that an extent can be."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{layer.label}: {field} must be a positive int, got {value!r}")
    if value >= _MAX_EXTENT:
        raise ConfigError(f"{layer.label}: {field} must be below 2**63, got {value}")


def require_number(
    layer: Layer,
    field: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> None:
    """Raises ConfigError unless the value is a finite number within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise ConfigError(f"{layer.label}: {field} must be a finite number, got {value!r}")
    bounds = [
        (value > above, above, "above"),
        (value >= at_least, at_least, "at least"),
        (value < below, below, "below"),
        (value <= at_most, at_most, "at most"),
    ]
    for holds, bound, word in bounds:
        if not holds:
            raise ConfigError(f"{layer.label}: {field} must be {word} {bound:g}, got {value!r}")


def require_in(layer: Layer, field: str, value: object, known: Collection[str]) -> None:
    """Raises ConfigError unless the value is one of the names."""
    if value not in known:
        raise ConfigError(f"{layer.label}: {field} is one of {', '.join(known)}; got {value!r}")


def require_initializers(layer: Layer, *initializers: str | Initializer) -> None:
    """Raises ConfigError unless each is an initialiser or the name of one."""
    for initializer in initializers:
        try:
            resolve(initializer)
        except ConfigError as error:
            raise ConfigError(f"{layer.label}: {error}") from None


def dims(x: ir.Value) -> tuple[Dim, ...]:
    """The dimensions of a layer's input."""
    found = dims_of(x)
    assert found is not None, "layers refuse outputs of unknown rank"
    return found


def require_rank(x: ir.Value, *ranks: int) -> tuple[Dim, ...]:
    """The dimensions of an input, whose rank must be one of these.

    Raises:
        ShapeError: the rank is another.
    """
    found = dims(x)
    if len(found) not in ranks:
        expected = " or ".join(f"rank {rank} {_LAYOUTS.get(rank, '')}".strip() for rank in ranks)
        raise ShapeError(f"expected {expected}, got rank {len(found)}")
    return found


def require_float(x: ir.Value) -> None:
    """Raises ShapeError unless the input holds floating-point numbers."""
    if not is_float(x):
        raise ShapeError(f"expected floating-point numbers, got {dtype_of(x).name.lower()}")


def require_integer(x: ir.Value) -> None:
    """Raises ShapeError unless the input holds int32 or int64 numbers."""
    if dtype_of(x) not in _INTEGERS:
        raise ShapeError(f"expected int32 or int64 ids, got {dtype_of(x).name.lower()}")


def extent(x: ir.Value, axis: int, what: str) -> int:
    """The static extent of an axis.

    Raises:
        ShapeError: it is symbolic; parameters need it fixed.
    """
    found = dims(x)[axis]
    if not isinstance(found, int):
        raise ShapeError(f"expected a fixed number of {what} on axis {axis}, got {found or 'an unknown one'}")
    return found


def keep_shape(y: ir.Value, like: ir.Value) -> ir.Value:
    """Say that y has the shape of another value where inference is less exact."""
    y.shape = like.shape.copy() if like.shape is not None else None
    return y


def axis_of(layer_axis: int, shape: Sequence[Dim]) -> int:
    """An axis counted from the front.

    Raises:
        ShapeError: there is no such axis.
    """
    if not -len(shape) <= layer_axis < len(shape):
        raise ShapeError(f"axis {layer_axis} does not exist in rank {len(shape)}")
    return layer_axis % len(shape)
