from __future__ import annotations

import functools

import numpy as np

from onward.graph import Array, Expression, op
from onward.ops._extreme import ExtremeOf


@op("Min", since=(1, 6, 8, 12, 13))
class Min(ExtremeOf):
    """The smallest of its operands, element by element; NaN wins. Ties share the gradient."""

    def kernel(self, *data_0: Array) -> Array:
        return functools.reduce(np.minimum, data_0)

    def element(self, *operands: Expression) -> Expression:
        return functools.reduce(lambda a, b: a.apply("min", b), operands)
