from __future__ import annotations

import numpy as np

from onward.graph import Array, Expression, Op, op


@op("IsNaN", since=(9, 13, 20))
class IsNaN(Op):
    """Whether each element is not a number."""

    def kernel(self, X: Array) -> Array:
        return np.isnan(X)

    def element(self, X: Expression) -> Expression:
        return X.apply("ne", X)
