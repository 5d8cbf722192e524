from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Op, dims_of, dtype_of, numpy_dtype, op, requests
from onward.graph.requests import Static, Values
from onward.ops._floats import widened
from onward.ops._shape import constant_of, require_shape


@op("AffineGrid", since=20)
class AffineGrid(Op):
    """grid[n, p] = theta[n] · (x, y[, z], 1) of pixel p, coordinates from −1 to 1.

    Linear in theta. An axis of one pixel has the coordinate −1 with align_corners, else 0.
    """

    static_operands = ("size",)

    align_corners: int = 0

    @widened
    def kernel(self, theta: Array, size: Array) -> Array:
        extents = _extents(theta.shape, size)
        rank = len(extents)
        points = self._points(extents).astype(theta.dtype)
        require_shape("theta", theta, (int(size[0]), rank, rank + 1))
        return np.matmul(points, theta.transpose(0, 2, 1)).reshape(len(theta), *extents, rank)

    def lower(
        self, static: Static, outputs: Values, theta: ir.Value, size: ir.Value
    ) -> requests.Body | requests.Unsupported:
        known, shape = static.known(size), static.shape(theta)
        if known is None:
            return requests.Unsupported("a size that is not constant")
        if shape[0] != int(known[0]):
            raise ShapeError(f"theta {list(shape)} does not fit size {known.tolist()}")
        _extents(shape, known)
        return requests.Body()

    def expand(self, g: Builder, theta: ir.Value, size: ir.Value) -> ir.Value:
        """The pixels' coordinates, a matrix, times each of the maps."""
        known = constant_of(size)
        assert known is not None
        extents = [int(n) for n in known[2:]]
        points = g.const(self._points(extents).astype(numpy_dtype(dtype_of(theta))))
        grid = g.MatMul(points, g.Transpose(theta, perm=[0, 2, 1]))
        return g.Reshape(grid, g.const([int(known[0]), *extents, len(extents)], np.int64), allowzero=1)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, theta: ir.Value, size: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        dims = dims_of(y)
        extents = [] if dims is None else [d for d in dims[1:-1] if isinstance(d, int)]
        if dims is None or len(extents) != len(dims) - 2:
            raise UnsupportedError("the gradient of AffineGrid needs a static size")
        points = g.const(self._points(extents).astype(numpy_dtype(dtype_of(theta))))
        rows = g.Reshape(dy, g.Concat(g.dim(theta, 0), [math.prod(extents), len(extents)], axis=0))
        return g.MatMul(g.Transpose(rows, perm=[0, 2, 1]), points), None

    def _points(self, extents: Sequence[int]) -> Array:
        """(x, y[, z], 1) of every pixel, [pixels, axes + 1]."""
        axes = [
            np.linspace(-1, 1, n) if self.align_corners else (2 * np.arange(n) + 1) / n - 1 for n in extents
        ]
        grid = np.meshgrid(*axes, indexing="ij")
        return np.stack([*(a.ravel() for a in reversed(grid)), np.ones(math.prod(extents))], axis=1)


def _extents(theta: tuple[int, ...], size: Array) -> list[int]:
    """The grid's extents, where theta maps as many axes."""
    extents = [int(n) for n in size[2:]]
    rank = len(extents)
    if rank not in (2, 3) or theta[1:] != (rank, rank + 1):
        raise ShapeError(f"theta {list(theta)} does not fit size {size.tolist()}")
    return extents
