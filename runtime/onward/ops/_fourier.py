"""Discrete Fourier transforms as products with matrices of roots of unity."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, dtype_of, numpy_dtype, static_shape

__all__ = ["matrix_transform", "too_long"]

_WORK = 2048
"""The products an element of a transform that are less work than NumPy's transform."""

_WHOLE = 64
"""Up to this length one matrix is less work than two and the moves between them."""


def _parts(length: int) -> tuple[int, int]:
    """A length as a product of two numbers, the nearest that there are."""
    first = next(n for n in range(math.isqrt(length), 0, -1) if length % n == 0)
    return first, length // first


def _work(length: int, parts: int) -> tuple[int, int]:
    """Products an element, by one matrix and by two."""
    first, second = _parts(length)
    return 2 * parts * length, 2 * parts * first + 4 * second


def too_long(length: int, parts: int, *, half: bool) -> str:
    """Why matrices are no way to transform so many elements; empty where they are.

    Args:
        length: of the transform.
        parts: 1 for real elements, 2 for complex ones.
        half: whether half of a spectrum is transformed back to real elements.
    """
    whole, divided = _work(length, parts)
    if (whole if half else min(whole, divided)) > _WORK:
        return f"a length of {length}, which has no two factors near its root"
    return ""


def matrix_transform(
    g: Builder, x: ir.Value, length: int, axis: int, *, inverse: bool, onesided: bool
) -> ir.Value:
    """`transform` of `ops.dft` in operators.

    A length n = a · b takes two steps (Cooley and Tukey, 1965): with j = b j1 + j2 and k = k1 + a k2,
    exp(2πi jk/n) = exp(2πi j1 k1/a) · exp(2πi (j2 k1/n + j2 k2/b)): products with one matrix for all j2, and
    then with one for each k1.
    """
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
        y = g.MatMul(_shaped(g, x, math.prod(outer), taken * parts), _constant(g, weights, kind))
    elif length <= _WHOLE or _work(length, parts)[0] <= 2 * _work(length, parts)[1]:
        roots = _roots(np.outer(range(length), range(bins)) / length, inverse) / (length if inverse else 1)
        weights = _pairs(roots)[:, :parts].reshape(length * parts, 2 * bins)
        y = g.MatMul(_shaped(g, x, math.prod(outer), length * parts), _constant(g, weights, kind))
    else:
        y = _two_steps(g, x, math.prod(outer), length, parts, kind, inverse=inverse)
        if bins < length:
            y = g.Slice(y, [0], [bins], [1])
    y = _shaped(g, y, *outer, bins, 1 if back else 2)
    return y if perm == list(range(rank)) else g.Transpose(y, perm=[perm.index(i) for i in range(rank)])


def _two_steps(
    g: Builder, x: ir.Value, rows: int, length: int, parts: int, kind: ir.DataType, *, inverse: bool
) -> ir.Value:
    """[rows, length, 2]."""
    a, b = _parts(length)
    first = _pairs(_roots(np.outer(range(a), range(a)) / a, inverse))[:, :parts].reshape(a * parts, 2 * a)
    j2, k1, k2 = np.arange(b)[:, None], np.arange(a)[:, None, None], np.arange(b)
    turns = _roots(j2 * k1 / length + j2 * k2 / b, inverse) / (length if inverse else 1)
    second = np.stack([_pairs(turn).reshape(2 * b, 2 * b) for turn in turns])
    x = g.Transpose(_shaped(g, x, rows, a, b, parts), perm=[0, 2, 1, 3])
    x = g.MatMul(_shaped(g, x, rows * b, a * parts), _constant(g, first, kind))
    x = g.Transpose(_shaped(g, x, rows, b, a, 2), perm=[2, 0, 1, 3])
    x = g.MatMul(_shaped(g, x, a, rows, 2 * b), _constant(g, second, kind))
    return _shaped(g, g.Transpose(_shaped(g, x, a, rows, b, 2), perm=[1, 2, 0, 3]), rows, length, 2)


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


def _constant(g: Builder, array: Array, kind: ir.DataType) -> ir.Value:
    return g.const(array.astype(numpy_dtype(kind)))


def _shaped(g: Builder, x: ir.Value, *shape: int) -> ir.Value:
    return g.Reshape(x, g.const(shape, np.int64))
