"""Keys to values."""

from __future__ import annotations

from typing import Any

import numpy as np

from onward.errors import InvalidModelError, ShapeError
from onward.graph import Array


def looked_up(X: Array, keys: Array, values: Array, default: Any) -> Array:
    """The value of each element's key, else the default; of a key that is there twice the first, NaN is one.

    Raises:
        InvalidModelError: not as many keys as values.
        ShapeError: X is not of the keys' type.
    """
    if len(keys) != len(values):
        raise InvalidModelError(f"{len(keys)} keys and {len(values)} values")
    if (X.dtype == object) != (keys.dtype == object):
        names = ["strings" if a.dtype == object else str(a.dtype) for a in (X, keys)]
        raise ShapeError(f"X holds {names[0]}, the keys are {names[1]}")
    table = np.empty(len(values) + 1, values.dtype)
    table[:-1], table[-1] = values, default
    return table[_positions(X.reshape(-1), keys)].reshape(X.shape)


def _positions(x: Array, keys: Array) -> Array:
    """Where each element is among the keys; their number for those that are not."""
    if keys.dtype == object:
        places = {str(key): i for i, key in reversed(list(enumerate(keys)))}
        return np.fromiter((places.get(str(v), len(keys)) for v in x), np.int64, len(x))
    distinct, first = np.unique(keys, return_index=True)
    if not len(distinct):
        return np.zeros(len(x), np.int64)
    at = np.minimum(np.searchsorted(distinct, x), len(distinct) - 1)
    found = (distinct[at] == x) | ((distinct[at] != distinct[at]) & (x != x))
    return np.where(found, first[at], len(keys))
