"""Element types in kernels: 2-byte floats are computed in float32 and rounded once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import ml_dtypes
import numpy as np

from onward.graph import Array

__all__ = ["is_integer", "total", "widened"]

_F = TypeVar("_F", bound=Callable[..., Any])
_NARROW = frozenset({np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)})


def widened(kernel: _F) -> _F:
    """Make a kernel compute float16 and bfloat16 operands in float32 and round its results back.

    The type of the result is that of the first operand.
    """

    @functools.wraps(kernel)
    def wrapper(self: Any, *inputs: Any) -> Any:
        narrow = inputs[0].dtype
        if narrow not in _NARROW:
            return kernel(self, *inputs)
        wide = [x.astype(np.float32) if x is not None and x.dtype in _NARROW else x for x in inputs]
        results = kernel(self, *wide)
        if isinstance(results, tuple):
            return tuple(r.astype(narrow) if r.dtype == np.float32 else r for r in results)
        return results.astype(narrow)

    return cast(_F, wrapper)


def total(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """The sum over axes in x's element type, accumulated in float32 for 2-byte floats."""
    accumulator = np.dtype(np.float32) if x.dtype in _NARROW else x.dtype
    return np.sum(x, axis=axes, keepdims=keepdims, dtype=accumulator).astype(x.dtype, copy=False)


def is_integer(x: Array) -> bool:
    """Whether x holds signed or unsigned integers."""
    return x.dtype.kind in "iu"
