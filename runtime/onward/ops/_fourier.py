"""Discrete Fourier transforms as products with a matrix of roots of unity."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, dtype_of, numpy_dtype, static_shape

__all__ = ["matrix_transform", "too_long"]

_SHORT = 64
"""Up to this length a product is less work than NumPy's transform, whatever the length's factors are."""

_LONG = 1024
"""The length from which on NumPy's transform is less work even where factors are large."""

_FACTOR = 11
"""The largest factor that NumPy's transform splits a length by without detours."""


def too_long(length: int) -> str:
    """Why NumPy is better at transforms of a length than a matrix; empty where it is not."""
    if length <= _SHORT:
        return ""
    rest = length
    for factor in range(2, _FACTOR + 1):
        while rest % factor == 0:
            rest //= factor
    if rest == 1 or length > _LONG:
        return f"a length of {length}, which NumPy transforms in fewer steps than a matrix has"
    return ""


def matrix_transform(
    g: Builder, x: ir.Value, length: int, axis: int, *, inverse: bool, onesided: bool
) -> ir.Value:
    """`transform` of `ops.dft` in operators."""
    kind = dtype_of(x)
    if numpy_dtype(kind).itemsize < 4:
        wide = matrix_transform(
            g, g.Cast(x, to=int(ir.DataType.FLOAT)), length, axis, inverse=inverse, onesided=onesided
        )
        return g.Cast(wide, to=int(kind))
    shape = static_shape(x) or ()
    rank, parts, back = len(shape), shape[-1], inverse and onesided
    taken = length // 2 + 1 if back else length
    bins = length // 2 + 1 if onesided and not inverse else length
    perm = [*(i for i in range(rank - 1) if i != axis), axis, rank - 1]
    x = _fitted(g, x if perm == list(range(rank)) else g.Transpose(x, perm=perm), shape[axis], taken)
    outer = [shape[i] for i in perm[:-2]]
    if back:
        weights = _synthesis(length, taken)[:, :parts].reshape(taken * parts, length)
    else:
        roots = _roots(np.outer(range(length), range(bins)) / length, inverse) / (length if inverse else 1)
        weights = _pairs(roots)[:, :parts].reshape(length * parts, 2 * bins)
    y = g.MatMul(_shaped(g, x, math.prod(outer), taken * parts), g.const(weights.astype(numpy_dtype(kind))))
    y = _shaped(g, y, *outer, bins, 1 if back else 2)
    return y if perm == list(range(rank)) else g.Transpose(y, perm=[perm.index(i) for i in range(rank)])


def _fitted(g: Builder, x: ir.Value, extent: int, taken: int) -> ir.Value:
    """The last axis but one cut off, or with zeros behind it."""
    if taken < extent:
        return g.Slice(x, [0], [taken], [-2])
    if taken > extent:
        return g.Pad(x, [0, taken - extent], None, [-2])
    return x


def _roots(turns: Array, inverse: bool) -> Array:
    """exp(∓2πi · turns), whole turns left out first; quarters of a turn are exact."""
    roots = np.exp((2j if inverse else -2j) * np.pi * (turns % 1))
    exact = (np.where(np.abs(part) < 1e-15, 0.0, part) for part in (roots.real, roots.imag))
    real, imaginary = exact
    return real + 1j * imaginary


def _pairs(factors: Array) -> Array:
    """[j, k] complex factors as [j, 2, k, 2]: what real and imaginary parts give to those of results."""
    real, imaginary = factors.real, factors.imag
    return np.stack([np.stack([real, imaginary], -1), np.stack([-imaginary, real], -1)], 1)


def _synthesis(length: int, taken: int) -> Array:
    """[k, 2, n]: real elements from half of a spectrum, whose other half is its mirror image."""
    k = np.arange(taken)
    twice = np.where((k == 0) | (2 * k == length), 1.0, 2.0)[:, None]
    roots = _roots(np.outer(k, range(length)) / length, True) * twice / length
    return np.stack([roots.real, -roots.imag], 1)


def _shaped(g: Builder, x: ir.Value, *shape: int) -> ir.Value:
    return g.Reshape(x, g.const(shape, np.int64))
