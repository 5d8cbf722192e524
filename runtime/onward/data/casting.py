"""Arrays in the element type that a model takes, without a number that silently becomes another."""

from __future__ import annotations

from typing import Any

import numpy as np

from onward.data.dataset import Array
from onward.errors import DataError

__all__ = ["as_dtype"]


def as_dtype(array: Array, dtype: np.dtype[Any], what: str) -> Array:
    """The array in another element type; rounding to a shorter float is the only loss.

    Args:
        array: numbers; or texts, for objects.
        dtype: what is needed.
        what: what the array is called in messages, such as "input 'image'".

    Raises:
        DataError: a number has no equal in the new type (a fraction or 300 as uint8, 1e300 as float32), or
            the array does not hold numbers.
    """
    if array.dtype == dtype:
        return array
    if dtype.kind == "O" and array.dtype.kind in "US":
        return (np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array).astype(object)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise DataError(f"{what} has dtype {array.dtype}, {dtype} is needed")
    if dtype.kind not in "biu":
        with np.errstate(over="ignore"):
            floats: Array = array.astype(dtype)
        if array.dtype.itemsize > dtype.itemsize or array.dtype.kind in "iu":
            wrong = ~np.isfinite(floats) & np.isfinite(array)
            if wrong.any():
                raise DataError(f"{what} holds {array[wrong].ravel()[0]!s}, beyond the range of {dtype}")
        return floats
    if np.can_cast(array.dtype, dtype, "safe"):
        return array.astype(dtype)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    wrong = ~((array >= low) & (array <= high))
    if array.dtype.kind == "f":
        wrong |= array != np.floor(array)
    if wrong.any():
        hint = "; the model takes pixels of 0 … 255 as they are in files" if dtype == np.uint8 else ""
        raise DataError(f"{what} takes {dtype}, the value {array[wrong].ravel()[0]!s} is none{hint}")
    return array.astype(dtype)
