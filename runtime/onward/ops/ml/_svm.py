"""Support vector machines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onward.errors import InvalidModelError, ShapeError
from onward.graph import Array
from onward.ops.ml._common import rows_of

_KERNELS = ("LINEAR", "POLY", "RBF", "SIGMOID")


def kernel_values(X: Array, vectors: Array, kernel_type: str, kernel_params: Sequence[float] | None) -> Array:
    """k(x, v) of every row x and vector v in float64, [N, V].

    kernel_params are gamma, coef0 and degree: x·v, (gamma x·v + coef0)^degree, exp(−gamma |x − v|²) or
    tanh(gamma x·v + coef0).

    Raises:
        InvalidModelError: another kernel.
        ShapeError: X has another number of features than the vectors.
    """
    if kernel_type not in _KERNELS:
        raise InvalidModelError(f"kernel_type {kernel_type!r}: it is one of {', '.join(_KERNELS)}")
    x = rows_of(X).astype(np.float32).astype(np.float64)
    if x.shape[1] != vectors.shape[1]:
        raise ShapeError(f"X has {x.shape[1]} features, the model has {vectors.shape[1]}")
    v = vectors.astype(np.float64)
    products = x @ v.T
    if kernel_type == "LINEAR":
        return products
    gamma, coef0, degree = kernel_params if kernel_params and len(kernel_params) == 3 else (0.0, 0.0, 0.0)
    if kernel_type == "RBF":
        squares = (x * x).sum(1)[:, None] + (v * v).sum(1) - 2 * products
        return np.exp(-gamma * np.maximum(squares, 0))
    scaled = gamma * products + coef0
    return np.tanh(scaled) if kernel_type == "SIGMOID" else np.power(scaled, degree)


def coupled(r: Array) -> Array:
    """Class probabilities [N, C] of those of pairs, r[n, i, j] that i and not j.

    The second method of Wu, Lin and Weng, "Probability estimates for multi-class classification by pairwise
    coupling" (2004), with libsvm's stopping rule, in float32.
    """
    rows, count = r.shape[0], r.shape[1]
    Q = -r.transpose(0, 2, 1) * r
    diagonal = np.arange(count)
    others = r.transpose(0, 2, 1) ** 2
    others[:, diagonal, diagonal] = 0
    Q[:, diagonal, diagonal] = others.sum(2)
    p = np.full((rows, count), 1 / count, np.float32)
    active = np.arange(rows)
    for _ in range(100):
        q, now = Q[active], p[active]
        slope = np.einsum("nij,nj->ni", q, now)
        value = np.einsum("ni,ni->n", now, slope)
        left = np.abs(slope - value[:, None]).max(1) >= np.float32(0.005) / np.float32(count)
        active, q, now, slope, value = active[left], q[left], now[left], slope[left], value[left]
        if not len(active):
            break
        for i in range(count):
            step = (value - slope[:, i]) / q[:, i, i]
            now[:, i] += step
            value = (value + step * (step * q[:, i, i] + 2 * slope[:, i])) / (1 + step) / (1 + step)
            slope = (slope + step[:, None] * q[:, i]) / (1 + step)[:, None]
            now /= (1 + step)[:, None]
        p[active] = now
    return p


def enough(name: str, numbers: Sequence[float] | None, least: int) -> Array:
    """An attribute of at least so many numbers, in float32.

    Raises:
        InvalidModelError: it has fewer.
    """
    if numbers is None or len(numbers) < least or not numbers:
        raise InvalidModelError(f"{name} has {len(numbers or ())} numbers; {max(least, 1)} are needed")
    return np.asarray(numbers, np.float32)
