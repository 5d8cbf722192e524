"""Triton's classification extension: the highest values of each row instead of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onward.graph import Array
from onward_server.errors import RequestError

__all__ = ["classified"]


def classified(name: str, array: Array, classes: int, labels: Sequence[str]) -> Array:
    """`value:index` or `value:index:label` of the highest `classes` values along the last dimension.

    Source: Triton's "Classification Extension": BYTES, highest value first, equal values by index.

    Raises:
        RequestError: the output has no last dimension, or no numbers.
    """
    if array.ndim == 0 or array.dtype == object or array.dtype.kind == "b":
        raise RequestError(f"output {name!r}: classification needs rows of numbers, not {array.dtype}")
    count = min(classes, array.shape[-1])
    rows = array.reshape(-1, array.shape[-1]) if array.shape[-1] else array.reshape(0, 0)
    values = rows.astype(np.float64) if array.dtype.kind not in "iu" else rows
    # a stable sort of the reversed row, read backwards, keeps equal values in order of their index
    width = array.shape[-1]
    order = width - 1 - np.argsort(values[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    result = np.empty(order.shape, dtype=object)
    for row, best in enumerate(order.tolist()):
        for place, index in enumerate(best):
            value = values[row, index]
            text = str(value) if array.dtype.kind in "iu" else f"{float(value):f}"
            label = f":{labels[index]}" if index < len(labels) else ""
            result[row, place] = f"{text}:{index}{label}"
    return result.reshape(*array.shape[:-1], count)
