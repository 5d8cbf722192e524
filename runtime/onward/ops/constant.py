from __future__ import annotations

from typing import Any

import numpy as np

from onward.errors import UnsupportedError
from onward.graph import Array, Op, op


@op("Constant", since=(1, 9, 11, 12, 13, 19, 21, 23, 24, 25))
class Constant(Op):
    """The tensor that one of the attributes holds."""

    value: Array | None = None
    sparse_value: Any = None
    value_float: float | None = None
    value_floats: tuple[float, ...] | None = None
    value_int: int | None = None
    value_ints: tuple[int, ...] | None = None
    value_string: str | None = None
    value_strings: tuple[str, ...] | None = None

    def kernel(self) -> Array:
        if self.value is not None:
            return self.value
        for content, dtype in (
            (self.value_float, np.float32),
            (self.value_floats, np.float32),
            (self.value_int, np.int64),
            (self.value_ints, np.int64),
            (self.value_string, object),
            (self.value_strings, object),
        ):
            if content is not None:
                return np.array(content, dtype)
        raise UnsupportedError("a Constant with a sparse_value is not supported; store it as a dense tensor")
