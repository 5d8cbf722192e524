"""Layers that move cells and compute nothing, and layers that join tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError, ShapeError
from onward.graph import dtype_of
from onward.nn.layer import Layer, UnaryLayer
from onward.nn.layers._checks import axis_of, dims, require_float, require_number
from onward.nn.trace import Site, describe

__all__ = ["Add", "Concat", "Flatten", "Pad", "Reshape", "Select", "Transpose"]


@final
@dataclass(frozen=True, eq=False)
class Flatten(UnaryLayer):
    """[N, a, b, ...] -> [N, a * b * ...]."""

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        return site.g.Flatten(x, axis=1)


@final
@dataclass(frozen=True, eq=False)
class Reshape(UnaryLayer):
    """[N, ...] -> [N, *shape]; one extent of `shape` may be -1 and follows from the others."""

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(not isinstance(d, int) or isinstance(d, bool) or d == 0 or d < -1 for d in self.shape):
            raise ConfigError(f"{self.label}: shape has positive ints and at most one -1, got {self.shape}")
        if self.shape.count(-1) > 1:
            raise ConfigError(f"{self.label}: at most one extent of shape may be -1, got {self.shape}")

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        sizes = dims(x)
        fixed = [d for d in sizes[1:] if isinstance(d, int)]
        if len(fixed) != len(sizes) - 1:
            raise ShapeError(f"expected fixed extents after the batch to give shape {list(self.shape)}")
        have, wanted = math.prod(fixed), math.prod(d for d in self.shape if d != -1)
        if have % wanted if -1 in self.shape else have != wanted:
            raise ShapeError(f"{have} cells a sample do not fit shape {list(self.shape)}")
        shape = [have // wanted if d == -1 else d for d in self.shape]
        y = site.g.Reshape(x, np.array([0, *shape], np.int64))
        y.shape = ir.Shape([sizes[0], *shape])
        return y


@final
@dataclass(frozen=True, eq=False)
class Transpose(UnaryLayer):
    """The axes in another order; `perm` lists all of them, and the batch stays first: (0, 2, 1)."""

    perm: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.perm) != list(range(len(self.perm))) or tuple(self.perm[:1]) != (0,):
            raise ConfigError(
                f"{self.label}: perm lists every axis once and begins with 0 (the batch), got {self.perm}"
            )

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        if len(dims(x)) != len(self.perm):
            raise ShapeError(f"expected rank {len(self.perm)} for perm {self.perm}, got rank {len(dims(x))}")
        return site.g.Transpose(x, perm=self.perm)


@final
@dataclass(frozen=True, eq=False)
class Select(UnaryLayer):
    """Columns `start` … `stop` − 1 of [N, C]: [N, stop − start].

    Args:
        start, stop: 0 <= start < stop <= C.
        ids: give them as int64 [N, stop − start], for an `Embedding`; the numbers must be whole.
    """

    start: int
    stop: int
    ids: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ConfigError(f"{self.label}: 0 <= start < stop is needed, got {self.start}, {self.stop}")

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        sizes = dims(x)
        if len(sizes) != 2 or (isinstance(sizes[1], int) and self.stop > sizes[1]):
            raise ShapeError(f"expected [N, C] with C of {self.stop} or more, got {list(sizes)}")
        y = site.g.Slice(x, [self.start], [self.stop], [1])
        return site.g.Cast(y, to=int(ir.DataType.INT64)) if self.ids else y


@final
@dataclass(frozen=True, eq=False)
class Pad(UnaryLayer):
    """A constant around the input: `pads` has a (begin, end) pair for every axis after the batch."""

    pads: Sequence[tuple[int, int]]
    value: float = 0.0

    def __post_init__(self) -> None:
        require_number(self, "value", self.value)
        for pair in self.pads:
            if len(pair) != 2 or any(not isinstance(p, int) or p < 0 for p in pair):
                raise ConfigError(
                    f"{self.label}: pads has a pair (begin, end) of ints >= 0 an axis, got {pair!r}"
                )

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        if len(self.pads) != len(dims(x)) - 1:
            raise ShapeError(f"pads has {len(self.pads)} pairs, expected {len(dims(x)) - 1}")
        pads = [0, *(begin for begin, _ in self.pads), 0, *(end for _, end in self.pads)]
        y = site.g.Pad(x, np.array(pads, np.int64), None if self.value == 0.0 else float(self.value))
        sizes = [
            d + sum(p) if isinstance(d, int) else None for d, p in zip(dims(x)[1:], self.pads, strict=True)
        ]
        y.shape = ir.Shape([dims(x)[0], *sizes])
        return y


@final
@dataclass(frozen=True, eq=False)
class Concat(Layer):
    """Inputs one after another along an axis; their other extents agree."""

    axis: int = 1

    def build(self, site: Site, inputs: Sequence[ir.Value]) -> ir.Value:
        _require_same_dtype(inputs)
        first = dims(inputs[0])
        axis = axis_of(self.axis, first)
        if axis == 0:
            raise ShapeError("expected an axis after the batch")
        for value in inputs[1:]:
            other = dims(value)
            if len(other) != len(first) or any(
                isinstance(a, int) and isinstance(b, int) and a != b
                for i, (a, b) in enumerate(zip(first, other, strict=False))
                if i != axis
            ):
                raise ShapeError(
                    f"expected inputs that differ on axis {self.axis} only, got {_listed(inputs)}"
                )
        return site.g.Concat(*inputs, axis=self.axis)


@final
@dataclass(frozen=True, eq=False)
class Add(Layer):
    """The sum of two or more inputs of the same shape."""

    def build(self, site: Site, inputs: Sequence[ir.Value]) -> ir.Value:
        if len(inputs) < 2:
            raise ShapeError("expected two inputs or more, got one")
        _require_same_dtype(inputs)
        y = inputs[0]
        require_float(y)
        for value in inputs[1:]:
            if dims(value) != dims(inputs[0]):
                raise ShapeError(f"expected inputs of the same shape, got {_listed(inputs)}")
            y = site.g.Add(y, value)
        return y


def _require_same_dtype(inputs: Sequence[ir.Value]) -> None:
    if len({dtype_of(value) for value in inputs}) > 1:
        raise ShapeError(f"expected inputs of one dtype, got {_listed(inputs)}")


def _listed(inputs: Sequence[ir.Value]) -> str:
    return ", ".join(map(describe, inputs))
