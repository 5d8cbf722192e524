"""Where a plan keeps its values: buffers, and tensors that are strided views into them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from onward.compile.kernels.layout import Image
from onward.graph import Array

__all__ = [
    "Buffer",
    "Place",
    "Tensor",
    "expanded",
    "gapless",
    "permuted",
    "reshaped",
    "row_major",
    "sliced",
    "strides_agree",
    "swapped",
    "taken",
]


class Place(Enum):
    """Who owns a buffer's memory."""

    ARENA = "arena"
    """The plan: shared with buffers that live at other times."""

    FIXED = "fixed"
    """The session, or the plan for as long as it lives: state, weights, constants, packed weights."""

    INPUT = "input"
    """The caller: the address is known at each run."""


@dataclass(eq=False)
class Buffer:
    """A piece of memory.

    Attributes:
        nbytes: its size.
        place: who owns it.
        image: the geometry of its border of zeros, for images that have one; such memory is only ever shared
            with buffers of equal geometry and size, so that the border stays zero.
        array: the contents, for FIXED ones that no call writes.
        name: the input, for INPUT ones; the state or weight, for FIXED ones of the session.
    """

    nbytes: int
    place: Place = Place.ARENA
    image: Image | None = None
    array: Array | None = field(default=None, repr=False)
    name: str = ""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value in memory: `shape` in the order of ONNX, strides and offset in elements.

    `image` is set where the value is channels-last.
    """

    buffer: Buffer
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int = 0
    image: Image | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def plain(self) -> bool:
        """Whether the elements follow each other in ONNX's order."""
        wanted = row_major(self.shape)
        return self.image is None and all(
            n == 1 or s == w for n, s, w in zip(self.shape, self.strides, wanted, strict=True)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of a tensor without gaps, last axis fastest."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return tuple(strides)


def strides_agree(a: Tensor, b: Tensor) -> bool:
    """Whether two views of one shape walk memory alike; axes of extent 1 do not walk."""
    return all(n == 1 or s == t for n, s, t in zip(a.shape, a.strides, b.strides, strict=True))


def permuted(tensor: Tensor, perm: Sequence[int]) -> Tensor:
    """Axis perm[i] as axis i: another view on the same elements."""
    shape, strides = (tuple(values[a] for a in perm) for values in (tensor.shape, tensor.strides))
    return replace(tensor, shape=shape, strides=strides, image=None)


def swapped(tensor: Tensor, first: int, second: int) -> Tensor:
    """Two axes exchanged."""
    perm = list(range(len(tensor.shape)))
    perm[first], perm[second] = perm[second], perm[first]
    return permuted(tensor, perm)


def sliced(tensor: Tensor, axis: int, start: int, count: int) -> Tensor:
    """Positions start to start + count of an axis; it stays known whether the tensor is channels-last."""
    shape = (*tensor.shape[:axis], count, *tensor.shape[axis + 1 :])
    return replace(tensor, shape=shape, offset=tensor.offset + start * tensor.strides[axis])


def taken(tensor: Tensor, axis: int, index: int) -> Tensor:
    """One position of an axis, which is left out."""
    shape, strides = ((*values[:axis], *values[axis + 1 :]) for values in (tensor.shape, tensor.strides))
    offset = tensor.offset + index * tensor.strides[axis]
    return replace(tensor, shape=shape, strides=strides, offset=offset, image=None)


def expanded(tensor: Tensor, axis: int) -> Tensor:
    """One axis more, of extent 1."""
    stride = math.prod(tensor.shape[axis:])
    shape, strides = (
        (*values[:axis], new, *values[axis:]) for values, new in ((tensor.shape, 1), (tensor.strides, stride))
    )
    return replace(tensor, shape=shape, strides=strides, image=None)


def gapless(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor whose elements follow each other, under another shape."""
    return replace(tensor, shape=shape, strides=row_major(shape), image=None)


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The same elements in the same order under another shape; None where that takes a copy."""
    if tensor.size == 0:
        return None
    runs: list[list[int]] = []
    for size, stride in zip(tensor.shape, tensor.strides, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == stride * size:
            runs[-1] = [runs[-1][0] * size, stride]
        else:
            runs.append([size, stride])
    strides = []
    for size in reversed(shape):
        if size == 1:
            strides.append(runs[-1][1] * runs[-1][0] if runs else 1)
            continue
        if not runs or runs[-1][0] % size:
            return None
        strides.append(runs[-1][1])
        runs[-1] = [runs[-1][0] // size, runs[-1][1] * size]
        if runs[-1][0] == 1:
            runs.pop()
    strides = [s if n > 1 else w for n, s, w in zip(shape, reversed(strides), row_major(shape), strict=True)]
    return replace(tensor, shape=shape, strides=tuple(strides), image=None)
