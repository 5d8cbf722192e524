"""Convolution on NumPy arrays: forward, backward to the data, backward to the weights.

All three see convolution as Y[n, o, p] = Σ_{c, k} X[n, c, p·s + k·d − a] · W[o, c, k]. In general they unfold
windows into columns and multiply with BLAS, some samples at a time so that the columns stay in the cache.
Pointwise kernels need no columns; depthwise ones go tap by tap. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Builder, Op
from onward.ops._window import Extents, Geometry, Window, inner, padded, resolve, tap_slices

__all__ = ["Convolving", "convolve", "convolve_grad_input", "convolve_grad_weight", "working_dtype"]


@dataclass(frozen=True, kw_only=True)
class Convolving(Op):
    """The window attributes that convolutions have in common, quantised and fused ones among them."""

    auto_pad: str = "NOTSET"
    dilations: tuple[int, ...] | None = None
    group: int = 1
    kernel_shape: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def window(self, kernel: Extents) -> Window:
        """The node's window for weights of this kernel."""
        if self.kernel_shape is not None and tuple(self.kernel_shape) != kernel:
            raise ShapeError(f"attribute 'kernel_shape' is {list(self.kernel_shape)}, W's is {list(kernel)}")
        return resolve(
            kernel, strides=self.strides, pads=self.pads, dilations=self.dilations, auto_pad=self.auto_pad
        )

    def geometry_of(self, X: Extents, W: Extents) -> Geometry:
        """The geometry of a convolution of X [N, C, *] with W [O, C/group, *] of these shapes.

        Raises:
            ShapeError: the kernel does not fit.
            InvalidModelError: an attribute has the wrong length or an impossible value.
        """
        if len(X) != len(W) or len(X) < 3:
            raise ShapeError(f"X {list(X)} and W {list(W)} are not [N, C, *] and [O, C/group, *]")
        geometry = self.window(W[2:]).over(X[2:])
        if 0 in geometry.out:
            raise ShapeError(f"the kernel {list(W[2:])} does not fit into X {list(X)} with its pads")
        return geometry


_COLUMN_BYTES = 1 << 21
"""How large the columns of one chunk of samples may be, unless one sample alone is larger."""

_NARROW = frozenset({np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)})


def working_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The type to compute in: float32 for the 16-bit floats, else the type itself."""
    return np.dtype(np.float32) if dtype in _NARROW else dtype


def convolve(x: Array, w: Array, geometry: Geometry, group: int) -> Array:
    """x [N, C, *spatial], w [O, C/group, *kernel] → [N, O, *out], of x's dtype.

    Raises:
        ShapeError: channels, groups and kernel extents do not fit together.
    """
    _check(x.shape[1], w, geometry, group)
    work = working_dtype(x.dtype)
    x, result_dtype, w = x.astype(work, copy=False), x.dtype, w.astype(work, copy=False)
    n, outputs = x.shape[0], w.shape[0]
    y = np.empty((n, outputs, *geometry.out), work)
    if group > 1 and w.shape[1] == 1 and not geometry.is_pointwise:
        xp, weights = padded(x, geometry), _by_group(w, group)
        by_group = y.reshape(n, group, outputs // group, *geometry.out)
        by_group[...] = 0
        for tap, where in tap_slices(geometry):
            by_group += xp[where][:, :, None] * weights[tap]
    else:
        matrix = w.reshape(group, outputs // group, prod(w.shape[1:]))
        y_matrix = y.reshape(n, group, outputs // group, prod(geometry.out))
        for chunk, columns in _columns(x, geometry, group):
            np.matmul(matrix, columns, out=y_matrix[chunk])
    return y.astype(result_dtype, copy=False)


def convolve_grad_input(dy: Array, w: Array, geometry: Geometry, group: int) -> Array:
    """dy [N, O, *out], w [O, C/group, *kernel] → [N, C, *spatial], of dy's dtype: the adjoint of `convolve`.

    Raises:
        ShapeError: channels, groups and kernel extents do not fit together.
    """
    channels = w.shape[1] * group
    _check(channels, w, geometry, group)
    _check_output(dy, w, geometry)
    work = working_dtype(dy.dtype)
    dy, result_dtype, w = np.ascontiguousarray(dy, work), dy.dtype, w.astype(work, copy=False)
    n, outputs = dy.shape[:2]
    depthwise = group > 1 and w.shape[1] == 1
    dy_group = dy.reshape(n, group, outputs // group, prod(geometry.out))
    matrix = w.reshape(group, outputs // group, prod(w.shape[1:])).swapaxes(1, 2)
    if geometry.is_pointwise:
        dx = np.matmul(matrix, dy_group).reshape(n, channels, *geometry.spatial)
        return dx.astype(result_dtype, copy=False)
    # A convolution of dY writes columns of O · taps rows where the general way adds up C · taps of them.
    if outputs <= 2 * channels and (mirrored := _mirrored(geometry)) is not None and not depthwise:
        flipped = np.flip(w, axis=tuple(range(2, w.ndim))).reshape(group, outputs // group, *w.shape[1:])
        turned = np.ascontiguousarray(flipped.swapaxes(1, 2)).reshape(
            channels, outputs // group, *geometry.kernel
        )
        return convolve(dy, turned, mirrored, group).astype(result_dtype, copy=False)
    reach = [
        max(a + i, span) for a, i, span in zip(geometry.begin, geometry.spatial, geometry.span, strict=True)
    ]
    dxp = np.zeros((n, channels, *reach), work)
    taps = list(tap_slices(geometry))
    if depthwise:
        weights = _by_group(w, group)
        shaped = dy.reshape(n, group, outputs // group, *geometry.out)
        for tap, where in taps:
            product = shaped * weights[tap]
            dxp[where] += product.sum(axis=2) if outputs > group else product[:, :, 0]
    else:
        column_shape = (channels, len(taps), *geometry.out)
        for chunk in _chunks(n, prod(column_shape) * work.itemsize):
            columns = np.matmul(matrix, dy_group[chunk]).reshape(-1, *column_shape)
            for i, (_, where) in enumerate(taps):
                dxp[chunk][where] += columns[:, :, i]
    return np.ascontiguousarray(dxp[inner(geometry)], result_dtype)


def convolve_grad_weight(dy: Array, x: Array, geometry: Geometry, group: int) -> Array:
    """dy [N, O, *out], x [N, C, *spatial] → [O, C/group, *kernel], of dy's dtype.

    Raises:
        ShapeError: batch, channels and groups do not fit together.
    """
    outputs, channels = dy.shape[1], x.shape[1]
    w_shape = (outputs, channels // group, *geometry.kernel)
    if channels % group or outputs % group or dy.shape[0] != x.shape[0]:
        raise ShapeError(f"dY {list(dy.shape)} and X {list(x.shape)} do not fit together in {group} groups")
    work = working_dtype(dy.dtype)
    result_dtype, dy, x = dy.dtype, np.ascontiguousarray(dy, work), x.astype(work, copy=False)
    n, per_group = dy.shape[0], outputs // group
    if group > 1 and channels == group and not geometry.is_pointwise:
        shaped, xp = dy.reshape(n, group, per_group, *geometry.out), padded(x, geometry)
        dw = np.empty((*geometry.kernel, group, per_group), work)
        axes = (0, *range(3, shaped.ndim))
        for tap, where in tap_slices(geometry):
            dw[tap] = (shaped * xp[where][:, :, None]).sum(axis=axes)
        rank = len(geometry.kernel)
        dw = dw.transpose(rank, rank + 1, *range(rank)).reshape(w_shape)
        return dw.astype(result_dtype, copy=False)
    dw = np.zeros((group, per_group, prod(w_shape[1:])), work)
    dy_matrix = dy.reshape(n, group, per_group, prod(geometry.out))
    for chunk, columns in _columns(x, geometry, group):
        dw += np.matmul(dy_matrix[chunk], columns.swapaxes(2, 3)).sum(axis=0)
    return dw.reshape(w_shape).astype(result_dtype, copy=False)


def _mirrored(geometry: Geometry) -> Geometry | None:
    """The convolution that a unit-stride one's adjoint is, with the kernel turned around."""
    begin = tuple(
        d * (k - 1) - a for d, k, a in zip(geometry.dilations, geometry.kernel, geometry.begin, strict=True)
    )
    if any(s != 1 for s in geometry.strides) or any(a < 0 for a in begin):
        return None
    return replace(geometry, spatial=geometry.out, out=geometry.spatial, begin=begin)


def _columns(x: Array, geometry: Geometry, group: int) -> Iterator[tuple[slice, Array]]:
    """Chunks of samples with their windows as columns, [samples, group, C/group · taps, positions].

    The array is reused from one chunk to the next.
    """
    n, channels, positions = x.shape[0], x.shape[1], prod(geometry.out)
    taps = prod(geometry.kernel)
    rows = channels // group * taps
    if geometry.is_pointwise:
        yield slice(0, n), x.reshape(n, group, rows, positions)
        return
    xp = padded(x, geometry)
    where = list(tap_slices(geometry))
    chunks = list(_chunks(n, channels * taps * positions * x.itemsize))
    size = chunks[0].stop if chunks else 0
    buffer = np.empty((size, channels, taps, *geometry.out), x.dtype)
    for chunk in chunks:
        columns = buffer[: chunk.stop - chunk.start]
        for i, (_, at) in enumerate(where):
            columns[:, :, i] = xp[chunk][at]
        yield chunk, columns.reshape(len(columns), group, rows, positions)


def _chunks(n: int, sample_bytes: int) -> Iterator[slice]:
    step = max(1, _COLUMN_BYTES // max(1, sample_bytes))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def _by_group(w: Array, group: int) -> Array:
    """Depthwise weights [O, 1, *kernel] as [*kernel, group, O/group, 1, …]: a tap broadcasts."""
    rank = w.ndim - 2
    taps_first = w.transpose(*range(2, w.ndim), 0, 1)
    return taps_first.reshape(*w.shape[2:], group, -1, *(1,) * rank)


def _check(channels: int, w: Array, geometry: Geometry, group: int) -> None:
    if w.shape[2:] != geometry.kernel:
        raise ShapeError(f"kernel_shape {list(geometry.kernel)} is not that of W {list(w.shape)}")
    if w.shape[1] * group != channels or w.shape[0] % group:
        raise ShapeError(f"W {list(w.shape)} does not fit {channels} channels in {group} groups")


def _check_output(dy: Array, w: Array, geometry: Geometry) -> None:
    if dy.shape[1] != w.shape[0] or dy.shape[2:] != geometry.out:
        raise ShapeError(
            f"dY {list(dy.shape)} does not fit W {list(w.shape)} over extents {list(geometry.spatial)}"
        )


def same_convolution(operator: Convolving, g: Builder, x: ir.Value, w: ir.Value) -> ir.Value:
    """A convolution of floats with an operator's attributes."""
    return g.Conv(
        x,
        w,
        auto_pad=operator.auto_pad,
        dilations=operator.dilations,
        group=operator.group,
        kernel_shape=operator.kernel_shape,
        pads=operator.pads,
        strides=operator.strides,
    )
