from __future__ import annotations

import math

import numpy as np

from onward.errors import LimitError, ShapeError
from onward.graph import Array, Op, op
from onward.graph.memory import too_large
from onward.ops._floats import is_integer


@op("Range", since=(11, 27))
class Range(Op):
    """start, start + delta, … up to before limit; 2-byte floats are counted in float32 by default."""

    static_operands = ("start", "limit", "delta")

    stash_type: int = 1

    def kernel(self, start: Array, limit: Array, delta: Array) -> Array:
        if start.dtype.itemsize == 2 and not is_integer(start) and self.stash_type == 1:
            return _range(*(x.astype(np.float32) for x in (start, limit, delta))).astype(start.dtype)
        return _range(start, limit, delta)


def _range(start: Array, limit: Array, delta: Array) -> Array:
    first, last, step = (x.reshape(-1)[0].item() for x in (start, limit, delta))
    if not step or not math.isfinite(last - first) or math.isnan(step):
        raise ShapeError(f"delta is {step}, from {first} to {last}: that is no range")
    count = max(0, math.ceil((last - first) / step))
    if (reason := too_large(count * start.dtype.itemsize)) is not None:
        raise LimitError(reason)
    return start.reshape(()) + np.arange(count).astype(start.dtype) * delta.reshape(())
