from __future__ import annotations

import math

import numpy as np

from onward.graph import Array, Expression, Op, op


@op("IsInf", since=(10, 20))
class IsInf(Op):
    """Whether each element is an infinity of a sign that is looked for."""

    detect_negative: int = 1
    detect_positive: int = 1

    def kernel(self, X: Array) -> Array:
        if self.detect_negative and self.detect_positive:
            return np.isinf(X)
        sign = X < 0 if self.detect_negative else X > 0
        return np.isinf(X) & sign & bool(self.detect_negative or self.detect_positive)

    def element(self, X: Expression) -> Expression:
        found = X.apply("lt", X)  # no number is: neither sign is looked for
        if self.detect_negative:
            found = X.apply("eq", -math.inf)
        if self.detect_positive:
            above = X.apply("eq", math.inf)
            found = found.apply("or", above) if self.detect_negative else above
        return found
